-- What the role lacks, or the database, of what the statements read: one line each, none if all is
-- well. Asked when a statement was refused, because the server's message names no column, and calls
-- a table that the role may not see one that does not exist. role.sql grants all of it.
--
-- $1 text: the server's message. access_tokens is not read with MAS_ENDPOINT, devices only then, and
-- account_validity only with ACCOUNT_VALIDITY: they count only if it names them.
WITH needed("table", "column") AS (
    VALUES ('users', 'name'), ('users', 'admin'), ('users', 'is_guest'), ('users', 'locked'),
           ('access_tokens', 'token'), ('access_tokens', 'user_id'),
           ('access_tokens', 'puppets_user_id'), ('access_tokens', 'valid_until_ms'),
           ('profiles', 'full_user_id'), ('profiles', 'displayname'),
           ('local_media_repository', 'user_id'), ('local_media_repository', 'media_length'),
           ('local_media_repository', 'created_ts'),
           ('devices', 'user_id'), ('devices', 'device_id'), ('devices', 'hidden'),
           ('account_validity', 'user_id'), ('account_validity', 'expiration_ts_ms')
), found AS (
    SELECT needed."table", needed."column", to_regclass('public.' || needed."table") AS oid,
           pg_attribute.attnum,
           -- A schema without USAGE is left out of the search path.
           (SELECT min(pg_namespace.nspname)
              FROM pg_class JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
             WHERE pg_class.relname = needed."table"
               AND NOT has_schema_privilege(pg_namespace.oid, 'USAGE')) AS closed_schema
      FROM needed
           LEFT JOIN pg_attribute
                  ON pg_attribute.attrelid = to_regclass('public.' || needed."table")
                 AND pg_attribute.attname = needed."column" AND NOT pg_attribute.attisdropped
     WHERE needed."table" NOT IN ('access_tokens', 'devices', 'account_validity') OR strpos($1, needed."table") > 0
), missing AS (
    SELECT CASE
               WHEN oid IS NULL AND closed_schema IS NOT NULL
                   THEN 'the role lacks USAGE ON SCHEMA ' || closed_schema
               WHEN oid IS NULL THEN 'there is no table ' || "table"
               WHEN attnum IS NULL THEN 'there is no column ' || "table" || '.' || "column"
               WHEN NOT has_column_privilege(oid, attnum, 'SELECT')
                   THEN 'the role lacks SELECT ON ' || "table"
           END AS what,
           CASE WHEN attnum IS NOT NULL THEN "column" END AS "column"
      FROM found
)
SELECT what || coalesce(' (' || string_agg("column", ', ' ORDER BY "column") || ')', '') AS missing
  FROM missing
 WHERE what IS NOT NULL
 GROUP BY what
 ORDER BY what
