//! The server that the tests run on: one of the supported versions, and the one that was asked for.

use sqlx::Connection;

use crate::support::{
    block_on,
    database::{Database, SCHEMAS},
};

/// PostgreSQL's major versions that are supported, see docs/database.md.
const SUPPORTED: std::ops::RangeInclusive<i32> = 14..=18;

#[test]
fn the_server_is_of_the_version_asked_for() {
    let major = block_on(async {
        let database = Database::new(SCHEMAS[1]).await;
        let mut superuser = database.superuser().await;
        let version = "SELECT current_setting('server_version_num')::integer / 10000";
        let major: i32 = sqlx::query_scalar(version).fetch_one(&mut superuser).await.unwrap();
        superuser.close().await.unwrap();
        major
    });
    println!("PostgreSQL {major}");
    assert!(SUPPORTED.contains(&major), "{major}");
    // `make` asks for one, see tests/tools/postgres.
    if let Ok(wanted) = std::env::var("PG_VERSION") {
        assert_eq!(major.to_string(), wanted);
    }
}
