//! Walks by `next_token`: what one statement read ahead answers the pages that follow, and every page
//! is what it would be without that.

use std::{cell::Cell, time::Duration};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};
use synapse_media_usage::{
    config::Config,
    invocation::Invocation,
    page::{Budget, UserMedia},
    query::{Args, MediaUsageQuery},
    service::Service,
    statement::{Shape, Statement},
};

use crate::support::{
    NOW_MS, block_on,
    cases::request,
    conformance,
    database::Database,
    function::Function,
    gateway::Gateway,
    proxy::{Fault, Place, Plan, Proxy, Side},
    runner,
    statement::bound,
};

/// A database of so many users, each with a file whose length and age grow with the user id.
async fn database(users: usize, displayname: &str) -> Database {
    let database = Database::of_conformance("synapse-94").await;
    database.run(&rows(users, displayname)).await;
    database
}

/// What puts these users and files in the place of all others, in the order of the index, which fills up
/// sooner so.
fn rows(users: usize, displayname: &str) -> String {
    format!(
        "TRUNCATE profiles, local_media_repository;
         CREATE TEMPORARY TABLE names AS
           SELECT '@' || substr(md5(n::text), 1, 12) || lpad(n::text, 6, '0') || ':example.com' AS user_id, n
             FROM generate_series(1, {users}) AS n ORDER BY user_id;
         INSERT INTO local_media_repository (user_id, media_length, created_ts) SELECT user_id, n, n FROM names;
         INSERT INTO profiles (user_id, full_user_id, displayname) SELECT user_id, user_id, {displayname} FROM names;
         DROP TABLE names;
         ANALYZE local_media_repository"
    )
}

/// Displaynames such as people have.
const NAMES: &str = "'Member ' || substr(md5(n::text), 1, 12)";

fn event(query: &str) -> String {
    Gateway::HttpApi.event(&request(Some(query))).unwrap().to_string()
}

/// A page, asked for through a gateway and with the time that the function has for it.
fn page_within(function: &Function, gateway: Gateway, query: &str, within: Duration) -> Value {
    let event = gateway.event(&request(Some(query))).unwrap().to_string();
    let response = function.invoke_within(event.as_bytes(), within).unwrap();
    assert_eq!(response["statusCode"], 200, "{query}: {response}");
    serde_json::from_str(response["body"].as_str().unwrap()).unwrap()
}

fn page(function: &Function, query: &str) -> Value {
    page_within(function, Gateway::HttpApi, query, Duration::from_secs(28))
}

/// The pages of a walk, from the first to the last.
fn walk(function: &Function, gateway: Gateway, query: &str) -> Vec<Value> {
    let (mut pages, mut from) = (Vec::new(), Some(0));
    while let Some(token) = from {
        let query = format!("{query}&from={token}");
        let page = page_within(function, gateway, &query, Duration::from_secs(28));
        from = page["next_token"].as_i64();
        pages.push(page);
    }
    pages
}

fn users(pages: &[Value]) -> Vec<&Value> {
    pages.iter().flat_map(|page| page["users"].as_array().unwrap()).collect()
}

/// Where the pages came from by the log, and how many users were read ahead of each.
fn sources(log: &str) -> Vec<(String, Option<u64>)> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let pages = lines.filter(|line| line["status"] == 200);
    pages
        .map(|line| {
            let source = line["source"].as_str().unwrap().to_owned();
            let from_memory = if source == "memory" { 1.0 } else { 0.0 };
            assert_eq!(line["PagesFromMemory"], from_memory, "{line}");
            assert_eq!(line["shape"].is_null(), source == "memory", "{line}");
            (source, line["read_ahead"].as_u64())
        })
        .collect()
}

/// How many pages the database answered.
fn statements(log: &str) -> usize {
    sources(log).iter().filter(|(source, _)| source == "database").count()
}

