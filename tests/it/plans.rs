//! Plans as facts: what each statement's header promises, on data large enough to matter.

use serde_json::Value;
use sqlx::{PgConnection, Row};
use synapse_media_usage::{
    query::{Args, Direction, MediaUsageQuery, OrderBy},
    statement::Shape,
};

use crate::{
    statements::STATEMENTS,
    support::{block_on, database::Database, read},
};

/// A scan that was really made: an arm of a choice that was not taken has none.
#[derive(Debug)]
struct Scan {
    table: String,
    /// `None` for a sequential scan.
    index: Option<String>,
    times: u64,
}

/// Executes the statement of a query as the function does, prepared, and returns its plan.
async fn plan(session: &mut PgConnection, query: &MediaUsageQuery) -> Value {
    let text = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
    let term = query.search_term.as_ref().map(|term| format!("'{}'", term.expose()));
    let sql = format!(
        "PREPARE page (bigint, bigint, bigint, bigint, text, text, boolean) AS {};
         EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page ({}, {}, {}, {}, {}, '{}', {});
         DEALLOCATE page",
        STATEMENTS.page(Shape::for_query(query, false)),
        query.limit,
        query.from,
        text(query.window.after.map(|after| after.to_string())),
        text(query.window.until.map(|until| until.to_string())),
        text(term),
        query.order_by.as_str(),
        query.dir == Direction::Backwards,
    );
    let row = sqlx::raw_sql(&sql).fetch_one(session).await.unwrap();
    row.get::<Value, _>(0)[0]["Plan"].take()
}

/// Its scans of tables.
async fn scans(session: &mut PgConnection, query: &MediaUsageQuery) -> Vec<Scan> {
    let mut scans = Vec::new();
    collect(&plan(session, query).await, &mut scans);
    scans
}

/// The keys of the sort that cuts the page: the only one below a limit that sorts by bytes or by
/// what the media sum up to.
fn sort_keys(node: &Value) -> Option<Vec<String>> {
    let children = || node["Plans"].as_array().into_iter().flatten();
    if node["Node Type"] == "Limit" {
        let sort = children().find(|child| child["Node Type"] == "Sort");
        if let Some(keys) = sort.and_then(|sort| sort["Sort Key"].as_array()) {
            return Some(keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect());
        }
    }
    children().find_map(sort_keys)
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

                // Only an order by name or a search looks at more names than the page's.
                if filters.contains("search_term") || query.order_by == OrderBy::Displayname {
                    assert!(profiles.len() > 1, "{text}: {profiles:?}");
                } else {
                    assert_eq!(profiles.len(), 1, "{text}: {profiles:?}");
                }
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
fn an_order_that_is_not_asked_for_is_not_in_the_plan() {
    block_on(async {
        let database = database().await;
        let mut session = database.session().await;
        for (order, keys) in
            [("user_id", 1), ("displayname", 2), ("media_length", 2), ("media_count", 2)]
        {
            for dir in ["f", "b"] {
                for filters in ["", "&from_ts=1748500000000", "&search_term=ab12", "&limit=1001"] {
                    let text = format!("order_by={order}&dir={dir}{filters}");
                    let query = MediaUsageQuery::parse(&Args::parse(&text)).unwrap();
                    let found = sort_keys(&plan(&mut session, &query).await).unwrap();
                    // Backwards, a user's id is both the key and what decides between equals.
                    let expected = if (order, dir) == ("user_id", "b") { 2 } else { keys };
                    assert!(found.len() <= expected, "{text}: {found:?}");
                    assert!(!found.iter().any(|key| key.contains("CASE")), "{text}: {found:?}");
                    let descends = found[0].contains("DESC");
                    assert_eq!(descends, dir == "b", "{text}: {found:?}");
                }
            }
        }
        // That is the setting's merit.
        sqlx::raw_sql("SET plan_cache_mode = force_generic_plan")
            .execute(&mut session)
            .await
            .unwrap();
        let query = MediaUsageQuery::parse(&Args::parse("order_by=media_length&dir=b")).unwrap();
        let found = sort_keys(&plan(&mut session, &query).await).unwrap();
        assert_eq!(found.len(), 8, "{found:?}");
    });
}

#[test]
fn the_optional_indexes_are_used_as_soon_as_they_are_there() {
    block_on(async {
        let database = database().await;
        let mut session = database.session().await;
        let readme = read("README.md");
        let index_of = |scans: Vec<Scan>| {
            let mut media = scans.into_iter().filter(|scan| scan.table == "local_media_repository");
            media.next().unwrap().index
        };
        for (index, text, before) in [
            ("media_usage_lengths", "order_by=media_length&dir=b&limit=20", None),
            (
                "media_usage_times",
                "order_by=media_length&dir=b&from_ts=1748500000000",
                Some("users_have_local_media"),
            ),
        ] {
            let query = MediaUsageQuery::parse(&Args::parse(text)).unwrap();
            assert_eq!(index_of(scans(&mut session, &query).await).as_deref(), before, "{text}");
            let create = format!("CREATE INDEX CONCURRENTLY {index} ");
            database.run(readme.lines().find(|line| line.starts_with(&create)).unwrap()).await;
            assert_eq!(
                index_of(scans(&mut session, &query).await).as_deref(),
                Some(index),
                "{text}"
            );
        }
    });
}
