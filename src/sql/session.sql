-- What is to be known of a session: its backend's process id, by which a statement of it can be
-- cancelled; and whether one_pass.sql is to answer everything.
--
-- It is where there are so few media that one pass takes less time than planning anything better:
-- less than 128 pages, 1 MiB and some four thousand files. And where there is no index to walk: one
-- that is valid, complete, a B-tree, in the order of its first column user_id and of its collation.
-- Without it each step of the other three would read the whole table.
--
-- Asked once a connection, and through a pooler once a request. The catalog's number is as of the
-- latest VACUUM or ANALYZE; reltuples is negative where there was none. Asking for the file's own
-- size would have to wait for whoever locks the table. By names and not by regclass, which is
-- refused without USAGE on the schema, before anybody could say what the role lacks.
SELECT pg_backend_pid() AS pid, current_setting('synapse_media_usage.session', true) AS marker,
       coalesce((
           SELECT reltuples >= 0 AND relpages < 128
                  OR NOT EXISTS (
                      SELECT FROM pg_index
                             JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
                             JOIN pg_opclass ON pg_opclass.oid = indclass[0]
                             JOIN pg_am ON pg_am.oid = opcmethod
                       WHERE indrelid = pg_class.oid AND attname = 'user_id'
                         AND amname = 'btree' AND opcdefault AND indcollation[0] = attcollation
                         AND indisvalid AND indisready AND indpred IS NULL
                  )
             FROM pg_class
            WHERE relname = 'local_media_repository'
              AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
       ), false) AS one_pass