#[test]
fn a_walk_takes_three_statements_and_a_page_from_memory_one_round_trip() {
    let database = block_on(database(3_000, NAMES));
    let proxy = Proxy::start();
    for (query, expected) in [
        ("order_by=user_id", 3_000),
        ("order_by=media_length&dir=b", 3_000),
        ("order_by=displayname&search_term=a", 0),
        ("order_by=media_count&from_ts=501", 2_500),
    ] {
        let function = Function::start(&[("DATABASE_URL", &proxy.url(&database))]);
        let whole = page(&function, &format!("{query}&limit=100000"));
        let expected = if expected == 0 { whole["total"].as_u64().unwrap() } else { expected };
        assert!(whole["total"] == expected && expected > 1_100, "{query}: {}", whole["total"]);
        let (mut pages, mut round_trips, mut from) = (Vec::new(), Vec::new(), Some(0));
        while let Some(token) = from {
            let before = proxy.round_trips();
            let page = page(&function, &format!("{query}&limit=50&from={token}"));
            round_trips.push(proxy.round_trips() - before);
            assert_eq!(page["total"], expected);
            from = page["next_token"].as_i64();
            pages.push(page);
        }
        assert_eq!(json!(users(&pages)), whole["users"], "{query}");
        let sources = sources(&function.stop()).split_off(1);
        let from_database: Vec<_> =
            (0..sources.len()).filter(|page| sources[*page].0 == "database").collect();
        // The second page reads a thousand users from the fiftieth on, the next all that follow.
        assert_eq!(from_database, [0, 1, 21], "{query}");
        let read_ahead: Vec<_> = from_database.iter().map(|page| sources[*page].1).collect();
        assert_eq!(read_ahead, [None, Some(1_000), Some(expected - 1_050)], "{query}");
        for (page, round_trips) in round_trips.iter().enumerate() {
            assert_eq!(*round_trips == 1, !from_database.contains(&page), "{query}: {page}");
        }
    }
}

#[test]
fn two_thousand_pages_take_eight_statements_and_less_than_64_mb() {
    for (users_in_all, most) in [(20_000, 5), (200_000, 8)] {
        let database = block_on(database(users_in_all, NAMES));
        // Longer than a busy machine takes.
        let function =
            Function::start(&[("DATABASE_URL", &database.url()), ("READ_AHEAD_SECONDS", "300")]);
        let pages = walk(&function, Gateway::HttpApi, "limit=100");
        let mut user_ids: Vec<_> =
            users(&pages).iter().map(|user| user["user_id"].as_str().unwrap()).collect();
        assert!(user_ids.is_sorted());
        user_ids.dedup();
        assert_eq!((user_ids.len(), pages.len()), (users_in_all, users_in_all / 100));
        assert!(function.peak_memory() < 64_000_000, "{}", function.peak_memory());
        let statements = statements(&function.stop());
        assert!(statements <= most, "{statements}");
    }
}

#[test]
fn walks_at_once_do_not_disturb_each_other() {
    let database = block_on(database(3_000, NAMES));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    // Two of the same question, one of them behind the other and with a limit of its own.
    let walks = ["limit=50", "limit=40", "limit=50&order_by=media_length", "limit=50&from_ts=9"];
    let mut from = walks.map(|_| Some(0));
    let mut seen: [Vec<Value>; 4] = Default::default();
    while from.iter().any(Option::is_some) {
        for (number, query) in walks.iter().enumerate() {
            if let Some(token) = from[number] {
                let page = page(&function, &format!("{query}&from={token}"));
                from[number] = page["next_token"].as_i64();
                seen[number].push(page);
            }
        }
    }
    assert_eq!(users(&seen[0]), users(&seen[1]));
    assert_eq!([0, 2].map(|walk| users(&seen[walk]).len()), [3_000; 2]);
    assert_eq!(users(&seen[3]).len(), 2_992);
    let statements = statements(&function.stop());
    assert!(statements <= 4 * 3, "{statements}");
}

