-- Search first, sum up what was found.
--
-- Answers: order_by=media_length and media_count with a search and without a time window.
-- Walks: profiles, to guess how many users will match. If few: users_have_local_media from user to
-- user as in walk.sql, and the same index for each match. If many: one pass as in one_pass.sql.
-- Wrong for: a page that does not need the sums of all matches to be cut, see walk.sql.
--
-- The guess decides the way, never the answer: where users without profiles turn out to match in
-- numbers, one pass is taken as well.
--
-- $1 bigint: limit   $2 bigint: offset   $3, $4: not used   $5 text: search term, not null
WITH RECURSIVE guess AS MATERIALIZED (
    SELECT coalesce(8 * count(*) FILTER (
               WHERE strpos(displayname, $5::text) > 0
                  OR strpos(full_user_id, $5) > 0
                     AND strpos(split_part(substr(full_user_id, 2), ':', 1), $5) > 0
           ) > count(*), false) AS many
      FROM profiles
), weight AS MATERIALIZED (
    SELECT CASE WHEN relallvisible >= 0.8 * relpages THEN 12 ELSE 1 END AS weight
      FROM pg_class
     WHERE oid = 'local_media_repository'::regclass
), walk(user_ids, n) AS (
    SELECT ARRAY(SELECT user_id FROM local_media_repository
                  WHERE user_id IS NOT NULL ORDER BY user_id LIMIT 1), 16
     WHERE NOT (SELECT many FROM guess)
    UNION ALL
    SELECT next.user_ids,
           CASE WHEN cardinality(next.user_ids) * (SELECT weight FROM weight) >= walk.n
                THEN least(walk.n * 2, 256)
                ELSE greatest(walk.n / 4, 1) END
      FROM walk
           CROSS JOIN LATERAL (
               SELECT ARRAY(
                          SELECT DISTINCT ahead.user_id
                            FROM (SELECT user_id FROM local_media_repository
                                   WHERE user_id > walk.user_ids[cardinality(walk.user_ids)]
                                   ORDER BY user_id LIMIT walk.n) AS ahead
                           ORDER BY 1
                      ) AS user_ids
               OFFSET 0
           ) AS next
     WHERE walk.user_ids <> '{}'
), users AS MATERIALIZED (
    SELECT each.user_id
      FROM walk
           CROSS JOIN generate_series(1, (SELECT 1)) -- see one_pass.sql
           CROSS JOIN unnest(walk.user_ids) AS each(user_id)
), few AS MATERIALIZED (
    SELECT users.user_id
      FROM users
           LEFT JOIN profiles ON profiles.full_user_id = users.user_id
     WHERE NOT (SELECT many FROM guess)
       AND (strpos(profiles.displayname, $5) > 0
            OR strpos(users.user_id, $5) > 0
               AND left(users.user_id, 1) = '@'
               AND strpos(split_part(substr(users.user_id, 2), ':', 1), $5) > 0)
), choice AS MATERIALIZED (
    SELECT (SELECT many FROM guess)
           OR (SELECT count(*) FROM few) > greatest(1000, (SELECT count(*) FROM users) / 8) AS one_pass
), found AS MATERIALIZED (
    SELECT few.user_id, own.media_count, own.media_length
      FROM few
           CROSS JOIN LATERAL (
               SELECT count(*) AS media_count, coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE user_id = few.user_id
           ) AS own
     WHERE NOT (SELECT one_pass FROM choice)
    UNION ALL
    SELECT own.user_id, own.media_count, own.media_length
      FROM (
               SELECT user_id, count(*) AS media_count,
                      coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                GROUP BY user_id
           ) AS own
           CROSS JOIN generate_series(1, (SELECT 1)) -- see one_pass.sql
           LEFT JOIN profiles ON profiles.full_user_id = own.user_id
     WHERE (SELECT one_pass FROM choice)
           -- A displayname belongs to a user, so that the null user never matches.
       AND (strpos(profiles.displayname, $5) > 0
            OR strpos(own.user_id, $5) > 0
               AND left(own.user_id, 1) = '@'
               AND strpos(split_part(substr(own.user_id, 2), ':', 1), $5) > 0)
), page AS (
    SELECT cut.user_id, profiles.displayname, cut.media_count, cut.media_length
      FROM (SELECT * FROM found ORDER BY {order} LIMIT $1 OFFSET $2) AS cut
           LEFT JOIN profiles ON profiles.full_user_id = cut.user_id
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
