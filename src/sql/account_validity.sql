-- When a user's account expires, as Unix time in ms; no row: never. Asked only with
-- ACCOUNT_VALIDITY.
--
-- $1 user id
--
-- Walks account_validity_pkey.
PREPARE account_validity (text) AS
SELECT expiration_ts_ms
  FROM public.account_validity
 WHERE user_id = $1;
