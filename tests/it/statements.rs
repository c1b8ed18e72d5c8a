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
    query::{Args, Direction, MediaUsageQuery, OrderBy, SearchTerm},
    statement::{STATEMENTS, Statement},
};

use crate::support::{
    block_on,
    cases::{Case, cases},
    database::Database,
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
    let rows = sqlx::query(sql)
        .bind(query.limit)
        .bind(query.from)
        .bind(query.window.after)
        .bind(query.window.until)
        .bind(query.search_term.as_ref().map(SearchTerm::expose))
        .fetch_all(connection)
        .await?;
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
    let term = proptest::string::string_regex(&format!("{PIECES}{{1,2}}")).unwrap();
    (
        (
            prop::sample::select(vec!["user_id", "displayname", "media_length", "media_count"]),
            prop::sample::select(vec!["f", "b"]),
        ),
        (
            prop_oneof![3 => Just(0), 2 => 0..30_i64, 1 => Just(i64::MAX)],
            prop_oneof![4 => 0..30_i64, 1 => Just(i64::MAX)],
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

/// The query as the given statement has to answer it.
fn ordered_by(query: &MediaUsageQuery, statement: &Statement) -> MediaUsageQuery {
    MediaUsageQuery { order_by: statement.order_by, dir: statement.dir, ..query.clone() }
}

#[test]
fn every_statement_answers_what_the_reference_answers() {
    block_on(async {
        let database = Database::new("synapse-94").await;
        let mut connection = database.superuser().await;
        let (mut runner, rows, query) = (runner(), rows(), query());
        for _ in 0..60 {
            let rows = sample(&rows, &mut runner);
            load(&mut connection, &rows).await;
            for statement in &STATEMENTS {
                for _ in 0..6 {
                    let query = ordered_by(&sample(&query, &mut runner), statement);
                    let expected = reference(&mut connection, &query).await;
                    let answer = run(&mut connection, statement.sql, &query).await.unwrap();
                    assert_eq!(answer, expected, "{query:?}\n{rows:?}\n{}", statement.sql);
                }
            }
        }
    });
}

/// Ways to be wrong that a reader could overlook.
const MISTAKES: [(&str, &str); 9] = [
    ("count(user_id)", "count(*)"),
    ("coalesce(sum(media_length), 0)", "sum(media_length)::bigint"),
    ("created_ts <= $4", "created_ts < $4"),
    ("created_ts > $3", "created_ts >= $3"),
    ("strpos(profiles.displayname, $5) > 0", "profiles.displayname LIKE '%' || $5 || '%'"),
    ("split_part(substr(media.user_id, 2), ':', 1)", "media.user_id"),
    ("LEFT JOIN profiles", "JOIN profiles"),
    (", user_id ASC NULLS LAST", ", user_id DESC NULLS LAST"),
    ("NULLS", "NULLS"),
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
        let database = Database::new("synapse-94").await;
        let mut connection = database.superuser().await;
        for (needle, replacement) in MISTAKES {
            let texts = mistaken(needle, replacement);
            assert!(!texts.is_empty(), "no statement contains {needle:?}");
            let (mut runner, rows, query) = (runner(), rows(), query());
            let mut noticed = false;
            for _ in 0..60 {
                load(&mut connection, &sample(&rows, &mut runner)).await;
                for (statement, sql) in &texts {
                    let query = ordered_by(&sample(&query, &mut runner), statement);
                    let expected = reference(&mut connection, &query).await;
                    noticed |= run(&mut connection, sql, &query).await.ok() != Some(expected);
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
        let mut connection = database.superuser().await;
        for (needle, replacement) in MISTAKES {
            let texts = mistaken(needle, replacement);
            let mut noticed = false;
            for (case, query) in &pages {
                let wanted = Statement::for_query(query);
                let Some((_, sql)) = texts.iter().find(|(statement, _)| *statement == wanted)
                else {
                    continue;
                };
                let body = &case.expect.as_ref().unwrap().body;
                let answer = run(&mut connection, sql, query).await.ok();
                noticed |= answer.is_none_or(|answer| {
                    serde_json::to_value(&answer.users).unwrap() != body["users"]
                        || answer.total != body["total"]
                });
            }
            assert!(noticed, "no recorded answer notices {replacement:?} for {needle:?}");
        }
    });
}
