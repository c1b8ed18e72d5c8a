//! The function on a hot standby that streams from its primary.

use std::{
    fs,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    block_on, conformance,
    database::{Cluster, Database, service},
    function::{Function, ask},
};

/// A primary and its standby.
fn clusters() -> (&'static Cluster, &'static Cluster) {
    static CLUSTERS: OnceLock<(&Cluster, &Cluster)> = OnceLock::new();
    *CLUSTERS.get_or_init(|| {
        let primary = Cluster::of_its_own();
        (primary, primary.standby())
    })
}

/// The same database on the standby, once all that the primary has written has arrived there.
async fn replica(database: &Database) -> Database {
    let mut primary = database.superuser().await;
    let written = "SELECT pg_current_wal_flush_lsn()::text";
    let written: String = sqlx::query_scalar(written).fetch_one(&mut primary).await.unwrap();
    let postgres = Database { name: "postgres".to_owned(), cluster: clusters().1 };
    let mut standby = postgres.superuser().await;
    let arrived = "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn";
    let arrived = || sqlx::query_scalar::<_, bool>(arrived).bind(&written);
    while !arrived().fetch_one(&mut standby).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Database { name: database.name.clone(), cluster: clusters().1 }
}

#[test]
fn every_recorded_answer_comes_from_a_standby() {
    let replica = block_on(async {
        let database = Database::of_conformance_in(clusters().0, "synapse-94").await;
        replica(&database.enlarge().await).await
    });
    block_on(async {
        let mut superuser = replica.superuser().await;
        let is_standby = sqlx::query_scalar::<_, bool>("SELECT pg_is_in_recovery()");
        assert!(is_standby.fetch_one(&mut superuser).await.unwrap());
        conformance::assert_none(&conformance::complaints(&service(&replica.url())).await);
    });
    let function = Function::start(&[("DATABASE_URL", &replica.url())]);
    conformance::assert_none(&conformance::complaints_of_binary(&function));
    function.stop();
}

/// Makes reading the media take as long as replication has to be held up to cancel it.
const SLOW: &str = "
    ALTER TABLE local_media_repository RENAME TO media;
    CREATE VIEW local_media_repository AS SELECT media.* FROM media, (SELECT pg_sleep(1.5) OFFSET 0) AS delay;
    GRANT SELECT (user_id, media_length, created_ts) ON local_media_repository TO media_usage;";

/// Removes rows that a statement on the standby may still need, and has the standby do the same. The lock
/// of a table that is truncated would be another conflict.
const CLEAN_UP: [&str; 3] = [
    "INSERT INTO media (user_id, upload_name) SELECT '@gone:x', 'filler' FROM generate_series(1, 100)",
    "DELETE FROM media WHERE upload_name = 'filler'",
    "VACUUM (TRUNCATE false) media",
];

#[test]
fn a_standby_answers_whatever_isolation_the_database_asks_for() {
    let replica = block_on(async {
        let database = Database::of_conformance_in(clusters().0, "synapse-94").await;
        let serializable = "SET default_transaction_isolation = serializable";
        database.run(&format!("ALTER DATABASE {} {serializable}", database.name)).await;
        replica(&database).await
    });
    let url = replica.url();
    for pooler in ["false", "true"] {
        let function =
            Function::start(&[("DATABASE_URL", url.as_str()), ("DATABASE_POOLER", pooler)]);
        assert_eq!(ask(&function).0, 200, "{pooler}");
        function.stop();
    }
}

#[test]
fn a_conflict_with_recovery_is_asked_again_once() {
    let database = block_on(Database::of_conformance_in(clusters().0, "synapse-94"));
    block_on(database.run(SLOW));
    let replica = block_on(replica(&database));
    // As the server's log has them: its statistics lag, and can miss those of a session that ends.
    // A session that is slow to cancel its statement is told twice, and then is terminated as well.
    let conflicts = || {
        let log = fs::read_to_string(&replica.cluster.log).unwrap();
        let of_this = format!("@{} ", replica.name);
        let conflicts = log.lines().filter(|line| {
            line.contains(&of_this)
                && line.contains("canceling statement due to conflict with recovery")
        });
        conflicts.count()
    };
    let clean_up = || {
        for sql in CLEAN_UP {
            block_on(database.run(sql));
        }
    };
    let function = Function::start(&[("DATABASE_URL", &replica.url())]);
    let quiet = ask(&function);
    assert_eq!((quiet.0, conflicts()), (200, 0), "{quiet:?}");

    // One conflict: the second try comes through.
    let once = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            clean_up();
        });
        ask(&function)
    });
    assert_eq!(once, quiet);
    assert_eq!(conflicts(), 1);

    // Conflicts without end: two tries, and an answer that says to come again.
    let over = AtomicBool::new(false);
    let (status, error) = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                clean_up();
                thread::sleep(Duration::from_millis(50));
            }
        });
        let answer = ask(&function);
        over.store(true, Ordering::SeqCst);
        answer
    });
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    assert_eq!(conflicts(), 3);
    let log = function.stop();
    let latest: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert!(latest["cause"].as_str().unwrap().contains("database error 40001"), "{latest}");
    assert_eq!(latest["retries"], 1);
}
