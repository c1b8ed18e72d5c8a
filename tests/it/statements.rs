//! Every page statement against a plain reference, on random data and random queries.
//!
//! The reference asks the database for nothing but plain groups; it searches, orders and cuts the
//! page in Rust.

use std::cmp::Ordering;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sqlx::{PgConnection, Row};
use synapse_media_usage::{
    page::UserMedia,
    query::{Args, Direction, MediaUsageQuery, OrderBy},
    statement::{ACCESS_TOKEN, STATEMENTS, Statement},
};

use crate::support::{
    block_on,
    cases::{Case, cases},
    database::{Database, SCHEMAS, bound},
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
        total: rows[0].try_get("total")?,
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

async fn reference(connection: &mut PgConnection, query: &MediaUsageQuery) -> Answer {
    let rows = sqlx::query(
        "SELECT user_id, (SELECT displayname FROM profiles WHERE full_user_id = user_id_of_group), \
         media_count, coalesce(media_length, 0) \
         FROM (SELECT user_id, user_id AS user_id_of_group, count(user_id) AS media_count, \
         sum(media_length) AS media_length FROM local_media_repository \
         WHERE coalesce(created_ts > $1, $1 IS NULL) AND coalesce(created_ts <= $2, $2 IS NULL) \
         GROUP BY user_id) AS groups",
    )
    .bind(query.window.after)
    .bind(query.window.until)
    .fetch_all(connection)
    .await
    .unwrap();
    let mut users: Vec<_> = rows
        .iter()
        .map(|row| UserMedia {
            user_id: row.get(0),
            displayname: row.get(1),
            media_count: row.get(2),
            media_length: row.get(3),
        })
        .filter(|user| query.search_term.as_ref().is_none_or(|term| matches(user, term.expose())))
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
    Answer {
        total,
        users: users.into_iter().skip(amount(query.from)).take(amount(query.limit)).collect(),
    }
}

/// Departure D1, word for word.
fn matches(user: &UserMedia, term: &str) -> bool {
    let Some(user_id) = &user.user_id else { return false };
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
        1 => proptest::string::string_regex(&format!("{PIECES}{{0,6}}")).unwrap(),
        1 => proptest::string::string_regex(&format!("@{PIECES}{{0,3}}:{PIECES}{{0,3}}")).unwrap(),
    ]
}

fn timestamp() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..20_i64, 1 => Just(-1), 1 => Just(i64::MAX), 1 => Just(i64::MAX - 1)]
}

