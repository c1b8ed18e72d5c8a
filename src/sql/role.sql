-- The role that the function logs in as, with the least that suffices. Run it in Synapse's database
-- on the primary, as a role that may create roles; the replica gets it from there. Running it again
-- leaves the role with exactly the rights below.
--
--   psql -d synapse -f src/sql/role.sql
--
-- It has no way to log in yet. Either give it a password with \password media_usage, and keep that in
-- Secrets Manager; or, for DATABASE_IAM_AUTH on RDS and Aurora: GRANT rds_iam TO media_usage;
BEGIN;

-- A name that is there already may be the homeserver's own role, and read-only that one would stop
-- the homeserver; or another's, and stop that. So a role that is there already may own nothing, be in
-- no other role, and do no more than read.
DO $$ BEGIN
    IF EXISTS (
        SELECT FROM pg_roles AS role
        WHERE rolname = 'media_usage' AND (
            rolsuper OR rolcreaterole
            OR EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = role.oid AND deptype = 'o')
            OR EXISTS (SELECT FROM pg_auth_members WHERE member = role.oid AND roleid IS DISTINCT FROM to_regrole('rds_iam'))
            OR EXISTS (SELECT FROM pg_class, aclexplode(relacl) WHERE grantee = role.oid AND privilege_type <> 'SELECT')
            OR EXISTS (SELECT FROM pg_attribute, aclexplode(attacl) WHERE grantee = role.oid AND privilege_type <> 'SELECT')
        )
    ) THEN
        RAISE EXCEPTION 'media_usage is not a role for the function: it owns something, is in another role, or may do more than read. Take a new one. Nothing has been changed.';
    ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'media_usage') THEN
        CREATE ROLE media_usage;
    END IF;
END $$;
ALTER ROLE media_usage LOGIN;

-- The function asks for both itself. As the role's defaults they also hold where a pooler stands
-- between, and for whoever else gets hold of the role.
ALTER ROLE media_usage SET default_transaction_read_only = on;
ALTER ROLE media_usage SET statement_timeout = '20s';

-- Whatever it was granted before, by this file or by somebody else.
REVOKE ALL ON users, access_tokens, devices, profiles, account_validity, local_media_repository FROM media_usage;

-- Everybody has it unless it was taken away.
GRANT USAGE ON SCHEMA public TO media_usage;

GRANT SELECT (name, admin, is_guest, locked) ON users TO media_usage;
GRANT SELECT (token, user_id, puppets_user_id, valid_until_ms) ON access_tokens TO media_usage;
GRANT SELECT (full_user_id, displayname) ON profiles TO media_usage;
GRANT SELECT (user_id, media_length, created_ts) ON local_media_repository TO media_usage;

-- Only with MAS_ENDPOINT, and again whenever this file has been run:
-- GRANT SELECT (user_id, device_id, hidden) ON devices TO media_usage;
-- Only with ACCOUNT_VALIDITY, likewise:
-- GRANT SELECT (user_id, expiration_ts_ms) ON account_validity TO media_usage;

COMMIT;
