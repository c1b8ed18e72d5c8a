-- The first question to a session.
--
-- pid: its backend's process id, by which another session can cancel its statement.
-- marker: what the function's own settings set, null or empty where they did not arrive.
-- one_pass: whether one_pass.sql is to answer everything.
--
-- It is where there are so few media that one pass takes less time than planning anything better:
-- less than 128 pages, 1 MiB and some four thousand files. And where there is no index for the other
-- statements to walk, because then each of their steps would read the whole table. Such an index is
-- valid and complete, a B-tree, in the order of its first column user_id and of that column's
-- collation.
--
-- Asked once a connection, and through a pooler once a request, before the settings are known to be
-- there. Until then search_path may be a stranger's, and a bare name may find the stranger's
-- function, operator or table. So each name here has its schema and each operator is written out.
-- IN, LIKE, BETWEEN, USING and CASE x WHEN are operators in disguise.
--
-- The catalog's number of pages is as of the latest VACUUM or ANALYZE; reltuples is negative where
-- there was none. Asking for the file's own size would have to wait for whoever locks the table. The
-- table is looked up by its name: without USAGE on its schema regclass is an error, before anybody
-- could say what the role lacks.
SELECT pg_catalog.pg_backend_pid() AS pid,
       pg_catalog.current_setting('synapse_media_usage.session', true) AS marker,
       coalesce((
           SELECT pg_class.reltuples OPERATOR(pg_catalog.>=) 0 AND pg_class.relpages OPERATOR(pg_catalog.<) 128
                  OR NOT EXISTS (
                      SELECT
                        FROM pg_catalog.pg_index
                             JOIN pg_catalog.pg_attribute
                             ON pg_attribute.attrelid OPERATOR(pg_catalog.=) pg_index.indrelid
                                AND pg_attribute.attnum OPERATOR(pg_catalog.=) pg_index.indkey[0]
                             JOIN pg_catalog.pg_opclass
                             ON pg_opclass.oid OPERATOR(pg_catalog.=) pg_index.indclass[0]
                             JOIN pg_catalog.pg_am
                             ON pg_am.oid OPERATOR(pg_catalog.=) pg_opclass.opcmethod
                       WHERE pg_index.indrelid OPERATOR(pg_catalog.=) pg_class.oid
                         AND pg_index.indisvalid AND pg_index.indisready AND pg_index.indpred IS NULL
                         AND pg_attribute.attname OPERATOR(pg_catalog.=) 'user_id'
                         AND pg_index.indcollation[0] OPERATOR(pg_catalog.=) pg_attribute.attcollation
                         AND pg_am.amname OPERATOR(pg_catalog.=) 'btree' AND pg_opclass.opcdefault
                  )
             FROM pg_catalog.parse_ident('public.local_media_repository') AS name
                  JOIN pg_catalog.pg_namespace
                  ON pg_namespace.nspname OPERATOR(pg_catalog.=) name[1]
                  JOIN pg_catalog.pg_class
                  ON pg_class.relnamespace OPERATOR(pg_catalog.=) pg_namespace.oid
                     AND pg_class.relname OPERATOR(pg_catalog.=) name[2]
       ), false) AS one_pass;
