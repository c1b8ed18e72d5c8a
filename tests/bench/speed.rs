//! Requests through the whole function, event in and answer out, against the two statements that
//! Synapse sends for each page, over the same driver to the same server.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};

use crate::{
    Scale, median, ms,
    support::{
        block_on,
        cases::Case,
        database::{Database, cluster},
        function::Function,
        gateway::Gateway,
        read,
    },
};

/// A request, as parameters of the endpoint.
struct Request {
    name: &'static str,
    order_by: &'static str,
    dir: &'static str,
    limit: i64,
    /// How deep the page is, as a part of all users.
    depth: f64,
    /// The last part of the time that counts; 1 for all.
    window: f64,
    search_term: Option<&'static str>,
}

const fn request(
    name: &'static str,
    order_by: &'static str,
    dir: &'static str,
    limit: i64,
) -> Request {
    Request { name, order_by, dir, limit, depth: 0.0, window: 1.0, search_term: None }
}

/// A term that a handful of the bench's users match, and one that nearly all do.
const FEW: &str = "ab12";
const MOST: &str = "e";

fn requests() -> Vec<Request> {
    let mut requests = vec![
        request("first 50", "media_length", "b", 50),
        Request { depth: 0.6, ..request("at 60 %", "media_length", "b", 50) },
        request("first 100", "user_id", "f", 100),
        Request { depth: 0.6, ..request("at 60 %", "user_id", "f", 100) },
        request("first 1000", "user_id", "f", 1000),
        request("first 100", "displayname", "f", 100),
        Request { depth: 0.6, ..request("at 60 %", "displayname", "b", 100) },
        request("first 100", "media_count", "f", 100),
        request("first 100", "media_count", "b", 100),
        Request { depth: 0.6, ..request("at 60 %", "media_count", "b", 100) },
    ];
    for (order_by, dir) in [
        ("media_length", "b"),
        ("user_id", "f"),
        ("displayname", "f"),
        ("media_count", "f"),
        ("media_count", "b"),
    ] {
        requests
            .push(Request { window: 0.01, ..request("last 1 % of the time", order_by, dir, 100) });
        requests.push(Request {
            search_term: Some(FEW),
            ..request("search: few match", order_by, dir, 100)
        });
        requests.push(Request {
            search_term: Some(MOST),
            ..request("search: most match", order_by, dir, 100)
        });
    }
    requests.push(Request {
        window: 0.3,
        search_term: Some(MOST),
        ..request("last 30 %, most match", "media_length", "b", 100)
    });
    requests.push(Request {
        window: 0.3,
        search_term: Some(FEW),
        ..request("last 30 %, few match", "user_id", "f", 100)
    });
    requests
}

pub fn run(scale: &Scale) {
    for set in &scale.sets {
        if set == "SIZES" {
            first_pages(scale);
            continue;
        }
        let (media, users) = match (&**set, scale.smoke) {
            (_, true) => (3_000, 100),
            ("L", _) => (20_000_000, 200_000),
            ("X", _) => (2_000_000, 1_000_000),
            ("SINGLES", _) => (1_000_000, 1_000_000),
            _ => (2_000_000, 20_000),
        };
        let (database, facts) = block_on(prepare(set, media, users));
        println!("\n## {set}: {} users with media\n", facts.0);
        let function = Function::start(&[
            ("DATABASE_URL", &database.url()),
            ("STATEMENT_TIMEOUT_MS", "600000"),
        ]);
        table(requests().iter(), &database, &function, facts, scale.rounds);
        if matches!(set.as_str(), "M" | "L") {
            whole_walks(set, &database, facts);
        }
        if set == "M" {
            for (of, index, asks_for_it) in OPTIONAL_INDEXES {
                block_on(
                    database.run(&format!(
                        "CREATE INDEX media_usage ON local_media_repository {index}"
                    )),
                );
                let sizes = block_on(index_sizes(&database));
                println!("\n## M with an optional index, {of}: {sizes}\n");
                let requests = requests();
                let requests = requests.iter().filter(|request| asks_for_it(request));
                table(requests, &database, &function, facts, scale.rounds);
                block_on(database.run("DROP INDEX media_usage"));
            }
        }
        function.stop();
    }
}

/// The page that every admin UI asks first, on M with fewer and more files: from how many on the
/// optional index pays.
fn first_pages(scale: &Scale) {
    const INDEX: &str = OPTIONAL_INDEXES[0].1;
    let sizes: &[i64] =
        if scale.smoke { &[3_000] } else { &[100_000, 500_000, 2_000_000, 8_000_000] };
    println!(
        "\n## The first page by media_length, 50 users, without and with the optional index\n"
    );
    println!("| files | users with media | without, ms | with, ms | times faster |");
    println!("|---|---|---|---|---|");
    for media in sizes {
        let (database, facts) = block_on(prepare("M", *media, media / 100));
        let function = Function::start(&[("DATABASE_URL", &database.url())]);
        let event = event(&query(&request("", "media_length", "b", 50), 0, (facts.1, facts.2)).0);
        let page = || {
            let time = |_| {
                let (time, answer) = function.timed(event.as_bytes());
                assert_eq!(answer.unwrap()["statusCode"], 200);
                time
            };
            ms(median((0..=scale.rounds).map(time).skip(1).collect()))
        };
        let without = page();
        let create = format!("CREATE INDEX media_usage ON local_media_repository {INDEX}");
        block_on(database.run(&create));
        let with = page();
        block_on(database.run("DROP INDEX media_usage"));
        function.stop();
        let (users, times) = (facts.0, without / with);
        println!("| {media} | {users} | {without:.1} | {with:.1} | {times:.1} |");
    }
}

