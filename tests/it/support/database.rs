//! A real PostgreSQL: one private cluster for the whole run, one database for each test.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Deserialize;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use synapse_media_usage::{
    config::Config,
    postgres::{self, Connector},
    service::Service,
};
use tokio::sync::{Mutex, OnceCell};

use super::{NOW_MS, read, tool};

/// Where the cluster is, as `tests/tools/postgres` tells it.
#[derive(Debug, Deserialize)]
pub struct Cluster {
    /// The folder of PostgreSQL's programs.
    pub bin: String,
    pub socket_dir: String,
    pub port: u16,
    /// PEM file of the authority of the server's certificate; `None` where this PostgreSQL was
    /// built without TLS.
    pub ca: Option<String>,
    /// The folder of the server's certificate and of others for the same key.
    pub tls: Option<String>,
    /// The server's log file.
    pub log: String,
}

/// The cluster that tests share, started on first use.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<&Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let data = std::env::var("BENCH_DATA").ok();
        Cluster::start(&["serve", data.as_deref().unwrap_or_default()])
    })
}

impl Cluster {
    /// A cluster for one test.
    pub fn of_its_own() -> &'static Self {
        Self::start(&["serve"])
    }

    /// A hot standby that streams from this cluster.
    pub fn standby(&self) -> &'static Self {
        Self::start(&["standby", &self.socket_dir, &self.port.to_string()])
    }

    fn start(arguments: &[&str]) -> &'static Self {
        Box::leak(Box::new(tool("postgres", arguments)))
    }
}

/// The superuser's way in, which needs no password.
fn options(cluster: &Cluster, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(&cluster.socket_dir)
        .port(cluster.port)
        .username("postgres")
        .database(database)
}

/// Who may change the role: it belongs to all databases of the cluster, and PostgreSQL does not let
/// two of them change it at the same time.
static ROLE: Mutex<()> = Mutex::const_new(());

/// The supported schemas, by their files in `tests/schema`.
pub const SCHEMAS: [&str; 2] = ["synapse-84", "synapse-94"];

/// A database of Synapse's tables, which the role `media_usage` may read.
#[derive(Debug)]
pub struct Database {
    pub name: String,
    pub cluster: &'static Cluster,
}

impl Database {
    /// An empty one of the given schema.
    pub async fn new(schema: &str) -> Self {
        Self::new_in(cluster(), schema).await
    }

    async fn new_in(cluster: &'static Cluster, schema: &str) -> Self {
        Self::create(cluster, Self::next_name(), "", schema).await
    }

    /// An empty one, made with these options of `CREATE DATABASE`.
    pub async fn with_options(options: &str) -> Self {
        Self::create(cluster(), Self::next_name(), options, "synapse-94").await
    }

    fn next_name() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("synapse_{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    async fn create(cluster: &'static Cluster, name: String, options: &str, schema: &str) -> Self {
        let database = Self { name, cluster };
        database.make(options).await;
        let mut superuser = database.superuser().await;
        let tables = read(&format!("tests/schema/{schema}.sql"));
        sqlx::raw_sql(&tables).execute(&mut superuser).await.unwrap();
        let _alone = ROLE.lock().await;
        // Refused for a role with rights in another database, as this one has of all tests.
        let role = read("src/sql/role.sql");
        let (_, grants) = role.split_once("END $$;").unwrap();
        let is_there = sqlx::query("SELECT FROM pg_roles WHERE rolname = 'media_usage'")
            .fetch_optional(&mut superuser)
            .await
            .unwrap()
            .is_some();
        for sql in [
            if is_there { format!("BEGIN;{grants}") } else { role.clone() },
            "ALTER ROLE media_usage PASSWORD 'p@ss/word'".to_owned(),
        ] {
            sqlx::raw_sql(&sql).execute(&mut superuser).await.unwrap();
        }
        superuser.close().await.unwrap();
        database
    }

