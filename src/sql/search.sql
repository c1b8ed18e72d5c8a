-- Search first, sum up what was found.
--
-- Answers, without a time window: order_by=media_length and media_count with a search; any order
-- with a search for more than 1000 users a page.
-- Walks: profiles, to guess whether more than an eighth of the users will match. If not:
-- users_have_local_media from user to user as in walk.sql, and the same index for each match. If
-- so: one pass as in one_pass.sql.
-- Wrong for: a page that does not need the sums of all matches to be cut, see walk.sql.
--
-- The guess decides the way, never the answer: where users without profiles turn out to match in
-- numbers, one pass is taken as well. The null user has neither name nor localpart to match.
--
-- $1 bigint: limit   $2 bigint: offset   $3, $4: not used   $5 text: search term
WITH RECURSIVE guess AS MATERIALIZED (
    SELECT coalesce(8 * count(*) FILTER (
               WHERE strpos(displayname, $5::text) > 0
                  OR strpos(full_user_id, $5) > 0
                     AND strpos(split_part(substr(full_user_id, 2), ':', 1), $5) > 0
           ) > count(*), false) AS many
      FROM profiles
), step AS MATERIALIZED (
    SELECT CASE WHEN relallvisible >= 0.8 * relpages THEN 64 ELSE 1 END AS least,
           CASE WHEN relallvisible >= 0.8 * relpages THEN 4 ELSE 1 END AS files_a_user
      FROM pg_class
     WHERE oid = 'local_media_repository'::regclass
), walk(user_ids, n) AS (
    SELECT ARRAY(SELECT user_id FROM local_media_repository
                  WHERE user_id IS NOT NULL ORDER BY user_id LIMIT 1), 1
     WHERE NOT (SELECT many FROM guess)
    UNION ALL
    SELECT next.user_ids,
           CASE WHEN cardinality(next.user_ids) * step.files_a_user >= walk.n
                THEN least(walk.n * 2, 256)
                ELSE greatest(walk.n / 4, step.least) END
      FROM walk
           CROSS JOIN step
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
), few AS MATERIALIZED (
    SELECT users.user_id, {displayname} AS displayname
      FROM (
               SELECT user_id, {localpart_matches} AS localpart_matches
                 FROM (SELECT unnest(user_ids) AS user_id FROM walk) AS met
               OFFSET 0 -- as above
           ) AS users
           {join}
     WHERE NOT (SELECT many FROM guess) AND ({filter})
), choice AS MATERIALIZED (
    SELECT (SELECT many FROM guess)
           OR (SELECT count(*) FROM few)
              > greatest(1000, (SELECT sum(cardinality(user_ids)) FROM walk) / 8) AS one_pass
), found AS MATERIALIZED (
    SELECT few.user_id, few.displayname, own.media_count, own.media_length
      FROM few
           CROSS JOIN LATERAL (
               SELECT count(*) AS media_count, coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE user_id = few.user_id
           ) AS own
     WHERE NOT (SELECT one_pass FROM choice)
    UNION ALL
    SELECT users.user_id, {displayname}, users.media_count, users.media_length
      FROM (
               SELECT user_id, count(*) AS media_count,
                      coalesce(sum(media_length), 0)::bigint AS media_length,
                      {localpart_matches} AS localpart_matches
                 FROM local_media_repository
                GROUP BY user_id
           ) AS users
           {join}
     WHERE (SELECT one_pass FROM choice) AND ({filter})
), page AS (
    SELECT cut.user_id, profiles.displayname, cut.media_count, cut.media_length
      FROM (SELECT * FROM found ORDER BY {order} LIMIT $1 OFFSET $2) AS cut
           LEFT JOIN profiles ON profiles.full_user_id = cut.user_id
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
