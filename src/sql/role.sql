-- The role that the function logs in as, with the least that suffices. Run it in Synapse's database
-- on the primary, as a role that may create roles; the replica gets it from there. Running it again
-- is harmless.
--
--   psql -d synapse -f src/sql/role.sql
--
-- It has no way to log in yet. Either give it a password with \password media_usage, and keep that in
-- Secrets Manager; or, for DATABASE_IAM_AUTH on RDS and Aurora: GRANT rds_iam TO media_usage;
DO $$
BEGIN
    CREATE ROLE media_usage LOGIN;
EXCEPTION
    WHEN duplicate_object THEN NULL;
END
$$;

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