    /// Makes the database itself, in the place of one that an earlier run has left.
    async fn make(&self, options: &str) {
        let postgres = Self { name: "postgres".to_owned(), cluster: self.cluster };
        let mut superuser = postgres.superuser().await;
        // PostgreSQL 14 only has this one. From 15 on the server would write each block to its log, which
        // takes twice the time.
        let has_strategies = superuser.server_version_num().unwrap() >= 150_000;
        let strategy = if has_strategies { "STRATEGY file_copy" } else { "" };
        // Not together: neither can be part of a transaction.
        for sql in [
            format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
            format!("CREATE DATABASE {} {options} {strategy}", self.name),
        ] {
            sqlx::raw_sql(&sql).execute(&mut superuser).await.unwrap();
        }
        superuser.close().await.unwrap();
    }

    /// One that is kept between runs where the cluster is, and whether it has yet to be filled.
    /// Call [`Database::complete`] when it has been.
    pub async fn kept(name: &str) -> (Self, bool) {
        let postgres = Self { name: "postgres".to_owned(), cluster: cluster() };
        let mut superuser = postgres.superuser().await;
        let complete = "SELECT count(*) FROM pg_shdescription JOIN pg_database ON pg_database.oid = objoid \
                        WHERE datname = $1 AND description = 'complete'";
        let count: i64 =
            sqlx::query_scalar(complete).bind(name).fetch_one(&mut superuser).await.unwrap();
        superuser.close().await.unwrap();
        if count > 0 {
            return (Self { name: name.to_owned(), ..postgres }, false);
        }
        (Self::create(cluster(), name.to_owned(), "", "synapse-94").await, true)
    }

    /// Marks a kept database as filled.
    pub async fn complete(&self) {
        self.run(&format!("COMMENT ON DATABASE {} IS 'complete'", self.name)).await;
    }

    /// One with the rows behind the recorded cases. The first of a schema is made, and copied for each
    /// test.
    pub async fn of_conformance(schema: &str) -> Self {
        static ORIGINALS: [OnceCell<Database>; 2] = [const { OnceCell::const_new() }; 2];
        let number = SCHEMAS.iter().position(|it| *it == schema).unwrap();
        let make = || Self::of_conformance_in(cluster(), schema);
        let original = ORIGINALS[number].get_or_init(make).await;
        let copy = Self { name: Self::next_name(), cluster: cluster() };
        copy.make(&format!("TEMPLATE {}", original.name)).await;
        copy
    }

    /// The same, in another cluster.
    pub async fn of_conformance_in(cluster: &'static Cluster, schema: &str) -> Self {
        let database = Self::new_in(cluster, schema).await;
        let rows = read("tests/conformance/dataset.sql");
        // The only column of the rows that the older schema lacks is read by nobody.
        let rows = if schema == "synapse-84" { without_suspended(&rows) } else { rows };
        // As autovacuum would.
        database.run(&format!("{rows}ANALYZE local_media_repository")).await;
        database
    }

    /// Makes the table of media a large one, with the same rows in it: the function then answers
    /// as it does on a homeserver that has been used.
    pub async fn enlarge(self) -> Self {
        // Vacuumed, it would be a small one again.
        let rows = "ALTER TABLE local_media_repository SET (autovacuum_enabled = off);
                    INSERT INTO local_media_repository (user_id, upload_name) SELECT '@gone:x', 'filler' FROM generate_series(1, 30000);
                    DELETE FROM local_media_repository WHERE upload_name = 'filler'";
        self.run(rows).await;
        self.run("ANALYZE local_media_repository").await;
        self
    }

    /// Runs statements as the superuser.
    pub async fn run(&self, sql: &str) {
        let mut superuser = self.superuser().await;
        sqlx::raw_sql(sql).execute(&mut superuser).await.unwrap();
        superuser.close().await.unwrap();
    }

    /// A connection of the superuser.
    pub async fn superuser(&self) -> PgConnection {
        self.try_superuser().await.unwrap()
    }

