-- From user to user through the index, sums for the page only.
--
-- Answers: order_by=user_id and displayname without a time window, with or without a search.
-- Walks: users_have_local_media (user_id, created_ts), jumping from each user to the next; the same
-- for each user of the page. No sequential scan of local_media_repository unless the page is a
-- large part of all users.
-- Wrong for: an order by what a user owns, and a time window, for which each user's entries would
-- have to be looked through.
--
-- How it jumps: it reads the next n entries behind the last user, keeps the users among them, and
-- jumps again. n doubles where the entries are of many users and shrinks where they are of few, so
-- that neither a user with a million files nor a million users with one file each costs much.
-- Where the visibility map says little (a table that was never vacuumed), each entry costs a visit
-- to the table, and n grows only where all entries are of different users.
--
-- $1 bigint: limit   $2 bigint: offset   $3, $4: not used   $5 text: search term; null: no condition
WITH RECURSIVE weight AS MATERIALIZED (
    SELECT CASE WHEN relallvisible >= 0.8 * relpages THEN 12 ELSE 1 END AS weight
      FROM pg_class
     WHERE oid = 'local_media_repository'::regclass
), walk(user_ids, n) AS (
    SELECT ARRAY(SELECT user_id FROM local_media_repository
                  WHERE user_id IS NOT NULL ORDER BY user_id LIMIT 1), 16
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
               OFFSET 0 -- or it would be computed once for each use of it
           ) AS next
     WHERE walk.user_ids <> '{}'
), users AS MATERIALIZED (
    SELECT each.user_id
      FROM walk
           CROSS JOIN generate_series(1, (SELECT 1)) -- see one_pass.sql
           CROSS JOIN unnest(walk.user_ids) AS each(user_id)
    UNION ALL
    SELECT NULL WHERE EXISTS (SELECT FROM local_media_repository WHERE user_id IS NULL)
), found AS MATERIALIZED (
    SELECT users.user_id,
           {displayname} AS displayname -- null where the order does not need it
      FROM users
           LEFT JOIN profiles ON profiles.full_user_id = users.user_id
     WHERE $5::text IS NULL
        OR strpos(profiles.displayname, $5) > 0
        OR strpos(users.user_id, $5) > 0
           AND left(users.user_id, 1) = '@'
           AND strpos(split_part(substr(users.user_id, 2), ':', 1), $5) > 0
), cut AS MATERIALIZED (
    SELECT user_id FROM found ORDER BY {order} LIMIT $1 OFFSET $2
), choice AS MATERIALIZED (
    SELECT (SELECT count(*) FROM cut) > greatest(1000, (SELECT count(*) FROM users) / 8) AS one_pass
), sums AS (
    SELECT cut.user_id, own.media_count, own.media_length
      FROM cut
           CROSS JOIN LATERAL (
               SELECT count(*) AS media_count, coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE user_id = cut.user_id
           ) AS own
     WHERE cut.user_id IS NOT NULL AND NOT (SELECT one_pass FROM choice)
    UNION ALL
    SELECT cut.user_id, own.media_count, own.media_length
      FROM cut
           JOIN (
               SELECT user_id, count(*) AS media_count,
                      coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                GROUP BY user_id
           ) AS own ON own.user_id = cut.user_id
     WHERE (SELECT one_pass FROM choice)
    UNION ALL
    SELECT NULL, 0, (SELECT coalesce(sum(media_length), 0)::bigint
                       FROM local_media_repository WHERE user_id IS NULL)
      FROM cut
     WHERE cut.user_id IS NULL
), page AS (
    SELECT sums.user_id, profiles.displayname, sums.media_count, sums.media_length
      FROM sums
           LEFT JOIN profiles ON profiles.full_user_id = sums.user_id
)
SELECT everyone.total, shown.*
  FROM (SELECT count(*) AS total FROM found) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
