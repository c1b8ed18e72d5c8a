-- Cancels the statement of another session of the same role.
--
-- $1 process id of that session's backend
PREPARE cancel (integer) AS
SELECT pg_catalog.pg_cancel_backend($1);
