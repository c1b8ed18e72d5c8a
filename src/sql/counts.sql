-- Counts from the index alone, lengths for the page only.
--
-- Answers: order_by=media_count with dir=f without a search; with a time window, with or without
-- a search, also user_id and displayname.
-- Walks: users_have_local_media (user_id, created_ts), by parallel index-only scan, for the counts;
-- the same for each user of the page, for the lengths.
-- Wrong for: media_count with dir=b, whose first page is exactly the users with the most files.
-- Should the page's users own so much that visiting each file by the index is dearer than one
-- pass, one pass is what they get.
--
-- $1 bigint: limit           $2 bigint: offset
-- $3 bigint: created_ts must be greater than this; null: no condition
-- $4 bigint: created_ts must be this at most; null: no condition
-- $5 text:   search term; null: no condition
WITH per_user AS MATERIALIZED (
    SELECT user_id, count(*) AS files
      FROM local_media_repository
     WHERE ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
     GROUP BY user_id
), found AS MATERIALIZED (
    SELECT per_user.user_id,
           {displayname} AS displayname, -- null where the order does not need it
           CASE WHEN per_user.user_id IS NULL THEN 0 ELSE per_user.files END AS media_count,
           per_user.files
      FROM per_user
           CROSS JOIN generate_series(1, (SELECT 1)) -- see one_pass.sql
           LEFT JOIN profiles ON profiles.full_user_id = per_user.user_id
     WHERE $5::text IS NULL
        OR strpos(profiles.displayname, $5) > 0
        OR strpos(per_user.user_id, $5) > 0
           AND left(per_user.user_id, 1) = '@'
           AND strpos(split_part(substr(per_user.user_id, 2), ':', 1), $5) > 0
), cut AS MATERIALIZED (
    SELECT user_id, media_count, files FROM found ORDER BY {order} LIMIT $1 OFFSET $2
), choice AS MATERIALIZED (
    -- 5 files' worth for finding a user; 10000 files are too few to matter.
    SELECT coalesce((SELECT sum(files + 5) FROM cut)
                    > greatest(10000, (SELECT sum(files) FROM per_user) / 4), false) AS one_pass
), lengths AS (
    SELECT cut.user_id, cut.media_count, own.media_length
      FROM cut
           CROSS JOIN LATERAL (
               SELECT coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE user_id = cut.user_id
                  AND ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
           ) AS own
     WHERE cut.user_id IS NOT NULL AND NOT (SELECT one_pass FROM choice)
    UNION ALL
    SELECT cut.user_id, cut.media_count, own.media_length
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
    SELECT NULL, 0, (
               SELECT coalesce(sum(media_length), 0)::bigint
                 FROM local_media_repository
                WHERE user_id IS NULL
                  AND ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
           )
      FROM cut
     WHERE cut.user_id IS NULL
), page AS (
    SELECT lengths.user_id, profiles.displayname, lengths.media_count, lengths.media_length
      FROM lengths
           LEFT JOIN profiles ON profiles.full_user_id = lengths.user_id
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
