-- The tables that the endpoint reads, as Synapse 1.100 leaves them (schema_version 84) while its background updates
-- are still running. What differs from synapse-94.sql:
--   users has no suspended; profiles has no fields; local_media_repository has no authenticated and no sha256;
--   access_tokens has no index on refresh_token_id;
--   profiles.full_user_id has no index yet, and the check that it is not null does not cover old rows.
-- Left out: the foreign key of access_tokens.refresh_token_id, because the table refresh_tokens is never read.

CREATE TABLE users (
    name                       text,
    password_hash              text,
    creation_ts                bigint,
    admin                      smallint NOT NULL DEFAULT 0,
    upgrade_ts                 bigint,
    is_guest                   smallint NOT NULL DEFAULT 0,
    appservice_id              text,
    consent_version            text,
    consent_server_notice_sent text,
    user_type                  text,
    deactivated                smallint NOT NULL DEFAULT 0,
    shadow_banned              boolean,
    consent_ts                 bigint,
    approved                   boolean,
    locked                     boolean NOT NULL DEFAULT false,
    CONSTRAINT users_name_key UNIQUE (name)
);
CREATE INDEX users_creation_ts ON users (creation_ts);

-- A token can belong to a user that does not exist: there is no foreign key.
CREATE TABLE access_tokens (
    id               bigint PRIMARY KEY,
    user_id          text NOT NULL,
    device_id        text,
    token            text NOT NULL,
    valid_until_ms   bigint,
    puppets_user_id  text,
    last_validated   bigint,
    refresh_token_id bigint,
    used             boolean,
    CONSTRAINT access_tokens_token_key UNIQUE (token)
);
CREATE INDEX access_tokens_device_id ON access_tokens (user_id, device_id);

-- A hidden device is no device but a key for cross-signing, kept in the same table.
CREATE TABLE devices (
    user_id      text NOT NULL,
    device_id    text NOT NULL,
    display_name text,
    last_seen    bigint,
    ip           text,
    user_agent   text,
    hidden       boolean DEFAULT false,
    CONSTRAINT device_uniqueness UNIQUE (user_id, device_id)
);

-- Accounts without a row never expire.
CREATE TABLE account_validity (
    user_id          text PRIMARY KEY,
    expiration_ts_ms bigint NOT NULL,
    email_sent       boolean NOT NULL,
    renewal_token    text,
    token_used_ts_ms bigint
);

-- user_id holds the localpart; full_user_id is what a media row names.
CREATE TABLE profiles (
    user_id      text NOT NULL,
    displayname  text,
    avatar_url   text,
    full_user_id text,
    CONSTRAINT profiles_user_id_key UNIQUE (user_id)
);
ALTER TABLE profiles ADD CONSTRAINT full_user_id_not_null CHECK (full_user_id IS NOT NULL) NOT VALID;

-- media_length is null while an upload is pending, and for files whose length nobody recorded.
CREATE TABLE local_media_repository (
    media_id             text,
    media_type           text,
    media_length         integer,
    created_ts           bigint,
    upload_name          text,
    user_id              text,
    quarantined_by       text,
    url_cache            text,
    last_access_ts       bigint,
    safe_from_quarantine boolean NOT NULL DEFAULT false,
    CONSTRAINT local_media_repository_media_id_key UNIQUE (media_id)
);
CREATE INDEX users_have_local_media ON local_media_repository (user_id, created_ts);
CREATE INDEX local_media_repository_url_idx ON local_media_repository (created_ts) WHERE url_cache IS NOT NULL;
