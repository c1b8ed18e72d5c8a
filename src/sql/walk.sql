-- From user to user through the index, sums for the page only.
--
-- Answers: order_by=user_id and displayname without a time window, for up to 1000 users a page; with
-- or without a search.
-- Walks: users_have_local_media (user_id, created_ts), jumping from each user to the next; the same
-- for each user of the page. No sequential scan of local_media_repository.
-- Wrong for: an order by what a user owns, and a time window, for which each user's entries would
-- have to be looked through.
--
-- How it jumps: it reads the next n entries behind the last user, keeps the users among them, and
-- jumps again. n doubles where the entries are of many users and shrinks where they are of few, so
-- that neither a user with a million files nor a million users with one file each costs much.
-- Where the visibility map says that the table's pages are visible to all, an entry costs a tenth
-- of a microsecond and a jump five: n is 64 at least. Elsewhere (a table that was never vacuumed)
-- each entry costs a visit to the table: n begins with 1, and grows only where all entries are of
-- different users.
--
-- The walk follows the index's own collation, whichever that is; the page is ordered by bytes.
--
-- $1 bigint: limit   $2 bigint: offset   $3, $4: not used
-- $5 text: search term, if it is a statement with a search
WITH RECURSIVE step AS MATERIALIZED (
    SELECT CASE WHEN relallvisible >= 0.8 * relpages THEN 64 ELSE 1 END AS least,
           CASE WHEN relallvisible >= 0.8 * relpages THEN 4 ELSE 1 END AS files_a_user
      FROM pg_class
     WHERE oid = 'local_media_repository'::regclass
), walk(user_ids, n) AS (
    SELECT ARRAY(SELECT user_id FROM local_media_repository
                  WHERE user_id IS NOT NULL ORDER BY user_id LIMIT 1), 1
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
               OFFSET 0 -- or it would be computed once for each use of it
           ) AS next
     WHERE walk.user_ids <> '{}'
), nobody AS MATERIALIZED (
    SELECT NULL::text AS user_id
     WHERE EXISTS (SELECT FROM local_media_repository WHERE user_id IS NULL)
), found AS ( -- stored only if the total has to be counted from it
    SELECT users.user_id,
           {displayname} AS displayname
      FROM (
               SELECT user_id, {localpart_matches} AS localpart_matches
                 FROM (SELECT unnest(user_ids) AS user_id FROM walk) AS met
               UNION ALL
               SELECT user_id, false FROM nobody
           ) AS users
           {join}
     WHERE {filter}
), cut AS MATERIALIZED (
    SELECT user_id FROM found ORDER BY {order} LIMIT $1 OFFSET $2
), page AS (
    SELECT cut.user_id,
           (SELECT displayname FROM profiles WHERE full_user_id = cut.user_id) AS displayname,
           own.media_count, own.media_length
      FROM cut
           CROSS JOIN LATERAL (
               SELECT count(*) AS media_count, coalesce(sum(media_length), 0)::bigint AS media_length
                 FROM local_media_repository
                WHERE user_id = cut.user_id
           ) AS own
     WHERE cut.user_id IS NOT NULL
    UNION ALL
    SELECT NULL, NULL, 0, (SELECT coalesce(sum(media_length), 0)::bigint
                             FROM local_media_repository WHERE user_id IS NULL)
      FROM cut
     WHERE cut.user_id IS NULL
)
SELECT everyone.total, shown.*
  FROM (SELECT {total} AS total) AS everyone
       LEFT JOIN (SELECT true AS on_page, page.* FROM page) AS shown ON true
 ORDER BY {order}