#[test]
fn a_token_that_is_revoked_in_the_middle_of_a_walk_is_refused_at_the_next_page() {
    let database = block_on(database(500, NAMES));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    for from in [0, 10, 20] {
        page(&function, &format!("limit=10&from={from}"));
    }
    let ask = |from: i64| {
        let event = event(&format!("limit=10&from={from}"));
        let response = function.invoke(event.as_bytes()).unwrap();
        let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        (response["statusCode"].as_u64().unwrap(), body["errcode"].as_str().map(str::to_owned))
    };
    let refused = |errcode: &str| Some(errcode.to_owned());
    for (sql, answer) in [
        ("UPDATE access_tokens SET token = 'x' || token", (401, refused("M_UNKNOWN_TOKEN"))),
        ("UPDATE access_tokens SET token = substr(token, 2)", (200, None)),
        ("UPDATE users SET admin = 1 - admin", (403, refused("M_FORBIDDEN"))),
        ("UPDATE users SET admin = 1 - admin", (200, None)),
    ] {
        block_on(database.run(sql));
        assert_eq!(ask(30), answer, "{sql}");
    }
    let sources = sources(&function.stop());
    let sources: Vec<_> = sources.iter().map(|(source, _)| source.as_str()).collect();
    assert_eq!(sources, ["database", "database", "memory", "memory", "memory"]);
}

