//! The recorded answers: in process, and through the binary as each gateway's events.

use std::collections::BTreeMap;

use synapse_media_usage::{invocation::Invocation, page::Budget};

use crate::support::{
    block_on,
    cases::cases,
    conformance::{assert_none, complaints, request},
    database::{Database, SCHEMAS},
    function::Function,
    gateway::GATEWAYS,
    now,
};

#[test]
fn every_recorded_answer_in_process() {
    for schema in SCHEMAS {
        block_on(async {
            let database = Database::of_conformance(schema).await;
            assert_none(&complaints(&database.service()).await);
            assert_none(&complaints(&database.enlarge().await.service()).await);
        });
    }
}

#[test]
fn every_recorded_answer_through_the_binary_and_every_gateway() {
    println!("{:<10} {:<22} {:>6}  left out and why", "schema", "event kind", "passed");
    for schema in SCHEMAS {
        let mut database = block_on(Database::of_conformance(schema));
        if schema == SCHEMAS[1] {
            database = block_on(database.enlarge());
        }
        let function = Function::start(&[("DATABASE_URL", &database.url())]);
        for gateway in GATEWAYS {
            let mut passed = 0;
            let mut left_out = BTreeMap::<&str, u32>::new();
            let mut complaints = Vec::new();
            for case in cases() {
                let event = match gateway.event(&case) {
                    Ok(event) => event,
                    Err(reason) => {
                        *left_out.entry(reason).or_default() += 1;
                        continue;
                    }
                };
                match function.invoke(event.to_string().as_bytes()) {
                    Ok(response) => match case.complaint(&gateway.answer(&response)) {
                        Some(complaint) => complaints.push(complaint),
                        None => passed += 1,
                    },
                    Err(error) => complaints.push(format!("{}: {error}", case.name)),
                }
            }
            let left_out: Vec<_> =
                left_out.iter().map(|(reason, count)| format!("{count}: {reason}")).collect();
            println!(
                "{schema:<10} {:<22} {passed:>6}  {}",
                format!("{gateway:?}"),
                left_out.join(", ")
            );
            assert_none(&complaints);
        }
        function.stop();
    }
}

#[test]
fn a_token_expires_after_its_last_millisecond() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    let case =
        cases().into_iter().find(|case| case.name == "token/query/syt-admin-year2100").unwrap();
    for (unix_ms, status) in [(4_102_444_800_000, 200), (4_102_444_800_001, 401)] {
        let (response, _) = block_on(service.respond(
            &request(&case),
            Budget::INVOCATION,
            &Invocation { unix_ms, ..now() },
        ));
        assert_eq!(response.status(), status, "{unix_ms}");
    }
}
