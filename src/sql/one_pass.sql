-- One pass over all media of the period.
--
-- Answers: order_by=media_length, and media_count with dir=b; without a search, or with a time
-- window. Such an order looks at every file anyway, or nearly so: each user is summed up exactly
-- once, total and page are both taken from the result, and profiles are looked up for the page
-- only.
-- Walks: local_media_repository, by parallel sequential scan; an index on (user_id) that includes
-- media_length, where there is one, by index-only scan. Profiles by profiles_full_user_id_key.
-- Wrong for: an order that only few users' files decide, see walk.sql.
--
-- $1 bigint: limit           $2 bigint: offset
-- $3 bigint: created_ts must be greater than this; null: no condition
-- $4 bigint: created_ts must be this at most; null: no condition
-- $5 text:   search term; null: no condition
-- A null parameter's condition is gone from the plan (plan_cache_mode = force_custom_plan), and
-- with the search's the join of "found".
WITH per_user AS MATERIALIZED (
    SELECT user_id, count(*) AS files, coalesce(sum(media_length), 0)::bigint AS media_length
      FROM local_media_repository
     WHERE ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
     GROUP BY user_id
), found AS MATERIALIZED (
    SELECT per_user.user_id,
           -- Synapse counts user ids, and the null user has none.
           CASE WHEN per_user.user_id IS NULL THEN 0 ELSE per_user.files END AS media_count,
           per_user.media_length
      FROM per_user
           -- One row that the planner takes for a thousand. Where statistics are missing it
           -- believes that there are few users, and would look up their profiles one by one.
           CROSS JOIN generate_series(1, (SELECT 1))
           LEFT JOIN profiles ON profiles.full_user_id = per_user.user_id
     WHERE $5::text IS NULL
        OR strpos(profiles.displayname, $5) > 0
           -- Only what contains the term at all is worth taking apart.
        OR strpos(per_user.user_id, $5) > 0
           AND left(per_user.user_id, 1) = '@'
           AND strpos(split_part(substr(per_user.user_id, 2), ':', 1), $5) > 0
), page AS (
    SELECT cut.user_id, profiles.displayname, cut.media_count, cut.media_length
      FROM (SELECT * FROM found ORDER BY {order} LIMIT $1 OFFSET $2) AS cut
           LEFT JOIN profiles ON profiles.full_user_id = cut.user_id
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
