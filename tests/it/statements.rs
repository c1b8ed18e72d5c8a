//! Every page statement against a plain reference, on random data and random queries.
//!
//! The reference asks the database for nothing but plain groups; it searches, orders and cuts the
//! page in Rust.

use std::{
    cmp::Ordering,
    collections::{HashMap, hash_map::Entry},
    process::Command,
};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sqlx::{PgConnection, Row};
use synapse_media_usage::{
    page::UserMedia,
    query::{Args, Direction, MediaUsageQuery, OrderBy},
    statement::{Shape, Statement},
};

use crate::support::{
    block_on,
    cases::{Case, cases},
    database::{Database, SCHEMAS, cluster},
    documentation::block,
    project,
    statement::{bound, page, text},
};

/// What a page statement answers.
#[derive(Debug, PartialEq)]
struct Answer {
    total: i64,
    users: Vec<UserMedia>,
}

/// Runs a text as the function does.
async fn run(
    connection: &mut PgConnection,
    sql: &str,
    query: &MediaUsageQuery,
) -> Result<Answer, sqlx::Error> {
    let rows = bound(sql, query).fetch_all(connection).await?;
    Ok(Answer {
        total: rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("total")?,
        users: rows
            .iter()
            .filter(|row| row.get::<Option<bool>, _>("on_page").is_some())
            .map(|row| {
                Ok(UserMedia {
                    user_id: row.try_get("user_id")?,
                    displayname: row.try_get("displayname")?,
                    media_count: row.try_get("media_count")?,
                    media_length: row.try_get("media_length")?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()?,
    })
}

/// The plain reference, for as long as the rows stay as they are.
#[derive(Default)]
struct Reference {
    /// By the bounds of a window, which the database is asked for once.
    groups: HashMap<[Option<i64>; 2], Vec<UserMedia>>,
}

impl Reference {
    async fn answer(&mut self, connection: &mut PgConnection, query: &MediaUsageQuery) -> Answer {
        let window = [query.after, query.until];
        let groups = match self.groups.entry(window) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(groups(connection, window).await),
        };
        let mut users: Vec<_> = groups
            .iter()
            .filter(|user| query.search_term.as_ref().is_none_or(|term| matches(user, &term.0)))
            .collect();
        users.sort_by(|a, b| {
            let key = match query.order_by {
                OrderBy::UserId => nulls_last(a.user_id.as_ref(), b.user_id.as_ref()),
                OrderBy::Displayname => nulls_last(a.displayname.as_ref(), b.displayname.as_ref()),
                OrderBy::MediaLength => a.media_length.cmp(&b.media_length),
                OrderBy::MediaCount => a.media_count.cmp(&b.media_count),
            };
            let key = if query.dir == Direction::Backwards { key.reverse() } else { key };
            key.then_with(|| nulls_last(a.user_id.as_ref(), b.user_id.as_ref()))
        });
        let total = i64::try_from(users.len()).unwrap();
        let amount = |number: i64| usize::try_from(number).unwrap();
        let page = users.into_iter().skip(amount(query.from)).take(amount(query.limit));
        Answer { total, users: page.cloned().collect() }
    }
}

/// All owners of media of a window, with what they own.
async fn groups(connection: &mut PgConnection, [after, until]: [Option<i64>; 2]) -> Vec<UserMedia> {
    let rows = sqlx::query(
        "SELECT user_id, (SELECT min(displayname) FROM public.profiles WHERE full_user_id = user_id_of_group), \
         media_count, coalesce(media_length, 0) \
         FROM (SELECT user_id, user_id AS user_id_of_group, count(user_id) AS media_count, \
         sum(media_length) AS media_length FROM public.local_media_repository \
         WHERE coalesce(created_ts > $1, $1 IS NULL) AND coalesce(created_ts <= $2, $2 IS NULL) \
         GROUP BY user_id) AS groups",
    )
    .bind(after)
    .bind(until)
    .fetch_all(connection)
    .await
    .unwrap();
    rows.iter()
        .map(|row| UserMedia {
            user_id: row.get(0),
            displayname: row.get(1),
            media_count: row.get(2),
            media_length: row.get(3),
        })
        .collect()
}

/// Departures D1 and D11, word for word.
fn matches(user: &UserMedia, term: &str) -> bool {
    let Some(user_id) = &user.user_id else { return false };
    if term.starts_with('@') && term.contains(':') && user_id == term {
        return true;
    }
    let localpart = user_id.strip_prefix('@').map(|rest| rest.split(':').next().unwrap());
    localpart.is_some_and(|localpart| localpart.contains(term))
        || user.displayname.as_ref().is_some_and(|displayname| displayname.contains(term))
}

fn nulls_last<T: Ord>(a: Option<&T>, b: Option<&T>) -> Ordering {
    (a.is_none(), a).cmp(&(b.is_none(), b))
}

/// Rows with what makes a difference: owners with and without `@`, `:` and profile, or none at
/// all; equal and missing names; missing and equal lengths and times, and those at the limits.
#[derive(Debug, Clone)]
struct Rows {
    profiles: Vec<(String, Option<String>)>,
    media: Vec<(Option<String>, Option<i32>, Option<i64>)>,
}

const PIECES: &str = r#"[@:a-cA%_\\'"é美 ]"#;

fn user_id() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "@[a-c]{1,2}:x",
        1 => "[a-c]:x",
        1 => proptest::string::string_regex(&format!("{PIECES}{{0,6}}")).unwrap(),
        1 => proptest::string::string_regex(&format!("@{PIECES}{{0,3}}:{PIECES}{{0,3}}")).unwrap(),
    ]
}

fn timestamp() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..20_i64, 1 => Just(-1), 1 => Just(i64::MAX), 1 => Just(i64::MAX - 1)]
}