/// What it is of, its definition, and which requests it is for.
type OptionalIndex = (&'static str, &'static str, fn(&Request) -> bool);

/// The indexes that pay; the statements use them where they are.
const OPTIONAL_INDEXES: [OptionalIndex; 2] = [
    ("of lengths", "(user_id) INCLUDE (media_length)", |request| {
        request.order_by == "media_length"
    }),
    ("of times", "USING brin (created_ts)", |request| request.window < 1.0),
];

async fn index_sizes(database: &Database) -> String {
    let sizes = "SELECT format('%s beside a table of %s', pg_size_pretty(pg_relation_size('media_usage')), \
                 pg_size_pretty(pg_relation_size('local_media_repository')))";
    let mut superuser = database.superuser().await;
    sqlx::query_scalar(sizes).fetch_one(&mut superuser).await.unwrap()
}

fn table<'a>(
    requests: impl Iterator<Item = &'a Request>,
    database: &Database,
    function: &Function,
    facts: (i64, i64, i64),
    rounds: usize,
) {
    println!(
        "| order_by | dir | request | Synapse's statements, ms | the function, ms | times faster |"
    );
    println!("|---|---|---|---|---|---|");
    for request in requests {
        measure(request, database, function, facts, rounds);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "rough sizes")]
fn measure(
    request: &Request,
    database: &Database,
    function: &Function,
    (users, first_ts, last_ts): (i64, i64, i64),
    rounds: usize,
) {
    let from = (users as f64 * request.depth) as i64;
    let (query, from_ts) = query(request, from, (first_ts, last_ts));
    let event = event(&query);
    let synapse = synapse_statements(request, from, from_ts);

    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    block_on(async {
        let mut connection = synapse_connection(database).await;
        for _ in 0..rounds {
            let start = Instant::now();
            let count: i64 =
                sqlx::query_scalar(&synapse[0]).fetch_one(&mut connection).await.unwrap();
            let page = sqlx::query(&synapse[1]).fetch_all(&mut connection).await.unwrap();
            theirs.push(start.elapsed());
            let (time, answer) = function.timed(event.as_bytes());
            ours.push(time);
            let answer = answer.unwrap();
            let body: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
            assert_eq!(body["total"], count, "{query}");
            assert_eq!(body["users"].as_array().unwrap().len(), page.len(), "{query}");
        }
        connection.close().await.unwrap();
    });
    let (theirs, ours) = (median(theirs), median(ours));
    println!(
        "| {} | {} | {} | {:.1} | {:.1} | {:.1} |",
        request.order_by,
        request.dir,
        request.name,
        ms(theirs),
        ms(ours),
        ms(theirs) / ms(ours)
    );
}

/// The query string of a request from a depth on, and the time from which media count.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "rough sizes")]
fn query(request: &Request, from: i64, (first_ts, last_ts): (i64, i64)) -> (String, Option<i64>) {
    let from_ts = (request.window < 1.0)
        .then(|| last_ts - ((last_ts - first_ts) as f64 * request.window) as i64);
    let mut query = format!(
        "from={from}&limit={}&order_by={}&dir={}",
        request.limit, request.order_by, request.dir
    );
    query.extend(from_ts.map(|from_ts| format!("&from_ts={from_ts}")));
    query.extend(request.search_term.map(|term| format!("&search_term={term}")));
    (query, from_ts)
}

async fn synapse_connection(database: &Database) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(cluster().port)
        .username("media_usage")
        .password("p@ss/word")
        .database(&database.name)
        // The role's own limit is the function's, and on L Synapse's statements take longer.
        .options([("statement_timeout", "0")]);
    PgConnection::connect_with(&options).await.unwrap()
}

