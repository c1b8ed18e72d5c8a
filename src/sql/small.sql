-- Whether there are so few media that one pass over them takes less time than planning anything
-- better: less than 128 pages, which is 1 MiB and some four thousand files.
--
-- Asked once a connection. The catalog's number is as of the latest VACUUM or ANALYZE; reltuples is
-- negative where there was none. Asking for the file's own size would have to wait for whoever
-- locks the table.
SELECT reltuples >= 0 AND relpages < 128 AS small
  FROM pg_class
 WHERE oid = to_regclass('local_media_repository')