fn rows() -> impl Strategy<Value = Rows> {
    let displayname = prop_oneof![
        7 => proptest::string::string_regex(&format!("{PIECES}{{0,3}}")).unwrap(),
        1 => user_id(),
    ];
    let owner = prop_oneof![9 => user_id().prop_map(Some), 1 => Just(None)];
    let length = prop_oneof![6 => 0..4, 1 => Just(i32::MAX), 1 => Just(-1)];
    (
        proptest::collection::btree_map(
            user_id(),
            proptest::option::weighted(0.8, displayname),
            0..20,
        ),
        proptest::collection::vec(
            (
                owner,
                proptest::option::weighted(0.8, length),
                proptest::option::weighted(0.9, timestamp()),
            ),
            0..60,
        ),
    )
        .prop_map(|(profiles, media)| Rows { profiles: profiles.into_iter().collect(), media })
}

fn query() -> impl Strategy<Value = MediaUsageQuery> {
    // Half of the terms are found in some localparts or are somebody's id, and half of the pages cut
    // what was found.
    let term = prop_oneof![
        2 => "[a-c]",
        2 => proptest::string::string_regex(&format!("{PIECES}{{1,2}}")).unwrap(),
        1 => user_id().prop_filter("a term is not empty", |id| !id.is_empty()),
    ];
    (
        (
            prop::sample::select(vec!["user_id", "displayname", "media_length", "media_count"]),
            prop::sample::select(vec!["f", "b"]),
        ),
        (
            prop_oneof![3 => Just(0), 2 => 0..30_i64, 1 => Just(i64::MAX)],
            prop_oneof![2 => 1..4_i64, 1 => 0..30_i64, 1 => Just(1001), 1 => Just(i64::MAX)],
        ),
        (
            proptest::option::weighted(0.3, timestamp()),
            proptest::option::weighted(0.3, timestamp()),
        ),
        proptest::option::weighted(0.5, term),
    )
        .prop_filter_map(
            "until_ts is not after from_ts",
            |((order_by, dir), (from, limit), (from_ts, until_ts), term)| {
                let mut text = format!("order_by={order_by}&dir={dir}&from={from}&limit={limit}");
                let parameter = |name: &str, value: String| {
                    let value = percent_encoding::utf8_percent_encode(
                        &value,
                        percent_encoding::NON_ALPHANUMERIC,
                    );
                    format!("&{name}={value}")
                };
                text.extend(from_ts.map(|from_ts| parameter("from_ts", from_ts.to_string())));
                text.extend(until_ts.map(|until_ts| parameter("until_ts", until_ts.to_string())));
                text.extend(term.map(|term| parameter("search_term", term)));
                MediaUsageQuery::parse(&Args::parse(&text)).ok()
            },
        )
}

/// The same rows and queries in every run.
fn runner() -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
}

fn sample<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
    strategy.new_tree(runner).unwrap().current()
}

async fn load(connection: &mut PgConnection, rows: &Rows) {
    // TRUNCATE would have each text planned anew.
    sqlx::raw_sql("DELETE FROM profiles; DELETE FROM local_media_repository")
        .execute(&mut *connection)
        .await
        .unwrap();
    let (user_ids, displaynames): (Vec<_>, Vec<_>) = rows.profiles.iter().cloned().unzip();
    sqlx::query("INSERT INTO profiles (user_id, full_user_id, displayname) SELECT id, id, name FROM unnest($1::text[], $2::text[]) AS _ (id, name)")
        .bind(user_ids)
        .bind(displaynames)
        .execute(&mut *connection)
        .await
        .unwrap();
    let owners: Vec<_> = rows.media.iter().map(|media| media.0.clone()).collect();
    let lengths: Vec<_> = rows.media.iter().map(|media| media.1).collect();
    let times: Vec<_> = rows.media.iter().map(|media| media.2).collect();
    sqlx::query("INSERT INTO local_media_repository (user_id, media_length, created_ts) SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[])")
        .bind(owners)
        .bind(lengths)
        .bind(times)
        .execute(&mut *connection)
        .await
        .unwrap();
}

/// The text; and, if it has choices, with these made the other way on small data too: a page is large,
/// and users own much, as soon as there is one; and a walk begins with steps of one entry.
fn ways(sql: &str) -> Vec<String> {
    let sensitive = sql
        .replace("greatest(1000, ", "greatest(1, ")
        .replace("greatest(10000, ", "greatest(10, ")
        .replace("least(walk.n * 2, 256)", "least(walk.n * 2, 4)");
    let mut ways = vec![sql.to_owned(), sensitive];
    ways.dedup();
    ways
}

/// A database, its superuser to load rows and the function's session to read them.
async fn database() -> (Database, PgConnection, PgConnection) {
    let database = Database::new("synapse-94").await;
    let (superuser, session) = (database.superuser().await, database.session().await);
    (database, superuser, session)
}

