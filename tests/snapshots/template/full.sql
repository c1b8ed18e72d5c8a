BEGIN;
-- Whoever may create objects in a schema of your search path could else put their own under one of these names.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Read-only, the homeserver's own role would stop the homeserver, and another program's that program. So a role that is there
-- already owns nothing, is in no other role, and has no right but to read tables of this database.
DO $$ DECLARE
  excess text;
BEGIN
  WITH role AS (
    SELECT * FROM pg_roles WHERE rolname = 'reader'
  ), acl (classid, objid, objsubid, entries, reads) AS (
    SELECT 'pg_class'::regclass::oid, oid, 0, relacl, 'SELECT' FROM pg_class WHERE relkind <> 'S'
    UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum, attacl, 'SELECT' FROM pg_attribute
    UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, nspacl, 'USAGE' FROM pg_namespace WHERE oid = '"Matrix_1"'::regnamespace
    UNION ALL SELECT 'pg_database'::regclass, oid, 0, datacl, 'CONNECT' FROM pg_database WHERE datname = current_database()
  ), reading AS (
    SELECT classid, objid, objsubid FROM role, acl, aclexplode(entries)
    WHERE grantee = role.oid
    GROUP BY classid, objid, objsubid
    HAVING bool_and(privilege_type = reads AND NOT is_grantable)
  ), too_much (what) AS (
    SELECT attribute
    FROM role, LATERAL (VALUES ('SUPERUSER', rolsuper), ('CREATEROLE', rolcreaterole), ('CREATEDB', rolcreatedb),
      ('REPLICATION', rolreplication), ('BYPASSRLS', rolbypassrls)) AS attributes (attribute, is_set)
    WHERE is_set
    UNION ALL
    SELECT 'membership in ' || roleid::regrole
    FROM role JOIN pg_auth_members ON member = role.oid
    WHERE roleid IS DISTINCT FROM to_regrole('rds_iam') OR admin_option
    UNION ALL
    SELECT CASE deptype WHEN 'o' THEN 'ownership of ' ELSE 'rights on ' END
      || CASE WHEN dbid IN (0, here.oid) THEN pg_describe_object(classid, objid, objsubid)
          ELSE 'something in database ' || (SELECT datname FROM pg_database WHERE oid = dbid) END
    FROM role JOIN pg_shdepend ON refclassid = 'pg_authid'::regclass AND refobjid = role.oid
      JOIN pg_database AS here ON here.datname = current_database()
    WHERE NOT (deptype = 'a' AND dbid IN (0, here.oid) AND (classid, objid, objsubid) IN (SELECT * FROM reading))
  )
  SELECT string_agg(what, ', ') INTO excess FROM (SELECT what FROM too_much LIMIT 5) AS first;
  IF excess IS NOT NULL THEN
    RAISE EXCEPTION 'reader is not a role for the function: it has %. Take a new one. Nothing has been changed.', excess;
  ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'reader') THEN
    CREATE ROLE "reader";
  END IF;
END $$;
ALTER ROLE "reader" LOGIN;
ALTER ROLE "reader" SET default_transaction_read_only = on;
ALTER ROLE "reader" SET statement_timeout = 5000;
-- What was granted on these tables before, for other parameters or by somebody else.
REVOKE ALL ON "Matrix_1".users, "Matrix_1".access_tokens, "Matrix_1".devices, "Matrix_1".profiles, "Matrix_1".account_validity, "Matrix_1".local_media_repository FROM "reader";
GRANT USAGE ON SCHEMA "Matrix_1" TO "reader";
GRANT SELECT (name, admin, is_guest, locked) ON "Matrix_1".users TO "reader";

GRANT SELECT (full_user_id, displayname) ON "Matrix_1".profiles TO "reader";
GRANT SELECT (user_id, media_length, created_ts) ON "Matrix_1".local_media_repository TO "reader";
GRANT SELECT (user_id, device_id, hidden) ON "Matrix_1".devices TO "reader";

DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_auth_members WHERE roleid = to_regrole('rds_iam') AND member = '"reader"'::regrole) THEN
    REVOKE rds_iam FROM "reader";
  END IF;
END $$;
-- In psql, \password reader sets the password of the secret or of the parameter.

COMMIT;
