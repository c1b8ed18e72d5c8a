-- Has the server look every second, while a statement runs, whether anybody still waits for it
-- (PostgreSQL 14 and later; before that it finds out at the end). So what a request has given up
-- ends, without a second connection to cancel it.
--
-- Asked once a connection, together with session.sql and as warily; not through a pooler, whose
-- session it is.
SELECT pg_catalog.set_config('client_connection_check_interval', '1s', false)
 WHERE pg_catalog.current_setting('client_connection_check_interval', true) IS NOT NULL;