/// What a session's statements are planned for.
enum Plan {
    /// The parameters of each question, as the function has it.
    Custom,
    /// Any parameters, and so once a text. The answers have to be the same, and come several times sooner:
    /// where rows are few, planning takes longer than all else.
    Generic,
}

async fn plan(plan: Plan, session: &mut PgConnection) {
    let plan = match plan {
        Plan::Custom => "SET plan_cache_mode = force_custom_plan",
        Plan::Generic => "SET plan_cache_mode = force_generic_plan",
    };
    sqlx::raw_sql(plan).execute(session).await.unwrap();
}

#[test]
fn every_statement_answers_what_the_reference_answers() {
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        let (mut runner, rows, query) = (runner(), rows(), query());
        for round in 0..60 {
            let rows = sample(&rows, &mut runner);
            load(&mut superuser, &rows).await;
            plan(if round % 5 == 0 { Plan::Custom } else { Plan::Generic }, &mut session).await;
            let mut reference = Reference::default();
            for kind in kinds() {
                let ways = ways(&page(kind.shape));
                for _ in 0..4 {
                    let query = kind.query(&mut runner, &query);
                    let expected = reference.answer(&mut session, &query).await;
                    for sql in &ways {
                        let answer = run(&mut session, sql, &query).await.unwrap();
                        assert_eq!(answer, expected, "{kind:?} {query:?}\n{rows:?}\n{sql}");
                    }
                }
            }
        }
    });
}

/// Rows that are many and one-sided, as SQL that makes them out of `n`, 1 to 8000.
const ADVERSARIAL: [(&str, &str, &str); 7] = [
    (
        "one user owns 90 % of the media",
        "CASE WHEN n % 10 > 0 THEN '@hog:x' ELSE '@u' || n % 700 || ':x' END",
        "'Name ' || n % 50",
    ),
    ("every file is of another user", "'@u' || n || ':x'", "'Name ' || n % 50"),
    ("few users own many files", "'@u' || n % 7 || ':x'", "'Name ' || n"),
    ("nobody has a name", "'@u' || n % 900 || ':x'", "NULL"),
    ("everybody has the same of everything", "'@u' || n % 1000 || ':x'", "'Same'"),
    ("all media are without an owner", "NULL", "'Name'"),
    ("there is nothing", "NULL WHERE false", "'Name'"),
];

#[test]
fn every_statement_answers_what_the_reference_answers_on_adversarial_data() {
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        let (mut runner, query) = (runner(), query());
        for (name, user_id, displayname) in ADVERSARIAL {
            let media = user_id
                .split_once(" WHERE ")
                .map_or(String::new(), |(_, condition)| format!("WHERE {condition}"));
            let user_id = user_id.split(" WHERE ").next().unwrap();
            let sql = format!(
                "TRUNCATE profiles, local_media_repository;
                 ALTER TABLE local_media_repository SET (autovacuum_enabled = off);
                 INSERT INTO local_media_repository (user_id, media_length, created_ts)
                   SELECT {user_id}, CASE WHEN '{name}' ~ 'same' THEN 1 ELSE nullif(n % 97, 0) END, n % 20 FROM generate_series(1, 8000) AS n {media};
                 INSERT INTO profiles (user_id, full_user_id, displayname)
                   SELECT user_id, user_id, {displayname} FROM
                     (SELECT user_id, row_number() OVER () AS n FROM local_media_repository WHERE user_id IS NOT NULL GROUP BY user_id) AS users
                   WHERE n % 20 > 0"
            );
            sqlx::raw_sql(&sql).execute(&mut superuser).await.unwrap();
            // Without statistics and visibility map, with both, and with both gone stale.
            for upkeep in [
                "",
                "VACUUM ANALYZE",
                "UPDATE local_media_repository SET created_ts = created_ts + 1",
            ] {
                sqlx::raw_sql(upkeep).execute(&mut superuser).await.unwrap();
                let mut reference = Reference::default();
                for kind in kinds() {
                    let sampled = kind.query(&mut runner, &query);
                    let large = MediaUsageQuery { limit: 5000, from: 3, ..sampled.clone() };
                    for query in [sampled, large] {
                        let expected = reference.answer(&mut session, &query).await;
                        let sql = page(kind.shape);
                        let answer = run(&mut session, &sql, &query).await.unwrap();
                        let context = format!("{name}, {upkeep}: {kind:?} {query:?}");
                        assert_eq!(answer.total, expected.total, "{context}");
                        assert!(answer == expected, "{context}");
                    }
                }
            }
        }
    });
}

#[test]
fn every_statement_runs_on_every_schema() {
    block_on(async {
        for schema in SCHEMAS {
            let database = Database::of_conformance(schema).await;
            let mut session = database.session().await;
            let (mut runner, query) = (runner(), query());
            let token = text(Statement::ACCESS_TOKEN);
            let token = sqlx::query(&token).bind("").bind(1_i64);
            token.fetch_one(&mut session).await.unwrap();
            let mut reference = Reference::default();
            for kind in kinds() {
                let query = kind.query(&mut runner, &query);
                let expected = reference.answer(&mut session, &query).await;
                let answer = run(&mut session, &page(kind.shape), &query).await.unwrap();
                assert_eq!(answer, expected, "{schema} {query:?}");
            }
        }
    });
}

