//! Pages that would outgrow what a Lambda may answer end earlier, and a walk still visits every
//! user once.

use serde_json::Value;

use crate::support::{
    block_on,
    cases::request,
    database::Database,
    function::{Function, ask},
    gateway::Gateway,
};

const USERS: usize = 9_000;

/// Users with ids of 255 bytes and displaynames that JSON, and then JSON again, escapes: one
/// group of three characters takes 10 bytes in the body and 15 in the response.
async fn database() -> Database {
    let database = Database::of_conformance("synapse-94").await;
    let sql = format!(
        "TRUNCATE profiles, local_media_repository;
         CREATE TEMPORARY TABLE names AS
           SELECT '@' || lpad(n::text, 242, '0') || ':example.org' AS user_id, n FROM generate_series(1, {USERS}) AS n;
         INSERT INTO local_media_repository (user_id, media_length, created_ts) SELECT user_id, n, n FROM names;
         INSERT INTO profiles (user_id, full_user_id, displayname)
           SELECT user_id, user_id, repeat(E'\\x01\"\\\\', 85) FROM names"
    );
    database.run(&sql).await;
    database
}

/// Follows `next_token` from the first page to the last.
fn walk(function: &Function, gateway: Gateway, query: &str) -> (Vec<String>, usize) {
    let (mut user_ids, mut pages, mut from) = (Vec::new(), 0, Some(0));
    while let Some(token) = from {
        let event = gateway.event(&request(Some(&format!("{query}&from={token}")))).unwrap();
        let response = function.invoke(event.to_string().as_bytes()).unwrap();
        let (size, body) = (response.to_string().len(), response["body"].as_str().unwrap());
        let most = if gateway == Gateway::HttpApi { 5_500_000 } else { 1_000_000 };
        assert!(body.len() < most && size < most + 2_000, "{size} {}", body.len());
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["total"], USERS);
        let users = body["users"].as_array().unwrap();
        user_ids.extend(users.iter().map(|user| user["user_id"].as_str().unwrap().to_owned()));
        pages += 1;
        from = body["next_token"].as_i64();
    }
    (user_ids, pages)
}

#[test]
fn a_walk_over_pages_that_end_early_visits_every_user_once() {
    let database = block_on(database());
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let expected: Vec<_> = (1..=USERS).map(|n| format!("@{n:0>242}:example.org")).collect();
    for (gateway, fewest, most) in [
        (Gateway::HttpApi, 3, 4),
        (Gateway::LoadBalancer, 15, 20),
        (Gateway::LoadBalancerMultiValue, 15, 20),
    ] {
        for query in [
            "limit=9223372036854775807&order_by=media_length&dir=b",
            "limit=1000000&order_by=user_id",
        ] {
            let (mut user_ids, pages) = walk(&function, gateway, query);
            if query.contains("dir=b") {
                user_ids.reverse();
            }
            assert!(user_ids == expected, "{gateway:?} {query}: {} users", user_ids.len());
            assert!((fewest..=most).contains(&pages), "{gateway:?}: {pages} pages");
        }
    }
    function.stop();
}

#[test]
fn a_user_larger_than_an_answer_is_an_error_that_says_where() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(
        database
            .run("UPDATE profiles SET displayname = repeat('x', 6000000) WHERE user_id = 'alice'"),
    );
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let ask = |query: &str| {
        let event = Gateway::HttpApi.event(&request(Some(query))).unwrap();
        let response = function.invoke(event.to_string().as_bytes()).unwrap();
        (
            response["statusCode"].clone(),
            serde_json::from_str::<Value>(response["body"].as_str().unwrap()).unwrap(),
        )
    };
    let (status, page) = ask("search_term=lic&order_by=displayname");
    let position = page["next_token"].as_i64().unwrap();
    assert_eq!(
        (status, i64::try_from(page["users"].as_array().unwrap().len()).unwrap()),
        (200.into(), position)
    );
    let (status, error) = ask(&format!("search_term=lic&order_by=displayname&from={position}"));
    assert_eq!(status, 500);
    assert_eq!(error["errcode"], "M_UNKNOWN");
    assert!(error["error"].as_str().unwrap().contains(&format!("from={position}")), "{error}");
    assert!(function.stop().contains(&format!("offset {position}")));
}

#[test]
fn a_row_that_no_memory_holds_ends_no_process() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let larger = "UPDATE profiles SET displayname = repeat('x', 60000000) WHERE user_id = 'alice'";
    block_on(database.run(larger));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    assert_eq!(ask(&function).0, 200);
    let event = Gateway::HttpApi.event(&request(Some("limit=1000"))).unwrap();
    let response = function.invoke(event.to_string().as_bytes()).unwrap();
    assert_eq!(response["statusCode"], 503);
    // The least that the template lets the function have.
    assert!(function.peak_memory() < 128_000_000, "{}", function.peak_memory());
    assert_eq!(ask(&function).0, 200);
    function.stop();
}
