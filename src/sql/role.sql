-- The role that the function logs in as, with the least that suffices. Run it in Synapse's database
-- on the primary, as a role that may create roles and owns Synapse's tables or is a member of their
-- owner. The replica gets it from there. It is safe to repeat.
--
--   psql -d synapse -f src/sql/role.sql
--
-- If Synapse's tables are in another schema (DATABASE_SCHEMA), put its quoted name in place of the
-- word public, wherever it stands:
--
--   sed 's/public/"matrix"/g' src/sql/role.sql | psql -d synapse
--
-- The role has no way to log in yet. Either give it a password with \password media_usage, and keep
-- that in Secrets Manager. Or, for DATABASE_IAM_AUTH on RDS and Aurora, type
-- GRANT rds_iam TO media_usage, and from PostgreSQL 16 on first read "PostgreSQL 16 and later" in
-- docs/deploy.md.
BEGIN;

-- Whoever may create objects in a schema of your search path could else put an operator or a table of
-- their own under one of these names, and you would run it.
SET LOCAL search_path = pg_catalog, pg_temp;

-- A role of this name may be the homeserver's own or another program's, which would stop if it became
-- read-only. So a role that is there already must have no more than this file gives. It owns nothing,
-- is in no other role, and has no right but to read tables of this database.
DO $$ DECLARE
    excess text;
BEGIN
    WITH role AS (
        SELECT * FROM pg_roles WHERE rolname = 'media_usage'
    ), acl (classid, objid, objsubid, entries, reads) AS (
        SELECT 'pg_class'::regclass::oid, oid, 0, relacl, 'SELECT' FROM pg_class WHERE relkind <> 'S'
        UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum, attacl, 'SELECT' FROM pg_attribute
        UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, nspacl, 'USAGE' FROM pg_namespace WHERE oid = 'public'::regnamespace
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
        -- Whatever a role owns or has a right to, of any kind and in any database, is recorded there.
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
        CREATE ROLE media_usage;
    END IF;
END $$;
ALTER ROLE media_usage LOGIN;

-- The function asks for both itself. As the role's defaults they also hold where a pooler stands
-- between, and for whoever else gets hold of the role.
ALTER ROLE media_usage SET default_transaction_read_only = on;
ALTER ROLE media_usage SET statement_timeout = '20s';

-- What an earlier run, or somebody else, granted on these tables.
REVOKE ALL ON public.users, public.access_tokens, public.devices, public.profiles, public.account_validity, public.local_media_repository FROM media_usage;

-- Everybody has it unless it was taken away.
GRANT USAGE ON SCHEMA public TO media_usage;

GRANT SELECT (name, admin, is_guest, locked) ON public.users TO media_usage;
-- Not with MAS_ENDPOINT, because MAS knows the tokens then. Put -- before this line:
GRANT SELECT (token, user_id, puppets_user_id, valid_until_ms) ON public.access_tokens TO media_usage;
GRANT SELECT (full_user_id, displayname) ON public.profiles TO media_usage;
GRANT SELECT (user_id, media_length, created_ts) ON public.local_media_repository TO media_usage;

-- Only with MAS_ENDPOINT. Remove the -- before this line:
-- GRANT SELECT (user_id, device_id, hidden) ON public.devices TO media_usage;
-- Only with ACCOUNT_VALIDITY and without MAS_ENDPOINT. Remove the -- before this line:
-- GRANT SELECT (user_id, expiration_ts_ms) ON public.account_validity TO media_usage;

COMMIT;
