-- Whether there are so few media that one pass over them takes less time than planning anything
-- better: less than 1 MiB, which is some four thousand files.
--
-- Asked once a connection. The size is the file's own, not a statistic that may be missing.
SELECT pg_relation_size('local_media_repository') < 1048576 AS small
