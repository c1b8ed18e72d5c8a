-- What is to be known of a session: its backend's process id, by which a statement of it can be
-- cancelled; and whether there are so few media that one pass over them takes less time than
-- planning anything better, which is less than 128 pages: 1 MiB and some four thousand files.
--
-- Asked once a connection, and through a pooler once a request. The catalog's number is as of the
-- latest VACUUM or ANALYZE; reltuples is negative where there was none. Asking for the file's own
-- size would have to wait for whoever locks the table.
SELECT pg_backend_pid() AS pid,
       coalesce((SELECT reltuples >= 0 AND relpages < 128
                   FROM pg_class
                  WHERE oid = to_regclass('local_media_repository')), false) AS small