#[test]
fn the_tables_may_live_in_another_schema() {
    const ELSEWHERE: &str = "Synapse_2";
    block_on(async {
        let database = Database::of_conformance("synapse-94").await;
        let (mut superuser, mut session) = (database.superuser().await, database.session().await);
        let (mut runner, query) = (runner(), query());
        let token = async |session: &mut PgConnection, schema| {
            let sql = Statement::ACCESS_TOKEN.in_schema(schema);
            let token = sqlx::query_scalar::<_, String>(&sql).bind("syt_admin_ok").bind(1_i64);
            token.fetch_one(session).await
        };
        let mut answers = Vec::new();
        for kind in kinds() {
            let query = kind.query(&mut runner, &query);
            let answer = run(&mut session, &page(kind.shape), &query).await.unwrap();
            answers.push((kind.shape, query, answer));
        }
        let missing = async |session: &mut PgConnection, schema| {
            let sql = Statement::MISSING_GRANTS.in_schema(schema);
            let hints = sqlx::query_scalar::<_, Option<String>>(&sql);
            hints.bind("access_tokens").fetch_one(session).await.unwrap().unwrap_or_default()
        };
        let hints = missing(&mut session, ELSEWHERE).await;
        assert_eq!(hints.matches("there is no table").count(), 4, "{hints}");
        let hint = "there is no table users in schema Synapse_2; \
                    schema public has one: if it is Synapse's, set DATABASE_SCHEMA";
        assert!(hints.contains(hint), "{hints}");

        let tables = "users access_tokens profiles local_media_repository devices account_validity";
        let moved =
            tables.split(' ').fold(format!("CREATE SCHEMA \"{ELSEWHERE}\""), |moved, table| {
                format!("{moved}; ALTER TABLE public.{table} SET SCHEMA \"{ELSEWHERE}\"")
            });
        sqlx::raw_sql(&moved).execute(&mut superuser).await.unwrap();
        let hints = missing(&mut session, ELSEWHERE).await;
        assert_eq!(hints, "the role lacks USAGE ON SCHEMA Synapse_2");
        let hints = missing(&mut session, "public").await;
        let hint = "there is no table users in schema public; \
                    schema Synapse_2 has one: if it is Synapse's, set DATABASE_SCHEMA";
        assert!(hints.contains(hint), "{hints}");

        // Not even without that right is the first question refused.
        let is_small = async |session: &mut PgConnection| {
            let first = Statement::SESSION.in_schema(ELSEWHERE);
            let row = sqlx::raw_sql(&first).fetch_one(session).await.unwrap();
            row.get::<bool, _>("one_pass")
        };
        assert!(is_small(&mut session).await);
        let usage = format!("GRANT USAGE ON SCHEMA \"{ELSEWHERE}\" TO media_usage");
        sqlx::raw_sql(&usage).execute(&mut superuser).await.unwrap();
        assert!(is_small(&mut session).await);
        assert_eq!(missing(&mut session, ELSEWHERE).await, "");
        let name = token(&mut session, ELSEWHERE).await.unwrap();
        assert_eq!(name, "@admin:example.com");
        assert!(token(&mut session, "public").await.is_err());
        for (shape, query, expected) in answers {
            let answer = run(&mut session, &Statement::page(shape).in_schema(ELSEWHERE), &query)
                .await
                .unwrap();
            assert_eq!(answer, expected, "{shape:?} {query:?}");
        }
    });
}

#[test]
fn pages_are_ordered_by_bytes_whatever_the_collation() {
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        let icu = "SELECT count(*) FROM pg_collation WHERE collname = 'en-x-icu'";
        let icu: i64 = sqlx::query_scalar(icu).fetch_one(&mut superuser).await.unwrap();
        if icu == 0 {
            println!("this PostgreSQL was built without ICU, and has no other collation");
            return;
        }
        let collation = "ALTER TABLE profiles ALTER full_user_id TYPE text COLLATE \"en-x-icu\",
                                              ALTER displayname TYPE text COLLATE \"en-x-icu\";
                         ALTER TABLE local_media_repository ALTER user_id TYPE text COLLATE \"en-x-icu\"";
        sqlx::raw_sql(collation).execute(&mut superuser).await.unwrap();
        // ICU puts a before B, bytes do not. All have as much, so that the id decides, also between
        // two who share a name.
        let users = [
            ("@a:x", "n b"),
            ("@B:x", "n A"),
            ("@A:x", "n B"),
            ("@b:x", "n a"),
            ("@a:y", "n c"),
            ("@B:y", "n c"),
        ];
        let rows = Rows {
            profiles: users.map(|(id, name)| (id.to_owned(), Some(name.to_owned()))).into(),
            media: users.map(|(id, _)| (Some(id.to_owned()), Some(1), Some(1))).into(),
        };
        load(&mut superuser, &rows).await;
        let mut unnoticed = mutants(" COLLATE \"C\"", "");
        let mut reference = Reference::default();
        for kind in kinds() {
            let term = if kind.searches { "&search_term=n" } else { "" };
            let query = MediaUsageQuery::parse(&Args::parse(term)).unwrap();
            let query = MediaUsageQuery { order_by: kind.order_by, dir: kind.dir, ..query };
            let expected = reference.answer(&mut session, &query).await;
            let answer = run(&mut session, &page(kind.shape), &query).await.unwrap();
            assert_eq!(answer, expected, "{kind:?}");
            notice(&mut unnoticed, kind, &[(query, expected)], &mut session).await;
        }
        assert!(unnoticed.is_empty(), "nobody notices{}", list(&unnoticed));
    });
}

