//! An admin who clicks faster than pages come: no page and no preflight is refused for it.

use std::{thread, time::Duration};

use serde_json::json;
use synapse_media_usage::service::PATH;

use crate::support::{
    block_on,
    cases::Case,
    database::Database,
    function::Function,
    gateway::Gateway,
    http_api::Mood,
    read,
    reverse_proxy::{Proxy, Split},
};

const CLICKS: usize = 10;
const ORIGIN: (&str, &str) = ("Origin", "https://admin.example.org");
const ADMIN: (&str, &str) = ("Authorization", "Bearer syt_admin_ok");
const PREFLIGHT: [(&str, &str); 3] = [
    ORIGIN,
    ("Access-Control-Request-Method", "GET"),
    ("Access-Control-Request-Headers", "authorization"),
];

/// How many requests the template lets run at once unless told otherwise.
fn reserved_concurrency() -> usize {
    let template = read("template.yaml");
    let (_, parameter) = template.split_once("\n  ReservedConcurrency:\n").unwrap();
    let (_, default) = parameter.split_once("    Default: ").unwrap();
    default.lines().next().unwrap().parse().unwrap()
}

#[test]
fn ten_clicks_in_a_row_are_ten_pages() {
    let database = block_on(Database::of_conformance("synapse-94"));
    for proxy in Proxy::available() {
        let split = Split::with_concurrency(reserved_concurrency(), &database, proxy, |text| text);
        // As synapse-admin does: it cancels no request, and a browser asks before each.
        let click = &|number: usize| {
            let target = format!("{PATH}?from={}&limit=5&order_by=media_length&dir=b", 5 * number);
            let client = &split.running.client;
            let preflight = client.send("OPTIONS", &target, &PREFLIGHT, "");
            let page = client.send("GET", &target, &[ORIGIN, ADMIN], "");
            (preflight.status(), page.status())
        };
        let statuses: Vec<_> = thread::scope(|scope| {
            block_on(async {
                // As long as somebody locks the table, no page comes.
                let mut locking = database.superuser().await;
                let lock = "BEGIN; LOCK local_media_repository";
                sqlx::raw_sql(lock).execute(&mut locking).await.unwrap();
                let clicks: Vec<_> = (0..CLICKS)
                    .map(|number| {
                        thread::sleep(Duration::from_millis(150));
                        scope.spawn(move || click(number))
                    })
                    .collect();
                let mut methods = Vec::new();
                while methods.len() < CLICKS {
                    let events = split.surroundings.api.events();
                    methods.extend(
                        events
                            .iter()
                            .map(|event| event["requestContext"]["http"]["method"].clone()),
                    );
                    thread::sleep(Duration::from_millis(5));
                }
                assert_eq!(methods, vec![json!("GET"); CLICKS], "{proxy:?}");
                sqlx::raw_sql("COMMIT").execute(&mut locking).await.unwrap();
                clicks.into_iter().map(|click| click.join().unwrap()).collect()
            })
        });
        assert_eq!(statuses, [(204, 200); CLICKS], "{proxy:?}");
    }
}

#[test]
fn a_proxy_answers_preflights_as_the_function_does() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let case: Case = serde_json::from_value(json!({
        "name": "preflight", "method": "OPTIONS", "path": PATH, "query": null, "headers": PREFLIGHT,
    }))
    .unwrap();
    let event = Gateway::HttpApi.event(&case).unwrap().to_string();
    let expected = Gateway::HttpApi.answer(&function.invoke(event.as_bytes()).unwrap());
    function.stop();
    let is_cors = |name: &str| name.starts_with("access-control-");
    let cors: Vec<_> = expected.headers.iter().filter(|(name, _)| is_cors(name)).collect();
    assert_eq!((expected.status, cors.len()), (204, 4), "{:?}", expected.headers);

    for split in Split::of_each_proxy() {
        // Where the API would refuse it.
        *split.surroundings.api.mood() = Mood::Fails(503);
        for (target, headers) in [
            (PATH.to_owned(), &PREFLIGHT[..]),
            (format!("{PATH}?limit=1"), &PREFLIGHT),
            (PATH.to_owned(), &[]),
        ] {
            let answer = split.running.client.send("OPTIONS", &target, headers, "");
            assert_eq!(answer.status(), 204, "{:?}", split.proxy);
            let mut found: Vec<_> =
                answer.headers.iter().filter(|(name, _)| is_cors(name)).cloned().collect();
            found.sort();
            let expected: Vec<_> =
                cors.iter().map(|(name, value)| ((*name).clone(), (*value).clone())).collect();
            assert_eq!(found, expected, "{:?}", split.proxy);
        }
    }
}
