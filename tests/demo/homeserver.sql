-- A small homeserver, example.org, in the tables of ../schema/synapse-94.sql: what `make demo` asks about.
SET client_encoding = 'UTF8';

INSERT INTO users (name, admin, deactivated) VALUES
    ('@admin:example.org', 1, 0),
    ('@alice:example.org', 0, 0),
    ('@bola.adeyemi:example.org', 0, 0),
    ('@hannah.lee:example.org', 0, 0),
    ('@ines:example.org', 0, 1),
    ('@jonas_meyer:example.org', 0, 0),
    ('@juergen:example.org', 0, 0),
    ('@lucia:example.org', 0, 0),
    ('@mateo.fernandez:example.org', 0, 0),
    ('@misaki:example.org', 0, 0),
    ('@noor:example.org', 0, 0),
    ('@olga:example.org', 0, 0),
    ('@priya.raman:example.org', 0, 0),
    ('@samuel.lee:example.org', 0, 0),
    ('@zofia:example.org', 0, 0),
    ('@_telegram_50017382:example.org', 0, 0);

-- @ines has left: her account is deactivated and her profile is gone, her files are not.
INSERT INTO profiles (user_id, full_user_id, displayname) VALUES
    ('admin', '@admin:example.org', 'Administrator'),
    ('alice', '@alice:example.org', 'Alice Whitfield'),
    ('bola.adeyemi', '@bola.adeyemi:example.org', 'Bọ́lá Adéyẹmí'),
    ('hannah.lee', '@hannah.lee:example.org', 'Hannah Lee'),
    ('jonas_meyer', '@jonas_meyer:example.org', 'Jonas Meyer (away until Monday)'),
    ('juergen', '@juergen:example.org', 'Jürgen Groß'),
    ('lucia', '@lucia:example.org', NULL),
    ('mateo.fernandez', '@mateo.fernandez:example.org', 'Mateo Fernández'),
    ('misaki', '@misaki:example.org', '美咲'),
    ('noor', '@noor:example.org', 'Noor Haddad'),
    ('olga', '@olga:example.org', 'Ольга Смирнова'),
    ('priya.raman', '@priya.raman:example.org', 'Priya Raman'),
    ('samuel.lee', '@samuel.lee:example.org', 'Samuel Lee'),
    ('zofia', '@zofia:example.org', 'Zofia Wiśniewska'),
    ('_telegram_50017382', '@_telegram_50017382:example.org', 'Nikos (Telegram)');

INSERT INTO access_tokens (id, user_id, device_id, token) VALUES
    (1, '@admin:example.org', 'ADMINLAPTOP', 'demo_admin_token'),
    (2, '@alice:example.org', 'ALICEPHONE', 'demo_user_token');

-- One line a user: how many files, how large the first one is and how much each further one adds, when the first
-- one came and how much later each further one. @noor has uploaded nothing, so no page lists her.
INSERT INTO local_media_repository (media_id, media_type, media_length, created_ts, upload_name, user_id)
SELECT
    'Sample' || md5(owner || n),
    media_type,
    first_length + n * more,
    (extract(epoch FROM first_day + n * pause) * 1000)::bigint,
    'file ' || n + 1,
    '@' || owner || ':example.org'
FROM (VALUES
    ('admin',                2, 'image/png',        48211,      9377, timestamptz '2025-11-03 09:00Z', interval '1 day'),
    ('alice',               31, 'image/jpeg',     2104388,     21013, timestamptz '2025-11-05 18:30Z', interval '6 days'),
    ('bola.adeyemi',        12, 'image/webp',      310554,     40127, timestamptz '2026-01-02 07:15Z', interval '3 days'),
    ('hannah.lee',          57, 'image/jpeg',     1788214,      9041, timestamptz '2025-12-01 12:00Z', interval '2 days'),
    ('ines',                 8, 'application/pdf', 901223,     11213, timestamptz '2025-11-10 10:45Z', interval '1 day'),
    ('jonas_meyer',          3, 'audio/ogg',       182004,     77310, timestamptz '2026-02-14 20:00Z', interval '2 hours'),
    ('juergen',             24, 'image/jpeg',     3390127,     15511, timestamptz '2025-12-20 16:20Z', interval '4 days'),
    ('lucia',                1, 'image/png',       655120,         0, timestamptz '2026-01-19 11:11Z', interval '1 day'),
    ('mateo.fernandez',      6, 'video/mp4',    188400315,  23117041, timestamptz '2026-01-11 22:05Z', interval '9 days'),
    ('misaki',              44, 'image/webp',      540127,      3301, timestamptz '2025-11-15 03:40Z', interval '36 hours'),
    ('olga',                19, 'image/jpeg',     2870412,     31333, timestamptz '2026-01-25 13:00Z', interval '12 hours'),
    ('priya.raman',          9, 'application/zip', 72011640, 1204416, timestamptz '2025-12-08 05:30Z', interval '7 days'),
    ('zofia',               12, 'image/png',       774901,     20201, timestamptz '2026-01-30 17:45Z', interval '1 day'),
    ('_telegram_50017382', 240, 'image/jpeg',      611742,       411, timestamptz '2025-11-01 00:10Z', interval '11 hours')
) AS uploads (owner, files, media_type, first_length, more, first_day, pause),
    generate_series(0, files - 1) AS n;

-- Uploads that were announced but never arrived: a file that counts, with a length that nobody knows.
INSERT INTO local_media_repository (media_id, created_ts, user_id) VALUES
    ('SamplePendingUploadOfHannah', 1769860800000, '@hannah.lee:example.org'),
    ('SamplePendingUploadOfSamuel', 1769947200000, '@samuel.lee:example.org');

ANALYZE;
