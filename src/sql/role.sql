-- The role that the function logs in as, with the least that suffices. Run it in Synapse's database
-- on the primary, as a role that may create roles; the replica gets it from there. Running it again
-- is harmless.
--
--   psql -d synapse -f src/sql/role.sql
--
-- It has no way to log in yet. Either give it a password with \password media_usage, and keep that in
-- Secrets Manager; or, for DATABASE_IAM_AUTH on RDS and Aurora: GRANT rds_iam TO media_usage;
BEGIN;

-- A name that is there already may be the homeserver's own role, and read-only that one would stop
-- the homeserver.
DO $$ BEGIN
    IF EXISTS (
        SELECT FROM pg_roles, pg_class
        WHERE rolname = 'media_usage' AND pg_class.oid IN ('users'::regclass, 'access_tokens'::regclass,
                'devices'::regclass, 'profiles'::regclass, 'local_media_repository'::regclass)
            AND (rolsuper OR rolcreaterole OR pg_has_role(pg_roles.oid, relowner, 'MEMBER')
                OR has_any_column_privilege(pg_roles.oid, pg_class.oid, 'INSERT, UPDATE')
                OR has_table_privilege(pg_roles.oid, pg_class.oid, 'DELETE, TRUNCATE'))
    ) THEN
        RAISE EXCEPTION 'media_usage is not a role for the function: it may write to the homeserver, or create roles. Take a new one. Nothing has been changed.';
    ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'media_usage') THEN
        CREATE ROLE media_usage;
    END IF;
END $$;
ALTER ROLE media_usage LOGIN;

-- The function asks for both itself. As the role's defaults they also hold where a pooler stands
-- between, and for whoever else gets hold of the role.
ALTER ROLE media_usage SET default_transaction_read_only = on;
ALTER ROLE media_usage SET statement_timeout = '20s';

-- Everybody has it unless it was taken away.
GRANT USAGE ON SCHEMA public TO media_usage;

GRANT SELECT (name, admin, is_guest, locked) ON users TO media_usage;
GRANT SELECT (token, user_id, puppets_user_id, valid_until_ms) ON access_tokens TO media_usage;
GRANT SELECT (full_user_id, displayname) ON profiles TO media_usage;
GRANT SELECT (user_id, media_length, created_ts) ON local_media_repository TO media_usage;

-- Only with MAS_ENDPOINT:
-- GRANT SELECT (user_id, device_id, hidden) ON devices TO media_usage;
-- Only with ACCOUNT_VALIDITY:
-- GRANT SELECT (user_id, expiration_ts_ms) ON account_validity TO media_usage;

COMMIT;
