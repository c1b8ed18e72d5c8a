-- A page of users with their media, and the number of all users, from one snapshot.
--
-- $1 bigint: limit           $2 bigint: offset
-- $3 bigint: created_ts must be greater than this; null: no condition
-- $4 bigint: created_ts must be this at most; null: no condition
-- $5 text:   search term; null: no condition
--
-- Always returns a row: `total` is there even where the page is empty. `on_page` tells the user
-- whose id is null from no user at all.
WITH media AS MATERIALIZED (
    SELECT user_id,
           count(user_id) AS media_count,                   -- 0 for the null user, as in Synapse
           coalesce(sum(media_length), 0) AS media_length   -- never null
      FROM local_media_repository
     WHERE ($3::bigint IS NULL OR created_ts > $3)
       AND ($4::bigint IS NULL OR created_ts <= $4)
     GROUP BY user_id
), found AS MATERIALIZED (
    SELECT media.user_id, profiles.displayname, media.media_count, media.media_length
      FROM media
      LEFT JOIN profiles ON profiles.full_user_id = media.user_id
     WHERE $5::text IS NULL
           -- The localpart: what follows a leading @, up to the first colon.
        OR (left(media.user_id, 1) = '@' AND strpos(split_part(substr(media.user_id, 2), ':', 1), $5) > 0)
        OR strpos(profiles.displayname, $5) > 0 AND media.user_id IS NOT NULL
)
SELECT everyone.total, page.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
  LEFT JOIN (
      SELECT true AS on_page, found.* FROM found ORDER BY {order} LIMIT $1 OFFSET $2
  ) AS page ON true
 ORDER BY {order}