    /// The same, from a server that may not be up.
    pub async fn try_superuser(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&options(self.cluster, &self.name)).await
    }

    /// A connection of the function's.
    pub async fn connection(&self) -> postgres::Connection {
        self.connection_to(&self.url()).await
    }

    async fn connection_to(&self, url: &str) -> postgres::Connection {
        let config = config(url).unwrap();
        let connector = Connector::new(config.database, config.statement_timeout);
        connector.connect(NOW_MS, Instant::now() + Duration::from_secs(3)).await.unwrap()
    }

    /// Its session, with the function's role and settings, over a Unix socket: what only asks many
    /// questions need not encrypt them.
    pub async fn session(&self) -> PgConnection {
        let Cluster { socket_dir, port, .. } = self.cluster;
        self.connection_to(&format!(
            "postgres://media_usage@/{}?host={socket_dir}&port={port}",
            self.name
        ))
        .await
        .session
    }

    /// The process ids of the function's sessions.
    pub async fn sessions(&self) -> Vec<i32> {
        let pids = "SELECT pid FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()";
        let mut superuser = self.superuser().await;
        sqlx::query_scalar(pids).fetch_all(&mut superuser).await.unwrap()
    }

    /// The URL for the function, with its role and over TCP.
    pub fn url(&self) -> String {
        format!(
            "postgres://media_usage:p%40ss%2Fword@127.0.0.1:{}/{}",
            self.cluster.port, self.name
        )
    }

    /// The service itself, in this process.
    pub fn service(&self) -> Service {
        service(&self.url())
    }
}

/// A service for a `DATABASE_URL`.
pub fn service(url: &str) -> Service {
    Service::new(config(url))
}

fn config(url: &str) -> Result<Config, Vec<String>> {
    Config::read(|name| (name == "DATABASE_URL").then(|| url.to_owned()))
}

/// The rows of `users` without their last column.
fn without_suspended(rows: &str) -> String {
    let (users, others) = rows.split_once(";\n\nINSERT INTO profiles").unwrap();
    let users = users.replace(", suspended)", ")").replace(", false)", ")").replace(", true)", ")");
    format!("{users};\n\nINSERT INTO profiles{others}")
}

/// Makes the table of media a view that writes whenever it is read, as an attacker with rights on
/// the database could.
pub const TRAP: &str = "
    CREATE TABLE written (n int);
    CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS
      $$ BEGIN INSERT INTO public.written VALUES (1); RETURN true; END $$;
    ALTER TABLE local_media_repository RENAME TO media;
    CREATE VIEW local_media_repository AS SELECT * FROM media WHERE trap();
    GRANT SELECT ON local_media_repository TO media_usage;";

/// Makes a database look like one of Aurora whose reader `here` is 1234.5 ms behind, as Amazon Aurora's
/// User Guide describes its functions.
pub const AURORA: &str = "
    SET allow_system_table_mods = on;
    CREATE TYPE pg_catalog.aurora_status AS (server_id text, replica_lag_in_msec float8);
    CREATE FUNCTION pg_catalog.aurora_replica_status() RETURNS SETOF pg_catalog.aurora_status LANGUAGE sql AS
      $$ VALUES ('writer', NULL::float8), ('here', 1234.5), ('there', 9.0) $$;
    CREATE FUNCTION pg_catalog.aurora_db_instance_identifier() RETURNS varchar LANGUAGE sql AS $$ SELECT 'here' $$;";

/// Keeps the media from being read as long as the connection lives.
pub async fn lock_media(database: &Database) -> PgConnection {
    lock(database, "local_media_repository").await
}

/// The same of another table.
pub async fn lock(database: &Database, table: &str) -> PgConnection {
    let mut superuser = database.superuser().await;
    sqlx::raw_sql(&format!("BEGIN; LOCK {table}")).execute(&mut superuser).await.unwrap();
    superuser
}
