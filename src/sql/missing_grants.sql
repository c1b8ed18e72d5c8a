-- What the role or the database lacks of what the statements read, and which tables would hide rows from the role: one row, null if all is well. Asked when a
-- statement was refused, because the server's message names no column. role.sql grants all of it.
--
-- $1 the server's message, or the probe's list of tables. access_tokens is not read with MAS_ENDPOINT, devices only then, and
--    account_validity only with ACCOUNT_VALIDITY: they count only if the message names them.
PREPARE missing_grants (text) AS
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
    SELECT needed."table", needed."column", name[1] AS schema_name,
           has_schema_privilege(pg_namespace.oid, 'USAGE') AS has_usage,
           pg_class.oid AS table_oid, pg_attribute.attnum,
           (SELECT min(other.nspname)
              FROM pg_namespace AS other
                   JOIN pg_class ON pg_class.relnamespace = other.oid
             WHERE pg_class.relname = needed."table" AND pg_class.relkind IN ('r', 'p', 'v', 'm', 'f')
               AND NOT starts_with(other.nspname, 'pg_')) AS elsewhere
      FROM needed
           CROSS JOIN parse_ident('public.' || needed."table") AS name
           -- By name: regclass would be an error without USAGE on the schema.
           LEFT JOIN pg_namespace ON pg_namespace.nspname = name[1]
           LEFT JOIN pg_class
                  ON pg_class.relnamespace = pg_namespace.oid AND pg_class.relname = name[2]
           LEFT JOIN pg_attribute
                  ON pg_attribute.attrelid = pg_class.oid
                 AND pg_attribute.attname = needed."column" AND NOT pg_attribute.attisdropped
     WHERE needed."table" NOT IN ('access_tokens', 'devices', 'account_validity') OR strpos($1, needed."table") > 0
), missing AS (
    SELECT CASE
               WHEN NOT has_usage THEN 'the role lacks USAGE ON SCHEMA ' || schema_name
               WHEN table_oid IS NULL
                   THEN 'there is no table ' || "table" || ' in schema ' || schema_name
                        || coalesce('; schema ' || elsewhere || ' has one: if it is Synapse''s, set DATABASE_SCHEMA', '')
               WHEN attnum IS NULL THEN 'there is no column ' || "table" || '.' || "column"
               WHEN NOT has_column_privilege(table_oid, attnum, 'SELECT')
                   THEN 'the role lacks SELECT ON ' || "table"
           END AS what,
           CASE WHEN has_usage AND attnum IS NOT NULL THEN "column" END AS "column"
      FROM found
    UNION ALL
    -- That of an owner or a role with BYPASSRLS is not active. The session's row_security, by which the statements fail, does not count.
    SELECT 'row-level security is on for table ' || "table"
           || ': run ALTER TABLE ' || quote_ident(schema_name) || '.' || "table" || ' DISABLE ROW LEVEL SECURITY on the primary', NULL
      FROM found
     WHERE row_security_active(table_oid)
), named AS (
    SELECT what || coalesce(' (' || string_agg("column", ', ' ORDER BY "column") || ')', '') AS missing
      FROM missing
     WHERE what IS NOT NULL
     GROUP BY what
)
SELECT string_agg(missing, '; ' ORDER BY missing) AS missing
  FROM named;
