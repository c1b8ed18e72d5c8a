-- When a user's account expires, as Unix time in ms, or null for never. Asked only with
-- ACCOUNT_VALIDITY.
--
-- $1 user id   $2 number of the question, which the row repeats as in access_token.sql
--
-- Walks account_validity_pkey.
PREPARE account_validity (text, bigint) AS
SELECT account_validity.expiration_ts_ms, question.asked
  FROM (SELECT $2 AS asked) AS question
       LEFT JOIN public.account_validity ON account_validity.user_id = $1;
