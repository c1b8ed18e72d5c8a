//! The function through a real pgbouncer in transaction mode, which lends its sessions for one
//! transaction at a time.

use std::{fs, process::Command, thread};

use serde::Deserialize;

use crate::{
    conformance,
    session::ask,
    support::{
        self, block_on,
        database::{Database, cluster},
        function::Function,
        project,
    },
};

/// A pgbouncer before the cluster, with one server connection a database.
#[derive(Deserialize)]
struct Pooler {
    port: u16,
    log: String,
}

impl Pooler {
    fn start() -> Option<Self> {
        let tool = project().join("tests/tools/pgbouncer");
        if !Command::new(tool).arg("bin").status().unwrap().success() {
            println!("there is no pgbouncer, and it cannot be had");
            return None;
        }
        Some(support::tool("pgbouncer", &["serve", &cluster().port.to_string(), "1"]))
    }

    fn function(&self, database: &Database, pooler: &str) -> Function {
        let url = database.url();
        let url = url.replace(&format!(":{}/", cluster().port), &format!(":{}/", self.port));
        Function::start(&[("DATABASE_URL", &url), ("DATABASE_POOLER", pooler)])
    }
}

#[test]
fn every_recorded_answer_comes_through_a_pooler_that_two_clients_share() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(async { Database::of_conformance("synapse-94").await.enlarge().await });
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let function = pooler.function(&database, "true");
                conformance::assert_none(&conformance::complaints_of_binary(&function));
                // Nothing failed on the way, and nothing was asked twice.
                let log = function.stop();
                assert!(!log.contains("ERROR"), "{log}");
                assert_eq!(log.matches("\"retries\":0").count(), log.lines().count());
            });
        }
    });
    let log = fs::read_to_string(&pooler.log).unwrap();
    // The two never had more than one session between them, and never broke one.
    assert_eq!(log.matches("new connection to server").count(), 1, "{log}");
    assert!(
        !log.contains("closing because: client disconnect while server was not ready"),
        "{log}"
    );
}

#[test]
fn without_the_setting_a_pooler_refuses_the_session() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "false");
    let (status, error) = ask(&function);
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    let log = function.stop();
    assert!(log.contains("unsupported startup parameter"), "{log}");
}

#[test]
fn a_session_that_breaks_behind_the_pooler_fails_no_request() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "true");
    let page = ask(&function);
    assert_eq!(page.0, 200);
    for _ in 0..3 {
        block_on(database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()"));
        assert_eq!(ask(&function), page);
    }
    // Neither settings nor statements outlive the transaction in the session that is lent.
    let settings = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database() AND state <> 'idle'";
    let busy = block_on(async {
        let mut superuser = database.superuser().await;
        sqlx::query_scalar::<_, i64>(settings).fetch_one(&mut superuser).await.unwrap()
    });
    assert_eq!(busy, 0);
    function.stop();
}