fn rows() -> impl Strategy<Value = Rows> {
    let displayname = proptest::string::string_regex(&format!("{PIECES}{{0,3}}")).unwrap();
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
    // Half of the terms are found in some localparts, and half of the pages cut what was found.
    let term =
        prop_oneof!["[a-c]", proptest::string::string_regex(&format!("{PIECES}{{1,2}}")).unwrap()];
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
    sqlx::raw_sql("TRUNCATE profiles, local_media_repository")
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

/// The text with its choices made the other way on small data too: a page is large, and users own
/// much, as soon as there is one; and a walk begins with steps of one entry.
fn sensitive(sql: &str) -> String {
    sql.replace("greatest(1000, ", "greatest(1, ")
        .replace("greatest(10000, ", "greatest(10, ")
        .replace("least(walk.n * 2, 256)", "least(walk.n * 2, 4)")
}

/// A database, its superuser to load rows and the function's session to read them.
async fn database() -> (Database, PgConnection, PgConnection) {
    let database = Database::new("synapse-94").await;
    let (superuser, session) = (database.superuser().await, database.session().await);
    (database, superuser, session)
}

#[test]
fn every_statement_answers_what_the_reference_answers() {
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        let (mut runner, rows, query) = (runner(), rows(), query());
        for _ in 0..60 {
            let rows = sample(&rows, &mut runner);
            load(&mut superuser, &rows).await;
            for statement in STATEMENTS {
                for _ in 0..4 {
                    let query = asking_for(statement, &mut runner, &query);
                    let expected = reference(&mut session, &query).await;
                    for sql in [statement.sql, &sensitive(statement.sql)] {
                        let answer = run(&mut session, sql, &query).await.unwrap();
                        assert_eq!(answer, expected, "{query:?}\n{rows:?}\n{sql}");
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
                for statement in STATEMENTS {
                    let sampled = asking_for(statement, &mut runner, &query);
                    let large = MediaUsageQuery { limit: 5000, from: 3, ..sampled.clone() };
                    for query in [sampled, large] {
                        let expected = reference(&mut session, &query).await;
                        let answer = run(&mut session, statement.sql, &query).await.unwrap();
                        assert_eq!(
                            answer.total, expected.total,
                            "{name}, {upkeep}: {query:?}\n{}",
                            statement.sql
                        );
                        assert!(
                            answer == expected,
                            "{name}, {upkeep}: {query:?}\n{}",
                            statement.sql
                        );
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
            sqlx::query(ACCESS_TOKEN).bind("").fetch_all(&mut session).await.unwrap();
            for statement in STATEMENTS {
                let query = asking_for(statement, &mut runner, &query);
                let expected = reference(&mut session, &query).await;
                assert_eq!(
                    run(&mut session, statement.sql, &query).await.unwrap(),
                    expected,
                    "{schema} {query:?}"
                );
            }
        }
    });
}

#[test]
fn no_plan_becomes_generic() {
    block_on(async {
        let (_database, _superuser, mut session) = database().await;
        let (mut runner, query) = (runner(), query());
        for statement in STATEMENTS {
            for _ in 0..8 {
                let query = asking_for(statement, &mut runner, &query);
                run(&mut session, statement.sql, &query).await.unwrap();
            }
        }
        let generic = "SELECT sum(generic_plans)::bigint, sum(custom_plans)::bigint FROM pg_prepared_statements \
                       WHERE cardinality(parameter_types) > 0";
        let plans: (i64, i64) = sqlx::query_as(generic).fetch_one(&mut session).await.unwrap();
        assert_eq!(plans.0, 0);
        assert!(plans.1 >= 8 * i64::try_from(STATEMENTS.len()).unwrap());
    });
}

/// A random query that the rule gives to this statement.
fn asking_for(
    statement: &Statement,
    runner: &mut TestRunner,
    queries: &impl Strategy<Value = MediaUsageQuery>,
) -> MediaUsageQuery {
    loop {
        let query = MediaUsageQuery {
            order_by: statement.order_by,
            dir: statement.dir,
            ..sample(queries, runner)
        };
        if Statement::for_query(&query, false) == Some(statement) {
            return query;
        }
    }
}

/// How many of the last [`MISTAKES`] no recorded answer can notice, because no case asks for it.
const NOT_RECORDED: usize = 4;

/// Ways to be wrong that a reader could overlook: what stands in the texts, and what instead.
const MISTAKES: [(&str, &str); 24] = [
    ("CASE WHEN users.user_id IS NULL THEN 0 ELSE users.files END", "users.files"),
    ("SELECT NULL, NULL, 0, (", "SELECT NULL, NULL, 1, ("),
    ("coalesce(sum(media_length), 0)::bigint", "sum(media_length)::bigint"),
    ("created_ts <= $4", "created_ts < $4"),
    ("created_ts > $3", "created_ts >= $3"),
    ("WHERE strpos(displayname, $5) > 0", "WHERE displayname LIKE '%' || $5 || '%'"),
    ("displayname, $5)", "displayname || lower(displayname) || upper(displayname), $5)"),
    ("THEN NULL ELSE users.user_id END", "THEN users.user_id END"),
    ("(SELECT count(*) FROM nobody)", "0"),
    ("strpos(user_id || ':', ':')", "length(user_id || ':')"),
    ("CASE WHEN left($5, 1) = '@'", "CASE WHEN false"),
    ("WHERE EXISTS (SELECT FROM local_media_repository WHERE user_id IS NULL)", "WHERE false"),
    ("LEFT JOIN profiles ON", "JOIN profiles ON"),
    ("LEFT JOIN (SELECT full_user_id", "JOIN (SELECT full_user_id"),
    ("SELECT count(*) AS total FROM found", "SELECT count(user_id) AS total FROM found"),
    (", user_id COLLATE \"C\" ASC NULLS LAST", ", user_id COLLATE \"C\" DESC NULLS LAST"),
    ("LIMIT $1 OFFSET $2", "LIMIT $1 OFFSET $2 + 1"),
    ("walk.user_ids[cardinality(walk.user_ids)]", "walk.user_ids[1] || '!'"),
    ("SELECT DISTINCT ahead.user_id", "SELECT ahead.user_id"),
    ("NULLS", "NULLS"),
    ("split_part(substr(users.user_id, 2), ':', 1)", "users.user_id"),
    ("AND left(users.user_id, 1) = '@'", ""),
    ("strpos(profile.displayname, $5) > 0", "profile.displayname ILIKE '%' || $5 || '%'"),
    (" OR strpos(full_user_id, $5) > 0 OFFSET 0", " OFFSET 0"),
];

/// The texts that a mistake makes of the statements.
fn mistaken(needle: &str, replacement: &str) -> Vec<(&'static Statement, String)> {
    let swapped = |sql: &str| {
        sql.replace("NULLS FIRST", "NULLS ?")
            .replace("NULLS LAST", "NULLS FIRST")
            .replace("NULLS ?", "NULLS LAST")
    };
    STATEMENTS
        .iter()
        .filter(|statement| statement.sql.contains(needle))
        .map(|statement| {
            let sql = if needle == "NULLS" {
                swapped(statement.sql)
            } else {
                statement.sql.replace(needle, replacement)
            };
            (statement, sql)
        })
        .collect()
}

#[test]
fn the_reference_disagrees_with_a_wrong_statement() {
    block_on(async {
        let (_database, mut superuser, mut session) = database().await;
        for (needle, replacement) in MISTAKES {
            let texts = mistaken(needle, replacement);
            assert!(!texts.is_empty(), "no statement contains {needle:?}");
            let (mut runner, rows, query) = (runner(), rows(), query());
            let mut noticed = false;
            for _ in 0..100 {
                load(&mut superuser, &sample(&rows, &mut runner)).await;
                for (statement, sql) in &texts {
                    let query = asking_for(statement, &mut runner, &query);
                    let expected = reference(&mut session, &query).await;
                    noticed |= run(&mut session, sql, &query).await.ok() != Some(expected);
                }
                if noticed {
                    break;
                }
            }
            assert!(noticed, "nobody notices {replacement:?} for {needle:?}");
        }
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
        for (needle, replacement) in &MISTAKES[..MISTAKES.len() - NOT_RECORDED] {
            let texts = mistaken(needle, replacement);
            let mut noticed = false;
            for (case, query, small) in
                pages.iter().flat_map(|(case, query)| [(case, query, true), (case, query, false)])
            {
                let wanted = Statement::for_query(query, small).unwrap();
                let Some((_, sql)) = texts.iter().find(|(statement, _)| *statement == wanted)
                else {
                    continue;
                };
                let body = &case.expect.as_ref().unwrap().body;
                let answer = run(&mut session, sql, query).await.ok();
                noticed |= answer.is_none_or(|answer| {
                    serde_json::to_value(&answer.users).unwrap() != body["users"]
                        || answer.total != body["total"]
                });
            }
            assert!(noticed, "no recorded answer notices {replacement:?} for {needle:?}");
        }
    });
}
