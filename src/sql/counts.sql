-- Counts from the index alone, lengths for the page only.
--
-- Answers, for up to 1000 users a page: order_by=media_count with dir=f without a search; with a
-- time window, with or without a search, also user_id and displayname.
-- Walks: users_have_local_media (user_id, created_ts), by parallel index-only scan, for the counts;
-- the same for each user of the page, for the lengths.
-- Wrong for: media_count with dir=b, whose first page is exactly the users with the most files.
-- Should the page's users own more than a quarter of the table, one pass is what they get.
--
-- Parameters as in one_pass.sql.
WITH found AS MATERIALIZED (
    SELECT users.user_id,
           {displayname} AS displayname,
           CASE WHEN users.user_id IS NULL THEN 0 ELSE users.files END AS media_count,
           users.files
      FROM (
               SELECT user_id, count(*) AS files, {localpart_matches} AS localpart_matches
                 FROM local_media_repository
                WHERE ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
                GROUP BY user_id
           ) AS users
           {join}
     WHERE {filter}
), cut AS MATERIALIZED (
    SELECT user_id, media_count, files FROM found ORDER BY {order} LIMIT $1 OFFSET $2
), choice AS MATERIALIZED (
    -- Finding a user costs as much as 5 files. 10000 files are too few to matter.
    SELECT coalesce((SELECT sum(files + 5) FROM cut) > greatest(10000, reltuples / 4), false) AS one_pass
      FROM pg_class
     WHERE oid = 'local_media_repository'::regclass
), page AS (
    SELECT cut.user_id,
           (SELECT displayname FROM profiles WHERE full_user_id = cut.user_id) AS displayname,
           cut.media_count, own.media_length
      FROM cut
           CROSS JOIN LATERAL (
               SELECT coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE user_id = cut.user_id
                  AND ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
           ) AS own
     WHERE cut.user_id IS NOT NULL AND NOT (SELECT one_pass FROM choice)
    UNION ALL
    SELECT cut.user_id,
           (SELECT displayname FROM profiles WHERE full_user_id = cut.user_id),
           cut.media_count, own.media_length
      FROM cut
           JOIN (
               SELECT user_id, coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
                GROUP BY user_id
           ) AS own ON own.user_id = cut.user_id
     WHERE (SELECT one_pass FROM choice)
    UNION ALL
    -- Null equals nothing, not even null.
    SELECT NULL, NULL, 0, (
               SELECT coalesce(sum(media_length), 0)::bigint
                 FROM local_media_repository
                WHERE user_id IS NULL
                  AND ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
           )
      FROM cut
     WHERE cut.user_id IS NULL
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
