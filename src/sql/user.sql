-- What decides whether a user may ask, by name: for tokens that the homeserver knows and the replica
-- does not. One row, with the columns of access_token.sql.
--
-- $1 user id   $2 number of the question
--
-- Walks users_name_key (unique).
PREPARE user_by_name (text, bigint) AS
SELECT users.name, NULL::bigint AS valid_until_ms, users.locked, users.is_guest <> 0 AS is_guest,
       users.admin <> 0 AS admin, question.asked
  FROM (SELECT $2 AS asked) AS question
       LEFT JOIN public.users ON users.name = $1;
