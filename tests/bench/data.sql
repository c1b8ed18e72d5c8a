-- Rows for the bench, made by hash functions of the row number alone: the same on every machine and in every run.
-- Into an empty database of tests/schema. The bench sets, before it runs this file:
--
--   bench.kind   which of the data sets, see below
--   bench.media  number of files
--   bench.users  number of names that they are spread over
--
-- M        Zipf: few users own most; rows in time order, so that a user's rows lie scattered
-- X        spread evenly, so that a user has few files; of 1 M names some 865 k are drawn
-- ONE90    as M, but one user owns 90 % of the media
-- SINGLES  every file is of another user
-- EQUAL    everybody has as many files, as long ones and the same name
-- RAW      as M, never vacuumed and never analysed
-- STALE    as M, analysed, then 10 % of the rows updated, never vacuumed
SET synchronous_commit = off;
ALTER TABLE profiles SET (autovacuum_enabled = off);
ALTER TABLE local_media_repository SET (autovacuum_enabled = off);

CREATE TEMPORARY TABLE bench AS
SELECT current_setting('bench.kind') AS kind,
       current_setting('bench.media')::bigint AS media,
       current_setting('bench.users')::bigint AS users;

-- A number from 0 to 1, exclusive, out of a row number and a salt.
CREATE FUNCTION pg_temp.fraction(n bigint, salt bigint) RETURNS float8 LANGUAGE sql IMMUTABLE AS
$$ SELECT (hashint8extended(n, salt) & 1099511627775)::float8 / 1099511627776 $$;

-- The hash scatters those with many files and those with few over the whole order.
CREATE TEMPORARY TABLE names AS
SELECT rank, '@user_' || substr(md5('u' || rank), 1, 12) || ':example.com' AS user_id, md5('d' || rank) AS hash
  FROM bench, generate_series(1, users) AS rank;
CREATE UNIQUE INDEX ON names (rank);
ANALYZE names;

INSERT INTO profiles (user_id, displayname, full_user_id)
SELECT substr(split_part(user_id, ':', 1), 2),
       CASE WHEN kind = 'EQUAL' THEN 'Same Name'
            WHEN pg_temp.fraction(rank, 11) < 0.05 THEN NULL
            ELSE 'Member ' || substr(hash, 1, 6) || ' ' || substr(hash, 7, 6) END,
       user_id
  FROM names, bench
 WHERE pg_temp.fraction(rank, 12) < 0.95
 ORDER BY hash;

-- Rows as wide as Synapse's.
INSERT INTO local_media_repository
       (media_id, media_type, media_length, created_ts, upload_name, user_id, last_access_ts)
SELECT substr(md5('m' || drawn.n), 1, 24),
       CASE WHEN drawn.n % 5 = 0 THEN 'video/mp4' ELSE 'image/jpeg' END,
       CASE WHEN drawn.kind = 'EQUAL' THEN 1000 ELSE exp(5 + 12 * pg_temp.fraction(drawn.n, 3))::int END,
       1600000000000 + drawn.n * (150000000000 / drawn.media),
       'IMG_' || md5('n' || drawn.n) || md5('o' || drawn.n) || '.jpg',
       names.user_id,
       1750000000000 + drawn.n
  FROM (SELECT bench.*, n,
               CASE WHEN kind = 'X' THEN 1 + floor(pg_temp.fraction(n, 1) * users)
                    WHEN kind IN ('SINGLES', 'EQUAL') THEN 1 + (n * 7919) % users
                    WHEN kind = 'ONE90' AND n % 10 > 0 THEN 1
                    ELSE least(users, floor(exp(pg_temp.fraction(n, 1) * ln(users + 1)))) END AS rank
          FROM bench, generate_series(1::bigint, media) AS n
        OFFSET 0) AS drawn
  JOIN names ON names.rank = drawn.rank
 ORDER BY drawn.n;