#[test]
fn pages_from_memory_end_where_the_budget_of_their_gateway_does() {
    // 1.2 kB in the body of an answer, and half as much again around it.
    let database = block_on(database(3_000, r#"repeat(E'\x01"\\', 100)"#));
    let functions = ["60", "0"].map(|seconds| {
        Function::start(&[("DATABASE_URL", &database.url()), ("READ_AHEAD_SECONDS", seconds)])
    });
    for gateway in [Gateway::LoadBalancer, Gateway::HttpApi] {
        // The limit is beyond what a load balancer's page has room for.
        let query = "order_by=media_length&dir=b&limit=800";
        let [with, without] =
            [&functions[0], &functions[1]].map(|function| walk(function, gateway, query));
        assert_eq!(users(&with).len(), 3_000);
        assert!(with == without, "{gateway:?}");
    }
    let [with, without] = functions.map(|function| sources(&function.stop()));
    assert!(without.iter().all(|it| *it == ("database".to_owned(), None)), "{without:?}");
    let from_memory = with.iter().filter(|(source, _)| source == "memory").count();
    assert!(from_memory >= 3, "{with:?}");
}

#[test]
fn where_reading_ahead_fails_the_page_alone_is_asked_for_and_nothing_is_kept() {
    let database = block_on(database(900, "repeat('x', 200)"));
    for fault in [Fault::Stall, Fault::Silence, Fault::Reset, Fault::Close] {
        let proxy = Proxy::start();
        let function = Function::start(&[("DATABASE_URL", &proxy.url(&database))]);
        let whole = page(&function, "limit=900");
        page(&function, "limit=10");
        // More than a page of ten users takes.
        proxy.plan(Plan { fault, place: Place::Byte(Side::Server, 30_000), once: true });
        let within = Duration::from_secs(6);
        let second = page_within(&function, Gateway::HttpApi, "limit=10&from=10", within);
        assert_eq!(proxy.strikes(), 1, "{fault:?}");
        proxy.heal();
        let third = page(&function, "limit=10&from=20");
        assert_eq!(
            json!(users(&[second, third])),
            json!(whole["users"].as_array().unwrap()[10..30])
        );
        let log = function.stop();
        let lines: Vec<Value> =
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let lines: Vec<_> = lines.iter().filter(|line| line["status"] == 200).collect();
        assert_eq!(
            (&lines[2]["source"], &lines[2]["read_ahead"]),
            (&json!("database"), &Value::Null),
            "{fault:?}"
        );
        assert_eq!(lines[2]["retries"], 1, "{fault:?}");
        if matches!(fault, Fault::Stall | Fault::Silence) {
            // Half of the invocation's time went by before.
            assert!(lines[2]["database_ms"].as_f64().unwrap() > 1_000.0, "{}", lines[2]);
        }
        assert_eq!(lines[3]["source"], "database", "{fault:?}");
    }
}

#[test]
fn where_the_server_refuses_to_read_ahead_the_page_alone_is_asked_for() {
    let database = block_on(database(900, "'x'"));
    // Of a user far behind the page the sum is too large. So many files are walked through.
    block_on(database.run(
        "ALTER TABLE local_media_repository ALTER media_length TYPE bigint;
         INSERT INTO local_media_repository (user_id, media_length)
           SELECT user_id, 9223372036854775807
             FROM (SELECT user_id FROM local_media_repository ORDER BY user_id OFFSET 500 LIMIT 1) AS one
                  CROSS JOIN generate_series(1, 2);
         INSERT INTO local_media_repository (user_id, media_length)
           SELECT '@~:example.com', 1 FROM generate_series(1, 40000);
         ANALYZE local_media_repository",
    ));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let pages = ["limit=10", "limit=10&from=10"].map(|query| page(&function, query));
    assert_eq!(users(&pages).len(), 20);
    let log = function.stop();
    assert_eq!(sources(&log), [("database".to_owned(), None), ("database".to_owned(), None)]);
    let second: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(second["retries"], 1);
}

/// What happens between two answers, or what is asked for.
#[derive(Debug, Clone)]
enum Step {
    /// The next page of a question's walk, or its first page again.
    Next { question: usize, limit: i64, load_balancer: bool },
    /// The first page, which begins the walk anew.
    Reload { question: usize, limit: i64 },
    /// Any page.
    Jump { question: usize, from: i64, limit: i64 },
    /// Users come, go, and upload.
    Change(i64),
    /// Time passes.
    Wait(i64),
    /// The clock is set back.
    SetBack(i64),
}

const QUESTIONS: [&str; 4] =
    ["order_by=user_id", "order_by=media_length&dir=b", "search_term=a1", "from_ts=700"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let question = || 0..QUESTIONS.len();
    let limit =
        || prop_oneof![1 => Just(0_i64), 20 => 1..40_i64, 5 => 100..400_i64, 1 => 1_000..2_000_i64];
    let next = (question(), limit(), any::<bool>());
    let step = prop_oneof![
        60 => next.prop_map(|(question, limit, load_balancer)| Step::Next { question, limit, load_balancer }),
        1 => (question(), limit()).prop_map(|(question, limit)| Step::Reload { question, limit }),
        4 => (question(), 0..1_600_i64, limit())
            .prop_map(|(question, from, limit)| Step::Jump { question, from, limit }),
        4 => (0..1_000_i64).prop_map(Step::Change),
        2 => (0..40_000_i64).prop_map(Step::Wait),
        1 => (0..90_000_i64).prop_map(Step::SetBack),
    ];
    proptest::collection::vec(step, 150)
}

/// A function, its database, and all that its database has been.
struct World {
    superuser: PgConnection,
    service: Service,
    /// All users that a query finds, as a list in JSON.
    users: String,
    now_ms: i64,
    /// By question: all users of each state of the database, and when it ended.
    states: Vec<[Vec<UserMedia>; 4]>,
    ends_ms: Vec<i64>,
    /// By question: the oldest state that a page may be of, and where its walk is.
    oldest: [usize; 4],
    next: [i64; 4],
    from_memory: usize,
}

impl World {
    /// One that begins with the same rows each time.
    async fn new(database: &Database) -> Self {
        database.run(&rows(1_400, NAMES)).await;
        let mut world = Self {
            superuser: database.superuser().await,
            service: database.service(),
            users: format!(
                "SELECT coalesce(json_agg(page) FILTER (WHERE on_page), '[]')::text FROM ({}) AS page",
                Statement::page(Shape::OnePass).in_schema("public")
            ),
            now_ms: NOW_MS,
            states: Vec::new(),
            ends_ms: Vec::new(),
            oldest: [0; 4],
            next: [0; 4],
            from_memory: 0,
        };
        world.remember().await;
        world
    }

    /// Reads what the database is now.
    async fn remember(&mut self) {
        let mut state: [Vec<UserMedia>; 4] = Default::default();
        for (question, state) in QUESTIONS.iter().zip(&mut state) {
            let query = format!("{question}&limit=100000");
            let query = MediaUsageQuery::parse(&Args::parse(&query)).unwrap();
            let users = bound(&self.users, &query).fetch_one(&mut self.superuser).await.unwrap();
            *state = serde_json::from_str(users.get(0)).unwrap();
        }
        self.states.push(state);
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Next { question, limit, load_balancer } => {
                let budget = if load_balancer { Budget::LOAD_BALANCER } else { Budget::INVOCATION };
                self.ask(question, self.next[question], limit, budget).await;
            }
            Step::Reload { question, limit } => {
                self.ask(question, 0, limit, Budget::INVOCATION).await;
            }
            Step::Jump { question, from, limit } => {
                self.ask(question, from, limit, Budget::INVOCATION).await;
            }
            Step::Change(seed) => {
                let sql = format!(
                    "DELETE FROM local_media_repository WHERE created_ts % 97 = {seed} % 97;
                     UPDATE local_media_repository SET media_length = media_length * {seed} % 7919;
                     INSERT INTO local_media_repository (user_id, media_length, created_ts)
                       SELECT '@' || substr(md5(n::text), 1, 12) || ':new', n, n
                         FROM generate_series({seed}, {seed} + 15) AS n"
                );
                sqlx::raw_sql(&sql).execute(&mut self.superuser).await.unwrap();
                self.ends_ms.push(self.now_ms);
                self.remember().await;
            }
            Step::Wait(ms) => self.now_ms += ms,
            Step::SetBack(ms) => {
                self.now_ms -= ms;
                // All that was before counts as of long ago.
                self.ends_ms.fill(i64::MIN);
            }
        }
    }

    /// Asks for a page, which is to be of one state of the last minute.
    async fn ask(&mut self, question: usize, from: i64, limit: i64, budget: Budget) {
        // Longer than a page takes, or the clock would seem to be set back.
        self.now_ms += 500;
        let query = format!("{}&from={from}&limit={limit}", QUESTIONS[question]);
        let Answer { users, total, next_token } =
            ask(&self.service, self.now_ms, &query, budget).await;
        let latest = self.states.len() - 1;
        if from == 0 {
            self.oldest[question] = latest;
        }
        let ends_ms = &self.ends_ms;
        let counts =
            |state: usize| ends_ms.get(state).is_none_or(|end| end + 60_000 >= self.now_ms);
        let states = (self.oldest[question]..=latest).filter(|state| counts(*state));
        let is_of = |state: &usize| {
            let all = &self.states[*state][question];
            let rest = all.iter().skip(usize::try_from(from).unwrap());
            let expected = rest.take(usize::try_from(limit).unwrap());
            all.len() == total && expected.eq(&users)
        };
        assert!(states.clone().any(|state| is_of(&state)), "{query}: {} of {total}", users.len());
        self.from_memory += usize::from(!is_of(&latest));
        self.next[question] = next_token.unwrap_or(0);
    }
}

/// What an answer holds.
#[derive(Deserialize)]
struct Answer {
    users: Vec<UserMedia>,
    total: usize,
    next_token: Option<i64>,
}

async fn ask(service: &Service, unix_ms: i64, query: &str, budget: Budget) -> Answer {
    let invocation = Invocation::new(unix_ms, Duration::from_mins(10));
    let request = conformance::request(&request(Some(query)));
    let answer = conformance::answer(service.respond(&request, budget, &invocation).await.0);
    assert_eq!(answer.status, 200, "{query}: {}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

#[test]
fn every_page_is_what_the_database_was_in_the_last_minute() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let old = Cell::new(0);
    runner(10)
        .run(&steps(), |steps| {
            let from_memory = block_on(async {
                let mut world = World::new(&database).await;
                for step in &steps {
                    world.take(step).await;
                }
                world.from_memory
            });
            old.set(old.get() + from_memory);
            Ok(())
        })
        .unwrap();
    // Or it would not tell anything.
    assert!(old.get() > 20, "{}", old.get());
}

#[test]
fn the_time_to_keep_is_an_integer_from_0_to_300() {
    for (value, is_right) in
        [("0", true), ("300", true), ("301", false), ("-1", false), ("1.5", false)]
    {
        let read = |name: &str| match name {
            "DATABASE_URL" => Some("postgres://localhost/synapse".to_owned()),
            "READ_AHEAD_SECONDS" => Some(value.to_owned()),
            _ => None,
        };
        let problem = Config::read(read).err().map(|problems| problems.join("; "));
        let expected = "READ_AHEAD_SECONDS must be an integer from 0 to 300".to_owned();
        assert_eq!(problem, (!is_right).then_some(expected), "{value}");
    }
}