#[test]
fn each_user_is_there_once_whatever_profiles_has() {
    // As long as Synapse's background updates have not made the unique index.
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        let (mut runner, rows, query) = (runner(), rows(), query());
        let mut unnoticed = mutants("DISTINCT ON (page.row_number)", "");
        let order = "ORDER BY page.row_number, profiles.displayname";
        unnoticed.extend(mutants(order, "ORDER BY page.row_number"));
        for _ in 0..20 {
            load(&mut superuser, &sample(&rows, &mut runner)).await;
            let twice = "DROP INDEX IF EXISTS profiles_full_user_id_key;
                INSERT INTO profiles (user_id, full_user_id, displayname)
                SELECT full_user_id || ' again', full_user_id, reverse(displayname) FROM profiles";
            sqlx::raw_sql(twice).execute(&mut superuser).await.unwrap();
            let mut reference = Reference::default();
            for kind in kinds() {
                let query = kind.query(&mut runner, &query);
                // Where a name orders or finds users, each of his names counts.
                if query.order_by != OrderBy::Displayname && query.search_term.is_none() {
                    let expected = reference.answer(&mut session, &query).await;
                    let sql = page(kind.shape);
                    let answer = run(&mut session, &sql, &query).await.unwrap();
                    assert_eq!(answer, expected, "{kind:?} {query:?}");
                    notice(&mut unnoticed, kind, &[(query, expected)], &mut session).await;
                }
            }
        }
        // It is only ever asked for a search.
        unnoticed.retain(|mutant| mutant.shape != Shape::Search);
        assert!(unnoticed.is_empty(), "nobody notices{}", list(&unnoticed));
    });
}

#[test]
fn no_plan_becomes_generic() {
    block_on(async {
        let (_database, _superuser, mut session) = database().await;
        let (mut runner, query) = (runner(), query());
        for kind in kinds() {
            for _ in 0..8 {
                let query = kind.query(&mut runner, &query);
                run(&mut session, &page(kind.shape), &query).await.unwrap();
            }
        }
        let generic = "SELECT sum(generic_plans)::bigint, sum(custom_plans)::bigint FROM pg_prepared_statements \
                       WHERE cardinality(parameter_types) > 0";
        let plans: (i64, i64) = sqlx::query_as(generic).fetch_one(&mut session).await.unwrap();
        assert_eq!(plans.0, 0);
        assert!(plans.1 >= 8 * i64::try_from(kinds().len()).unwrap());
    });
}

#[test]
fn psql_runs_a_page_statement_as_it_stands() {
    block_on(async {
        let database = Database::of_conformance("synapse-94").await;
        let mut session = database.session().await;
        let psql = |script: &str| {
            let output = Command::new(format!("{}/psql", cluster().bin))
                .current_dir(project())
                .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", "SELECT 1", &database.url()])
                .args(script.lines().flat_map(|line| ["-c", line]))
                .output()
                .unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{error}");
            String::from_utf8(output.stdout).unwrap().replacen("1\n", "", 1)
        };
        let by_hand = block("src/sql/README.md", "SET default_transaction_read_only");
        assert!(psql(&by_hand).contains("Execution Time"));

        // The settings are the function's.
        let (settings, _) = by_hand.split_once("\n\n").unwrap();
        for setting in settings.lines() {
            let name = setting.strip_prefix("SET ").unwrap().split(' ').next().unwrap();
            let show = format!("SHOW {name}");
            let shown: String = sqlx::query_scalar(&show).fetch_one(&mut session).await.unwrap();
            let by_hand = psql(&format!("{setting}\n{show}"));
            assert_eq!(by_hand.trim().replace(' ', ""), shown.replace(' ', ""), "{name}");
        }

        let of_client = "SELECT name FROM pg_settings WHERE source = 'client' AND name !~ '[.]'
            AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'extra_float_digits', 'TimeZone')";
        let names = sqlx::query_scalar::<_, String>(of_client).fetch_all(&mut session).await;
        for name in names.unwrap() {
            assert!(settings.contains(&format!("SET {name} = ")), "{name}");
        }

        let text = "limit=3&from=1&search_term=a&order_by=displayname&dir=b";
        let query = MediaUsageQuery::parse(&Args::parse(text)).unwrap();
        for (file, shape) in [
            ("one_pass", Shape::OnePass),
            ("counts", Shape::Counts),
            ("walk", Shape::Walk),
            ("search", Shape::Search),
        ] {
            let answer = run(&mut session, &page(shape), &query).await.unwrap();
            let rows = answer.users.iter().map(|user| {
                let (id, name) = (user.user_id.as_ref().unwrap(), user.displayname.as_ref());
                let name = name.map_or("", String::as_str);
                let (total, count, length) = (answer.total, user.media_count, user.media_length);
                format!("{total}|t|{id}|{name}|{count}|{length}\n")
            });
            let script = format!(
                "{settings}\n\\i src/sql/{file}.sql\n\
                 EXECUTE page (3, 1, NULL, NULL, 'a', 'displayname', true)"
            );
            assert_eq!(psql(&script), rows.collect::<String>(), "{file}");
        }

        let page = "EXECUTE page (3, 1, NULL, NULL, NULL, 'user_id', false)";
        let of_public = psql(&format!("{settings}\n\\i src/sql/walk.sql\n{page}"));
        database.run("ALTER SCHEMA public RENAME TO synapse").await;
        let folder = &cluster().socket_dir;
        let copy = block("src/sql/README.md", "sed ").replace("/tmp/", &format!("{folder}/"));
        let copied = Command::new("sh").args(["-c", &copy]).current_dir(project()).status();
        assert!(copied.unwrap().success(), "{copy}");
        assert_eq!(psql(&format!("{settings}\n\\i {folder}/walk.sql\n{page}")), of_public);
    });
}

