-- How far a reader of Aurora is behind its writer, in ms: null on the writer (Amazon Aurora User Guide,
-- "aurora_replica_status").
SELECT (
           SELECT status.replica_lag_in_msec
             FROM aurora_replica_status() AS status
            WHERE status.server_id = aurora_db_instance_identifier()
       )::float8 AS replication_lag_ms;
