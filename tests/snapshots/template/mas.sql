BEGIN;
-- Whoever may create objects in a schema of your search path could else put their own under one of these names.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Read-only, the homeserver's own role would stop the homeserver, and another program's that program. So a role that is there
-- already owns nothing, is in no other role, and has no right but to read tables of this database.
DO $$ DECLARE
  excess text;
BEGIN
  WITH role AS (
    SELECT * FROM pg_roles WHERE rolname = 'media_usage'
  ), acl (classid, objid, objsubid, entries, reads) AS (
    SELECT 'pg_class'::regclass::oid, oid, 0, relacl, 'SELECT' FROM pg_class WHERE relkind <> 'S'
    UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum, attacl, 'SELECT' FROM pg_attribute
    UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, nspacl, 'USAGE' FROM pg_namespace WHERE oid = '"public"'::regnamespace
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
    RAISE EXCEPTION 'media_usage is not a role for the function: it has %. Take a new one. Nothing has been changed.', excess;
  ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'media_usage') THEN
    CREATE ROLE "media_usage";
  END IF;
END $$;
ALTER ROLE "media_usage" LOGIN;
ALTER ROLE "media_usage" SET default_transaction_read_only = on;
ALTER ROLE "media_usage" SET statement_timeout = 20000;
-- What was granted on these tables before, for other parameters or by somebody else.
REVOKE ALL ON "public".users, "public".access_tokens, "public".devices, "public".profiles, "public".account_validity, "public".local_media_repository FROM "media_usage";
GRANT USAGE ON SCHEMA "public" TO "media_usage";
GRANT SELECT (name, admin, is_guest, locked) ON "public".users TO "media_usage";

GRANT SELECT (full_user_id, displayname) ON "public".profiles TO "media_usage";
GRANT SELECT (user_id, media_length, created_ts) ON "public".local_media_repository TO "media_usage";
GRANT SELECT (user_id, device_id, hidden) ON "public".devices TO "media_usage";

-- RDS refuses passwords to members of rds_iam and to the members of those. From PostgreSQL 16 on, whoever makes a role is its member.
DO $$ DECLARE
  members text;
BEGIN
  SELECT string_agg(rolname, ', ') INTO members FROM pg_roles
  WHERE rolcanlogin AND rolname <> 'media_usage'
    AND pg_has_role(oid, 'media_usage', 'MEMBER') AND NOT pg_has_role(oid, 'rds_iam', 'MEMBER');
  IF members IS NULL THEN
    GRANT rds_iam TO "media_usage";
  ELSE
    RAISE WARNING 'rds_iam is not granted to media_usage, because RDS could then refuse the passwords of its members: %. See "PostgreSQL 16 and later" in docs/deploy.md.', members;
  END IF;
END $$;

COMMIT;