#[test]
fn one_pass_answers_where_media_are_few_or_no_index_can_be_walked() {
    block_on(async {
        let database = Database::of_conformance("synapse-94").await;
        let mut session = database.session().await;
        let mut superuser = database.superuser().await;
        let mut one_pass = async |change: &str| {
            sqlx::raw_sql(change).execute(&mut superuser).await.unwrap();
            let row =
                sqlx::raw_sql(&text(Statement::SESSION)).fetch_one(&mut session).await.unwrap();
            assert!(row.get::<Option<String>, _>("marker").is_some());
            row.get::<bool, _>("one_pass")
        };
        assert!(one_pass("").await);
        let enlarge = "INSERT INTO local_media_repository (user_id, upload_name)
                       SELECT '@gone:x', 'filler' FROM generate_series(1, 30000);
                       ANALYZE local_media_repository";
        assert!(!one_pass(enlarge).await);
        assert!(one_pass("DROP INDEX users_have_local_media").await);
        let create =
            |index: &str| format!("CREATE INDEX walkable ON local_media_repository {index}");
        for (index, can_be_walked) in [
            ("(created_ts, user_id)", false),
            ("USING hash (user_id)", false),
            ("(user_id text_pattern_ops)", false),
            ("(user_id) WHERE url_cache IS NOT NULL", false),
            ("(user_id COLLATE \"POSIX\")", false),
            ("(lower(user_id))", false),
            ("(user_id)", true),
            ("(user_id DESC)", true),
            ("(user_id, created_ts)", true),
        ] {
            assert_eq!(!one_pass(&create(index)).await, can_be_walked, "{index}");
            assert!(one_pass("DROP INDEX walkable").await);
        }
        // One of them is enough.
        let partial =
            "CREATE INDEX partial ON local_media_repository (user_id) WHERE user_id <> ''";
        assert!(one_pass(partial).await);
        assert!(!one_pass(&create("(user_id)")).await);
        // As REINDEX CONCURRENTLY leaves it behind when it fails.
        for state in ["indisvalid", "indisready"] {
            let set = |value| {
                format!(
                    "UPDATE pg_index SET {state} = {value} WHERE indexrelid = 'walkable'::regclass"
                )
            };
            assert!(one_pass(&set(false)).await, "{state}");
            assert!(!one_pass(&set(true)).await, "{state}");
        }
        let view = "ALTER TABLE local_media_repository RENAME TO media;
                    CREATE VIEW local_media_repository AS SELECT * FROM media";
        assert!(one_pass(view).await);
        // Nobody has counted yet.
        let uncounted = "DROP VIEW local_media_repository;
                         CREATE TABLE local_media_repository (user_id text);
                         CREATE INDEX ON local_media_repository (user_id)";
        assert!(!one_pass(uncounted).await);
        assert!(!one_pass("DROP TABLE local_media_repository").await);
    });
}

/// What a shape is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kind {
    shape: Shape,
    order_by: OrderBy,
    dir: Direction,
    searches: bool,
}

impl Kind {
    /// Whether the header of the shape's file says that it answers a query.
    fn is_answered(self, query: &MediaUsageQuery) -> bool {
        let by_media = matches!(query.order_by, OrderBy::MediaCount | OrderBy::MediaLength);
        let has_window = query.after.is_some() || query.until.is_some();
        match self.shape {
            Shape::OnePass => true,
            Shape::Counts => query.order_by != OrderBy::MediaLength,
            Shape::Walk => !by_media && !has_window,
            Shape::Search => query.search_term.is_some() && !has_window,
        }
    }

    /// A random query of this kind.
    fn query(
        self,
        runner: &mut TestRunner,
        queries: &impl Strategy<Value = MediaUsageQuery>,
    ) -> MediaUsageQuery {
        loop {
            let Self { order_by, dir, .. } = self;
            let query = MediaUsageQuery { order_by, dir, ..sample(queries, runner) };
            if query.search_term.is_some() == self.searches && self.is_answered(&query) {
                return query;
            }
        }
    }
}

/// All that the page statements can be asked for, whether the rule does or not.
fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for shape in [Shape::OnePass, Shape::Counts, Shape::Walk, Shape::Search] {
        for order_by in ["user_id", "displayname", "media_length", "media_count"] {
            for dir in ["f", "b"] {
                for search in ["", "&search_term=a"] {
                    let text = format!("order_by={order_by}&dir={dir}{search}");
                    let query = MediaUsageQuery::parse(&Args::parse(&text)).unwrap();
                    let MediaUsageQuery { order_by, dir, .. } = query;
                    let kind = Kind { shape, order_by, dir, searches: !search.is_empty() };
                    kinds.extend(kind.is_answered(&query).then_some(kind));
                }
            }
        }
    }
    assert_eq!(kinds.len(), 44);
    kinds
}

