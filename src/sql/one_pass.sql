-- One pass over all media of the period.
--
-- Answers: order_by=media_length, and media_count with dir=b; any order for more than 1000 users a
-- page. Without a search, or with a time window.
-- Such an order, or so many users, means to look at every file anyway, or nearly so: each user is
-- summed up exactly once, total and page are both taken from the result, and the names of the
-- page's users are looked up last.
-- Walks: local_media_repository by parallel sequential scan; users_have_local_media for a narrow
-- window; an index on (user_id) that includes media_length, where there is one, by index-only scan.
-- Wrong for: a page whose users can be known without summing up all of them, see walk.sql.
--
-- $1 bigint: limit           $2 bigint: offset
-- $3 bigint: created_ts must be greater than this; null: no condition
-- $4 bigint: created_ts must be this at most; null: no condition
-- $5 text:   search term, if it is a statement with a search
-- A null parameter's condition is gone from the plan (plan_cache_mode = force_custom_plan).
WITH found AS MATERIALIZED (
    SELECT users.user_id,
           {displayname} AS displayname,
           -- Synapse counts user ids, and the null user has none.
           CASE WHEN users.user_id IS NULL THEN 0 ELSE users.files END AS media_count,
           users.media_length
      FROM (
               SELECT user_id, count(*) AS files,
                      coalesce(sum(media_length), 0)::bigint AS media_length,
                      {localpart_matches} AS localpart_matches
                 FROM local_media_repository
                WHERE ($3::bigint IS NULL OR created_ts > $3) AND ($4::bigint IS NULL OR created_ts <= $4)
                GROUP BY user_id
           ) AS users
           {join}
     WHERE {filter}
), page AS (
    SELECT cut.user_id, profiles.displayname, cut.media_count, cut.media_length
      FROM (SELECT * FROM found ORDER BY {order} LIMIT $1 OFFSET $2) AS cut
           LEFT JOIN profiles ON profiles.full_user_id = cut.user_id
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
