//! What holds for any input: no panic, nothing but pages and Matrix errors, and walks that fit.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use synapse_media_usage::{
    gateway::Event,
    query::{Args, MediaUsageQuery},
};

use crate::support::{
    block_on,
    cases::request,
    conformance::assert_matrix_answer,
    database::Database,
    gateway::{GATEWAYS, Gateway},
    now, runner,
};

/// Parameters that this endpoint knows, with values near what it accepts, and any others.
fn query_string() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => prop::sample::select(vec!["from", "limit", "order_by", "dir", "from_ts", "until_ts", "search_term", "access_token"])
            .prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let value = prop_oneof![
        2 => "[0-9]{1,3}",
        1 => "[-+_0-9 %]{0,24}",
        2 => prop::sample::select(vec!["f", "b", "user_id", "media_length", "displayname", "media_count", "syt_admin_ok"])
            .prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "(%[0-9A-Fa-f]{2}){0,6}",
    ];
    proptest::collection::vec((name, value), 0..6).prop_map(|pairs| {
        let items: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        items.join("&")
    })
}

#[test]
fn any_query_string_and_header_gets_a_page_or_a_matrix_error() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    let authorization = prop_oneof![
        4 => Just("Bearer syt_admin_ok".to_owned()),
        1 => any::<String>(),
        1 => any::<String>().prop_map(|token| format!("Bearer {token}")),
    ];
    let headers = proptest::collection::vec(
        (prop_oneof![4 => Just("Authorization".to_owned()), 1 => any::<String>()], authorization),
        0..3,
    );
    let input = (query_string(), headers, prop::sample::select(GATEWAYS.to_vec()));
    runner(2000)
        .run(&input, |(query, headers, gateway)| {
            let mut case = request(Some(&query));
            case.headers = headers;
            let Ok(event) = gateway.event(&case) else { return Ok(()) };
            let event = event.to_string();
            let parsed: Event = serde_json::from_str(&event).unwrap();
            let answer = block_on(service.answer(parsed, "", now()));
            assert_matrix_answer(&serde_json::to_value(&answer).unwrap(), event.as_bytes());
            Ok(())
        })
        .unwrap();
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..4).prop_map(
                |map: BTreeMap<_, _>| Value::Object(map.into_iter().collect::<Map<_, _>>())
            ),
        ]
    })
}

#[test]
fn any_event_gets_a_page_or_a_matrix_error() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    let fields = prop::sample::subsequence(
        vec![
            "requestContext",
            "httpMethod",
            "path",
            "rawPath",
            "rawQueryString",
            "headers",
            "multiValueHeaders",
            "queryStringParameters",
            "multiValueQueryStringParameters",
            "body",
            "version",
        ],
        0..3,
    );
    let input = (prop::sample::select(GATEWAYS.to_vec()), fields, any_json(), any::<bool>());
    runner(2000)
        .run(&input, |(gateway, fields, value, whole)| {
            let mut event = gateway.event(&request(Some("limit=1"))).unwrap();
            for field in fields {
                event[field] = value.clone();
            }
            let event = if whole { value } else { event }.to_string();
            let parsed: Event = serde_json::from_str(&event).unwrap();
            let answer = block_on(service.answer(parsed, "", now()));
            assert_matrix_answer(&serde_json::to_value(&answer).unwrap(), event.as_bytes());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_walk_by_next_token_visits_every_user_once_and_in_order() {
    let database = block_on(async { Database::of_conformance("synapse-94").await.enlarge().await });
    let service = database.service();
    let ask = |query: &str| -> Value {
        let event = Gateway::RestApi.event(&request(Some(query))).unwrap();
        let event = serde_json::from_value(event).unwrap();
        let answer = serde_json::to_value(block_on(service.answer(event, "", now()))).unwrap();
        serde_json::from_str(answer["body"].as_str().unwrap()).unwrap()
    };
    let filter = prop::sample::select(vec![
        "",
        "&search_term=a",
        "&from_ts=1700000001000",
        "&search_term=zzzz",
    ]);
    let order_by =
        prop::sample::select(vec!["user_id", "displayname", "media_length", "media_count"]);
    let limits = proptest::collection::vec(1..40_u32, 8);
    runner(40)
        .run(
            &(order_by, prop::sample::select(vec!["f", "b"]), filter, limits),
            |(order_by, dir, filter, limits)| {
                let query = format!("order_by={order_by}&dir={dir}{filter}");
                let whole = ask(&format!("{query}&limit=100000"));
                let (mut users, mut from, mut limits) =
                    (Vec::new(), Some(0), limits.iter().cycle());
                while let Some(token) = from {
                    let page =
                        ask(&format!("{query}&from={token}&limit={}", limits.next().unwrap()));
                    assert_eq!(page["total"], whole["total"]);
                    users.extend(page["users"].as_array().unwrap().iter().cloned());
                    from = page["next_token"].as_i64();
                    assert!(from.is_none_or(|from| from > token));
                }
                assert_eq!(json!(users), whole["users"]);
                assert_eq!(whole["total"], users.len());
                Ok(())
            },
        )
        .unwrap();
}

#[test]
fn parsing_reads_what_was_written() {
    let input = (any::<u64>(), any::<u64>(), 0..i64::MAX, 1..i64::MAX, "[^\0]{1,20}");
    runner(1000)
        .run(&input, |(from, limit, from_ts, width, term)| {
            let until_ts = from_ts.saturating_add(width);
            let term_text = percent_encoding::utf8_percent_encode(&term, percent_encoding::NON_ALPHANUMERIC);
            let text = format!("from={from}&limit={limit}&from_ts={from_ts}&until_ts={until_ts}&search_term={term_text}");
            let query = MediaUsageQuery::parse(&Args::parse(&text)).unwrap();
            assert_eq!(query.from, i64::try_from(from).unwrap_or(i64::MAX));
            assert_eq!(query.limit, i64::try_from(limit).unwrap_or(i64::MAX));
            assert_eq!(query.after, (from_ts > 0).then(|| from_ts - 1));
            assert_eq!(query.until, Some(until_ts));
            assert_eq!(query.search_term.unwrap().0, term);
            Ok(())
        })
        .unwrap();
}