#[test]
fn the_rule_asks_no_statement_for_what_it_does_not_answer() {
    let (mut runner, queries) = (runner(), query());
    let mut asked = [false; 4];
    for _ in 0..1000 {
        let query = sample(&queries, &mut runner);
        let shape = Shape::for_query(&query, false);
        let (order_by, dir) = (query.order_by, query.dir);
        let kind = Kind { shape, order_by, dir, searches: query.search_term.is_some() };
        assert!(kind.is_answered(&query), "{shape:?} {query:?}");
        asked[shape as usize] = true;
        assert_eq!(Shape::for_query(&query, true), Shape::OnePass);
    }
    assert_eq!(asked, [true; 4]);
}

/// Ways to be wrong that a reader could overlook: what stands in the texts, and what instead; and
/// whether a recorded answer notices.
const MISTAKES: [(&str, &str, bool); 48] = [
    ("count(user_id)", "count(*)", true),
    ("SELECT cut.row_number, NULL, 0, (", "SELECT cut.row_number, NULL, 1, (", true),
    ("coalesce(sum(media_length), 0)::bigint", "sum(media_length)::bigint", true),
    ("created_ts <= $4", "created_ts < $4", true),
    ("created_ts > $3", "created_ts >= $3", true),
    ("$4 IS NULL OR created_ts <= $4", "true", true),
    ("$3 IS NULL OR created_ts > $3", "true", true),
    // D1
    ("strpos(names.displayname, $5) > 0", "names.displayname LIKE '%' || $5 || '%'", true),
    ("strpos(names.displayname, $5) > 0", "names.displayname ILIKE '%' || $5 || '%'", true),
    (" OR strpos(names.displayname, $5) > 0", "", true),
    ("split_part(user_id, ':', 1)", "user_id", true),
    ("right(split_part(user_id, ':', 1), -1)", "split_part(user_id, ':', 1)", true),
    ("starts_with(user_id, '@')", "true", false),
    ("strpos(names.displayname, $5) > 0 OR ", "", true),
    ("OR candidates.id_matches", "", true),
    ("split_part(candidates.user_id, ':', 1)", "candidates.user_id", false),
    ("right(split_part(candidates.user_id, ':', 1), -1)", "candidates.user_id", false),
    ("starts_with(candidates.user_id, '@')", "true", false),
    // D11
    ("starts_with($5, '@') AND user_id = $5", "false", true),
    ("starts_with($5, '@') AND user_id = $5", "user_id = $5", false),
    ("SELECT $5 WHERE starts_with($5, '@')", "SELECT $5", false),
    ("SELECT $5 WHERE starts_with($5, '@')", "SELECT NULL::text", true),
    ("SELECT FROM public.local_media_repository WHERE user_id = wanted.user_id", "SELECT", true),
    (
        "SELECT full_user_id AS user_id FROM public.profiles WHERE strpos(displayname, $5) > 0",
        "SELECT NULL",
        false,
    ),
    ("WHERE $5 IS NULL OR strpos($5, ':') = 0", "WHERE true", false),
    // Joins
    ("THEN NULL ELSE users.user_id END", "THEN users.user_id END", true),
    ("THEN NULL ELSE candidates.user_id END", "THEN candidates.user_id END", true),
    (" OR $6 = 'displayname' AND strpos(full_user_id, $5) > 0", "", false),
    ("LEFT JOIN public.profiles ON", "JOIN public.profiles ON", true),
    ("LEFT JOIN names", "JOIN names", true),
    ("LEFT JOIN page", "JOIN page", true),
    // Totals
    ("SELECT count(*) AS total FROM found", "SELECT count(user_id) AS total FROM found", true),
    (
        "THEN (SELECT sum(cardinality(user_ids)) FROM walk)",
        "THEN (SELECT count(*) FROM walk)",
        true,
    ),
    ("ELSE (SELECT count(*) FROM found)", "ELSE (SELECT count(*) FROM page)", true),
    // Orders
    ("NULLS FIRST", "NULLS LAST", true),
    ("NULLS LAST", "NULLS FIRST", true),
    ("ASC", "DESC", true),
    ("DESC", "ASC", true),
    ("WHEN NOT $7", "WHEN $7", true),
    ("CASE WHEN $7", "CASE WHEN NOT $7", true),
    ("WHEN 'user_id' THEN user_id", "WHEN 'user_id' THEN NULL", true),
    (" user_id COLLATE \"C\" ASC NULLS LAST", " NULL::text", true),
    ("LIMIT $1 OFFSET $2", "LIMIT $1 OFFSET $2 + 1", true),
    ("LIMIT $1 OFFSET $2", "LIMIT $1 + 1 OFFSET $2", true),
    // The walk
    ("WHERE user_id IS NULL LIMIT 1", "WHERE false LIMIT 1", true),
    ("walk.user_ids[cardinality(walk.user_ids)]", "walk.user_ids[1] || '!'", true),
    ("SELECT DISTINCT ahead.user_id", "SELECT ahead.user_id", true),
    ("WHERE user_id > walk", "WHERE user_id >= walk", true),
];

/// Where these make no difference: a search never finds the null user.
const NO_MISTAKES: [(Shape, &str, &str); 2] = [
    (Shape::Search, "SELECT count(*) AS total FROM found", "FROM found"),
    (Shape::Search, "NULLS LAST", "         user_id COLLATE"),
];

