//! Plans as facts: what each statement's header promises, on data large enough to matter.

use serde_json::Value;
use sqlx::{PgConnection, Row};
use synapse_media_usage::{
    query::{Args, MediaUsageQuery},
    statement::{Shape, Statement},
};

use crate::support::{
    block_on,
    database::Database,
    documentation::block,
    read,
    statement::{bound, page, text},
};

/// A scan that was really made: an arm of a choice that was not taken has none.
#[derive(Debug)]
struct Scan {
    table: String,
    /// `None` for a sequential scan.
    index: Option<String>,
    times: u64,
}

/// Executes the statement of a query as the function does, and returns its scans of tables.
async fn scans(session: &mut PgConnection, query: &MediaUsageQuery) -> Vec<Scan> {
    let sql = page(Shape::for_query(query, false));
    let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}");
    let row = bound(&explain, query).fetch_one(session).await.unwrap();
    let plan: Value = row.get(0);
    let mut scans = Vec::new();
    collect(&plan[0]["Plan"], &mut scans);
    scans
}

fn collect(node: &Value, scans: &mut Vec<Scan>) {
    let times = node["Actual Loops"].as_u64().unwrap();
    let text = |name: &str| node[name].as_str().map(str::to_owned);
    if times > 0 && node["Node Type"] == "Bitmap Index Scan" {
        // Its heap scan, which has the table's name, is a node of its own.
        scans.push(Scan {
            table: "local_media_repository".to_owned(),
            index: text("Index Name"),
            times,
        });
    } else if times > 0 && node["Node Type"] != "Bitmap Heap Scan" {
        scans.extend(text("Relation Name").map(|table| Scan {
            table,
            index: text("Index Name"),
            times,
        }));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        collect(child, scans);
    }
}

const USERS: u64 = 3_000;
const PAGE: u64 = 20;

async fn database() -> Database {
    let database = Database::new("synapse-94").await;
    let settings =
        format!("SET bench.kind = 'M'; SET bench.media = 100000; SET bench.users = {USERS};");
    database.run(&format!("{settings}{}", read("tests/bench/data.sql"))).await;
    database.run("VACUUM ANALYZE").await;
    database
}

#[test]
fn every_statement_keeps_the_promises_of_its_header() {
    block_on(async {
        let database = database().await;
        let mut session = database.session().await;
        for order in [
            "order_by=user_id",
            "order_by=user_id&dir=b",
            "order_by=displayname",
            "order_by=displayname&dir=b",
            "order_by=media_length",
            "order_by=media_length&dir=b",
            "order_by=media_count",
            "order_by=media_count&dir=b",
        ] {
            for (filters, few) in [
                ("", false),
                ("&from=1500", false),
                ("&from_ts=1748500000000", false), // the last 1 %
                ("&search_term=ab12", true),
                ("&search_term=e", false),
                ("&search_term=e&from_ts=1748500000000", false),
            ] {
                let text = format!("{order}&limit={PAGE}{filters}");
                let query = MediaUsageQuery::parse(&Args::parse(&text)).unwrap();
                let scans = scans(&mut session, &query).await;
                let of = |table: &str| {
                    scans.iter().filter(|scan| scan.table == table).collect::<Vec<_>>()
                };
                let (media, profiles) = (of("local_media_repository"), of("profiles"));

                // Profiles are looked up for a page or a handful of matches, else read as a whole.
                for scan in profiles {
                    let most = if scan.index.is_some() { 100 } else { 3 };
                    assert!(scan.times <= most, "{text}: {scan:?}");
                }
                let by_index = media
                    .iter()
                    .all(|scan| scan.index.as_deref() == Some("users_have_local_media"));
                match Shape::for_query(&query, false) {
                    Shape::Walk | Shape::Counts => assert!(by_index, "{text}: {media:?}"),
                    Shape::Search if few => assert!(by_index, "{text}: {media:?}"),
                    // One pass, by whichever parallel workers there are.
                    Shape::OnePass | Shape::Search => {
                        assert!(media.len() == 1 && media[0].times <= 3, "{text}: {media:?}");
                    }
                }
                if let Shape::Walk = Shape::for_query(&query, false) {
                    // Far fewer steps than users, and one look for each user of the page.
                    let times: u64 = media.iter().map(|scan| scan.times).sum();
                    assert!(times < USERS / 2, "{text}: {times} scans");
                }
            }
        }
    });
}

#[test]
fn each_lookup_goes_by_unique_indexes() {
    block_on(async {
        let database = Database::of_conformance("synapse-94").await;
        database.run("GRANT SELECT ON devices, account_validity TO media_usage").await;
        let mut session = database.session().await;
        // There are too few rows for an index to pay.
        sqlx::raw_sql("SET enable_seqscan = off").execute(&mut session).await.unwrap();
        for (statement, parameters, indexes) in [
            (Statement::ACCESS_TOKEN, 1, &["access_tokens_token_key", "users_name_key"][..]),
            (Statement::USER, 1, &["users_name_key"]),
            (Statement::ACCOUNT_VALIDITY, 1, &["account_validity_pkey"]),
            (Statement::DEVICE, 2, &["users_name_key", "device_uniqueness"]),
        ] {
            let explain = format!("EXPLAIN {}", text(statement));
            let texts = std::iter::repeat_n("syt_admin_ok", parameters);
            let mut explain = sqlx::query_scalar::<_, String>(&explain);
            for text in texts {
                explain = explain.bind(text);
            }
            let plan = explain.bind(1_i64).fetch_all(&mut session).await.unwrap().join("\n");
            assert!(!plan.contains("Seq Scan"), "{plan}");
            for index in indexes {
                assert!(plan.contains(index), "{index}: {plan}");
            }
        }
    });
}

#[test]
fn the_optional_indexes_are_used_as_soon_as_they_are_there() {
    block_on(async {
        let database = database().await;
        let mut session = database.session().await;
        let index_of = |scans: Vec<Scan>| {
            let mut media = scans.into_iter().filter(|scan| scan.table == "local_media_repository");
            media.next().unwrap().index
        };
        for (index, create, text, before) in [
            (
                "media_usage_lengths",
                block("docs/performance.md", "CREATE INDEX CONCURRENTLY media_usage_lengths "),
                "order_by=media_length&dir=b&limit=20",
                None,
            ),
            (
                "media_usage_times",
                block("docs/performance.md", "CREATE INDEX CONCURRENTLY media_usage_times "),
                "order_by=media_length&dir=b&from_ts=1748500000000",
                Some("users_have_local_media"),
            ),
        ] {
            let query = MediaUsageQuery::parse(&Args::parse(text)).unwrap();
            assert_eq!(index_of(scans(&mut session, &query).await).as_deref(), before, "{text}");
            database.run(&create).await;
            assert_eq!(
                index_of(scans(&mut session, &query).await).as_deref(),
                Some(index),
                "{text}"
            );
        }
    });
}