/// Walks through all pages, beside Synapse's statements at sampled depths times the pages.
fn whole_walks(set: &str, database: &Database, (_, first_ts, last_ts): (i64, i64, i64)) {
    const SAMPLES: usize = 5;
    let walks = [
        request("all", "user_id", "f", 100),
        request("all", "media_length", "b", 50),
        Request { search_term: Some(MOST), ..request("search: most match", "user_id", "f", 100) },
        Request { window: 0.3, ..request("last 30 % of the time", "media_length", "b", 100) },
    ];
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let mut rows = Vec::new();
    for request in &walks {
        let (mut from, mut depths, mut ours) = (Some(0), Vec::new(), Duration::ZERO);
        while let Some(depth) = from {
            let (query, _) = query(request, depth, (first_ts, last_ts));
            let (time, answer) = function.timed(event(&query).as_bytes());
            let body: Value =
                serde_json::from_str(answer.unwrap()["body"].as_str().unwrap()).unwrap();
            (ours, from) = (ours + time, body["next_token"].as_i64());
            depths.push(depth);
        }
        let theirs = block_on(async {
            let mut connection = synapse_connection(database).await;
            let start = Instant::now();
            for sample in 0..SAMPLES {
                let depth = depths[(depths.len() - 1) * sample / (SAMPLES - 1)];
                let (_, from_ts) = query(request, depth, (first_ts, last_ts));
                for statement in synapse_statements(request, depth, from_ts) {
                    sqlx::query(&statement).fetch_all(&mut connection).await.unwrap();
                }
            }
            let time = start.elapsed() / u32::try_from(SAMPLES).unwrap();
            connection.close().await.unwrap();
            time * u32::try_from(depths.len()).unwrap()
        });
        rows.push((request, depths.len(), theirs.as_secs_f64(), ours.as_secs_f64()));
    }
    let memory = function.peak_memory() / 1_000_000;
    let log = function.stop();
    let mut lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    println!("\n## Whole walks, {set}: peak resident memory {memory} MB\n");
    println!(
        "| order_by | dir | limit | walk | pages | page statements | Synapse's statements, s | the function, s | times faster |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (Request { order_by, dir, limit, name, .. }, pages, theirs, ours) in rows {
        let sources = lines.by_ref().take(pages).map(|line| line["source"] == "database");
        let statements = sources.filter(|is| *is).count();
        let times = theirs / ours;
        println!(
            "| {order_by} | {dir} | {limit} | {name} | {pages} | {statements} | {theirs:.1} | {ours:.2} | {times:.0} |"
        );
    }
}

/// Count and page as Synapse asks for them (`get_users_media_usage_paginate`): the same groups
/// twice, over all media joined to profiles.
fn synapse_statements(request: &Request, from: i64, from_ts: Option<i64>) -> [String; 2] {
    let mut conditions = Vec::new();
    conditions.extend(from_ts.map(|from_ts| format!("media.created_ts >= {from_ts}")));
    conditions.extend(
        request.search_term.map(|term| {
            format!("(media.user_id LIKE '@%{term}%:%' OR displayname LIKE '%{term}%')")
        }),
    );
    let conditions = if conditions.is_empty() {
        String::new()
    } else {
        format!("WHERE {}", conditions.join(" AND "))
    };
    let groups = format!(
        "FROM local_media_repository AS media LEFT JOIN profiles ON media.user_id = profiles.full_user_id \
         {conditions} GROUP BY media.user_id, displayname"
    );
    let key = if request.order_by == "user_id" { "media.user_id" } else { request.order_by };
    let dir = if request.dir == "f" { "ASC" } else { "DESC" };
    [
        format!("SELECT count(*) FROM (SELECT media.user_id {groups}) AS groups"),
        format!(
            "SELECT media.user_id, displayname, count(media.user_id) AS media_count, sum(media_length) AS media_length \
             {groups} ORDER BY {key} {dir} LIMIT {} OFFSET {from}",
            request.limit
        ),
    ]
}

/// An event of an admin with the given query string.
pub fn event(query: &str) -> String {
    let case: Case = serde_json::from_value(serde_json::json!({
        "name": "bench",
        "method": "GET",
        "path": synapse_media_usage::service::PATH,
        "query": query,
        "headers": [["Authorization", "Bearer bench"]],
    }))
    .unwrap();
    Gateway::HttpApi.event(&case).unwrap().to_string()
}

/// The admin who asks.
pub const ADMIN: &str = "INSERT INTO users (name, admin) VALUES ('@bench:example.com', 1);
    INSERT INTO access_tokens (id, user_id, token) VALUES (1, '@bench:example.com', 'bench');";

/// The database of a data set, made if it is not there yet, and its number of users and times.
async fn prepare(set: &str, media: i64, users: i64) -> (Database, (i64, i64, i64)) {
    let (database, is_new) = Database::kept(&format!("bench_{}_{media}", set.to_lowercase())).await;
    if is_new {
        eprintln!("making {set}: {media} files");
        let kind = if set == "L" { "M" } else { set };
        let settings = format!(
            "SET bench.kind = '{kind}'; SET bench.media = {media}; SET bench.users = {users};"
        );
        database.run(&format!("{ADMIN}{settings}{}", read("tests/bench/data.sql"))).await;
        match set {
            "RAW" => {}
            "STALE" => {
                let update = "UPDATE local_media_repository SET last_access_ts = 0 WHERE hashint8extended(created_ts, 5) % 10 = 0";
                database.run("ANALYZE").await;
                database.run(update).await;
            }
            _ => database.run("VACUUM ANALYZE").await,
        }
        database.run("CHECKPOINT").await;
        database.complete().await;
    }
    let mut superuser = database.superuser().await;
    let facts = "SELECT count(DISTINCT user_id), min(created_ts), max(created_ts) FROM local_media_repository";
    let row = sqlx::query(facts).fetch_one(&mut superuser).await.unwrap();
    (database, (row.get(0), row.get(1), row.get(2)))
}
