-- Which of the columns that the statements read this role may not read: one line each, none if all
-- is well. Asked when a statement was refused for lack of a privilege, whose message names no more
-- than the table. role.sql grants them all.
SELECT 'SELECT (' || string_agg(needed."column", ', ' ORDER BY needed."column") || ') ON ' || needed."table" AS missing
  FROM (VALUES ('users', 'name'), ('users', 'admin'), ('users', 'is_guest'), ('users', 'locked'),
               ('access_tokens', 'token'), ('access_tokens', 'user_id'),
               ('access_tokens', 'puppets_user_id'), ('access_tokens', 'valid_until_ms'),
               ('profiles', 'full_user_id'), ('profiles', 'displayname'),
               ('local_media_repository', 'user_id'), ('local_media_repository', 'media_length'),
               ('local_media_repository', 'created_ts')) AS needed("table", "column")
 WHERE NOT has_column_privilege(needed."table", needed."column", 'SELECT')
 GROUP BY needed."table"
 ORDER BY needed."table"
