-- More users than a page holds, each as small in the answer as a user can be, and each with the
-- largest rows that still make no smaller number of users: what a page costs in memory at most.
INSERT INTO local_media_repository (user_id, media_length) SELECT 'u' || n, 1 FROM generate_series(1, 200000) AS n;