/// A text that is wrong in one place.
#[derive(Debug)]
struct Mutant {
    shape: Shape,
    needle: &'static str,
    replacement: &'static str,
    /// The line in which the needle stood.
    line: String,
    sql: String,
}

/// The page statements with a needle replaced, in one place each.
fn mutants(needle: &'static str, replacement: &'static str) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for shape in [Shape::OnePass, Shape::Counts, Shape::Walk, Shape::Search] {
        let sql = page(shape);
        for (start, _) in sql.match_indices(needle) {
            let (before, after) = (&sql[..start], &sql[start + needle.len()..]);
            let line = sql[..start + needle.len()].lines().last().unwrap().to_owned();
            let sql = format!("{before}{replacement}{after}");
            mutants.push(Mutant { shape, needle, replacement, line, sql });
        }
    }
    mutants.retain(|mutant| {
        !NO_MISTAKES.iter().any(|(shape, needle, line)| {
            mutant.shape == *shape && mutant.needle == *needle && mutant.line.contains(line)
        })
    });
    assert!(!mutants.is_empty(), "no statement contains {needle:?}");
    mutants
}

/// What nobody has noticed, for a person to read.
fn list(mutants: &[Mutant]) -> String {
    let lines = mutants.iter().map(|Mutant { shape, needle, replacement, line, .. }| {
        format!("\n{shape:?}: {replacement:?} for {needle:?} in {line}")
    });
    lines.collect()
}

/// Ends the mistakes that have no end, long before the session's own settings do, and plans each text once.
async fn be_impatient(session: &mut PgConnection) {
    let timeout = "SET statement_timeout = '500ms'";
    sqlx::raw_sql(timeout).execute(&mut *session).await.unwrap();
    plan(Plan::Generic, session).await;
}

/// Leaves those that answer each query as expected, whichever way their choices go.
async fn notice(
    mutants: &mut Vec<Mutant>,
    kind: Kind,
    asked: &[(MediaUsageQuery, Answer)],
    session: &mut PgConnection,
) {
    let mut unnoticed = Vec::new();
    for mutant in mutants.drain(..) {
        let mut noticed = false;
        if mutant.shape == kind.shape {
            // Text by text: the session keeps some of them prepared, but not all.
            for sql in ways(&mutant.sql) {
                for (query, expected) in asked {
                    noticed =
                        noticed || run(session, &sql, query).await.ok().as_ref() != Some(expected);
                }
            }
        }
        if !noticed {
            unnoticed.push(mutant);
        }
    }
    *mutants = unnoticed;
}

#[test]
fn the_reference_disagrees_with_a_wrong_statement() {
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        be_impatient(&mut session).await;
        let mistakes = MISTAKES.into_iter();
        let mut unnoticed: Vec<_> =
            mistakes.flat_map(|(needle, replacement, _)| mutants(needle, replacement)).collect();
        println!("{} mutants", unnoticed.len());
        let (mut runner, rows, query) = (runner(), rows(), query());
        for _ in 0..100 {
            load(&mut superuser, &sample(&rows, &mut runner)).await;
            let mut reference = Reference::default();
            for kind in kinds() {
                if unnoticed.iter().any(|mutant| mutant.shape == kind.shape) {
                    let mut asked = Vec::new();
                    for _ in 0..4 {
                        let query = kind.query(&mut runner, &query);
                        let expected = reference.answer(&mut session, &query).await;
                        asked.push((query, expected));
                    }
                    notice(&mut unnoticed, kind, &asked, &mut session).await;
                }
            }
        }
        assert!(unnoticed.is_empty(), "nobody notices{}", list(&unnoticed));
    });
}

#[test]
fn the_recorded_answers_disagree_with_a_wrong_statement() {
    // The pages among the cases, with the query that each asks.
    let pages: Vec<(Case, MediaUsageQuery)> = cases()
        .into_iter()
        .filter(|case| case.tolerated.is_empty())
        .filter_map(|case| {
            let is_page = case
                .expect
                .as_ref()
                .is_some_and(|expect| expect.status == 200 && expect.body != "");
            let query =
                MediaUsageQuery::parse(&Args::parse(case.query.as_deref().unwrap_or_default()));
            is_page.then_some(())?;
            Some((case, query.unwrap()))
        })
        .collect();
    assert!(pages.len() > 150, "{}", pages.len());
    block_on(async {
        let database = Database::of_conformance("synapse-94").await;
        let mut session = database.session().await;
        be_impatient(&mut session).await;
        for (needle, replacement, _) in MISTAKES.iter().filter(|mistake| mistake.2) {
            let mut noticed = false;
            for (case, query, one_pass) in
                pages.iter().flat_map(|(case, query)| [(case, query, true), (case, query, false)])
            {
                let sql = page(Shape::for_query(query, one_pass));
                if !sql.contains(needle) {
                    continue;
                }
                let sql = sql.replace(needle, replacement);
                let body = &case.expect.as_ref().unwrap().body;
                let answer = run(&mut session, &sql, query).await.ok();
                noticed |= answer.is_none_or(|answer| {
                    serde_json::to_value(&answer.users).unwrap() != body["users"]
                        || answer.total != body["total"]
                });
                if noticed {
                    break;
                }
            }
            assert!(noticed, "no recorded answer notices {replacement:?} for {needle:?}");
        }
    });
}
