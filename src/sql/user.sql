-- What decides whether a user may ask, by name: for tokens that the homeserver knows and the replica
-- does not. Columns as those of access_token.sql.
--
-- $1 user id
--
-- Walks users_name_key (unique).
PREPARE user_by_name (text) AS
SELECT name, NULL::bigint AS valid_until_ms, locked, is_guest <> 0 AS is_guest, admin <> 0 AS admin
  FROM public.users
 WHERE name = $1;
