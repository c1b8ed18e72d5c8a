-- How far a standby is behind its primary, in ms: null on a primary, and where it is not known.
--
-- It is nothing while WAL is received and all of it is replayed: an idle primary would otherwise look
-- late. Whoever may not read statistics still sees that there is a receiver. Without one the latest
-- transaction says how old the rows are.
--
-- Aurora replicates by other means and refuses these functions. There is_aurora is true, and
-- aurora_lag.sql is to be asked.
SELECT version.is_aurora,
       CASE
           WHEN version.is_aurora OR NOT pg_is_in_recovery() THEN NULL
           WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
           WHEN pg_last_xact_replay_timestamp() IS NOT NULL
           THEN greatest(date_part('epoch', clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000, 0)
       END AS replication_lag_ms
  FROM (
           SELECT EXISTS (
                      SELECT
                        FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pg_proc.pronamespace
                       WHERE pg_namespace.nspname = 'pg_catalog' AND pg_proc.proname = 'aurora_replica_status'
                  ) AS is_aurora
       ) AS version;
