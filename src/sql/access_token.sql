-- The user that an access token speaks for, and what decides whether it may.
--
-- $1 token   $2 number of the question
--
-- One row, which repeats $2: a connection on which answers have shifted has another. All else is null
-- if the token is unknown.
--
-- A token of an admin who acts as another user (`puppets_user_id`) counts as that user's, flags
-- and all; the owner's flags do not matter then. A token whose user does not exist finds nothing.
--
-- Walks access_tokens_token_key (unique), then users_name_key (unique).
PREPARE access_token (text, bigint) AS
SELECT users.name,
       access_tokens.valid_until_ms,   -- Unix time in ms; null never expires
       users.locked,
       users.is_guest <> 0 AS is_guest,
       users.admin <> 0 AS admin,      -- any value but 0, as in Synapse
       question.asked
  FROM (SELECT $2 AS asked) AS question
       LEFT JOIN (
           public.access_tokens
           JOIN public.users
           ON users.name = coalesce(access_tokens.puppets_user_id, access_tokens.user_id)
       ) ON access_tokens.token = $1;
