-- Synapse's indexes that are missing or cannot be used: one row, null if none. Without them the answers
-- are right, and slow.
--
-- Asked once a connection, together with session.sql and as warily. Only what the role may read counts:
-- access_tokens is not read with MAS_ENDPOINT, and devices only then.
SELECT pg_catalog.string_agg(needed.table_name OPERATOR(pg_catalog.||) ' (' OPERATOR(pg_catalog.||) needed.column_name
                             OPERATOR(pg_catalog.||) ')', ', ') AS missing_indexes
  FROM (VALUES ('access_tokens', 'token'), ('devices', 'user_id'), ('local_media_repository', 'user_id'),
               ('profiles', 'full_user_id'), ('users', 'name')) AS needed(table_name, column_name)
       CROSS JOIN pg_catalog.parse_ident('public.local_media_repository') AS name
       JOIN pg_catalog.pg_namespace ON pg_namespace.nspname OPERATOR(pg_catalog.=) name[1]
       JOIN pg_catalog.pg_class
       ON pg_class.relnamespace OPERATOR(pg_catalog.=) pg_namespace.oid
          AND pg_class.relname OPERATOR(pg_catalog.=) needed.table_name
       JOIN pg_catalog.pg_attribute
       ON pg_attribute.attrelid OPERATOR(pg_catalog.=) pg_class.oid
          AND pg_attribute.attname OPERATOR(pg_catalog.=) needed.column_name
 WHERE pg_catalog.has_column_privilege(pg_class.oid, pg_attribute.attnum, 'SELECT')
   AND NOT EXISTS (
           SELECT
             FROM pg_catalog.pg_index
                  JOIN pg_catalog.pg_opclass
                  ON pg_opclass.oid OPERATOR(pg_catalog.=) pg_index.indclass[0]
                  JOIN pg_catalog.pg_am ON pg_am.oid OPERATOR(pg_catalog.=) pg_opclass.opcmethod
            WHERE pg_index.indrelid OPERATOR(pg_catalog.=) pg_class.oid
              AND pg_index.indkey[0] OPERATOR(pg_catalog.=) pg_attribute.attnum
              AND pg_index.indisvalid AND pg_index.indisready AND pg_index.indpred IS NULL
              AND pg_index.indcollation[0] OPERATOR(pg_catalog.=) pg_attribute.attcollation
              AND pg_am.amname OPERATOR(pg_catalog.=) 'btree' AND pg_opclass.opcdefault
       );
