-- Whether there are a user and a device of it. Asked only with MAS_ENDPOINT.
--
-- $1 user id   $2 device id, or null   $3 number of the question, which the row repeats as in
--                                        access_token.sql
--
-- A hidden device is no device but a key for cross-signing.
--
-- Walks users_name_key (unique), then device_uniqueness.
PREPARE device (text, text, bigint) AS
SELECT EXISTS (SELECT FROM public.users WHERE name = $1) AS user_is_known,
       EXISTS (
           SELECT FROM public.devices WHERE user_id = $1 AND device_id = $2 AND NOT hidden
       ) AS device_is_known,
       $3 AS asked;
