//! Copies of the database that are not as Synapse made them: without indexes, in another encoding, below
//! another collation library. The answers are right, and the log says what is wrong.

use serde_json::Value;

use crate::support::{
    block_on,
    cases::request,
    database::Database,
    function::{Function, ask, start},
    gateway::Gateway,
    read,
};

/// An admin, and a user with a file, in characters that LATIN1 has.
const ROWS: &str = "
    INSERT INTO users (name, admin) VALUES ('@admin:example.com', 1);
    INSERT INTO access_tokens (id, user_id, token) VALUES (1, '@admin:example.com', 'syt_admin_ok');
    INSERT INTO profiles (user_id, full_user_id, displayname) VALUES ('j', '@j:example.com', 'Jürgen');
    INSERT INTO local_media_repository (media_id, user_id, media_length) VALUES ('m', '@j:example.com', 7);";

/// Status and body of a page.
fn page(function: &Function, query: &str) -> (u64, Value) {
    let event = Gateway::HttpApi.event(&request(Some(query))).unwrap().to_string();
    let response = function.invoke(event.as_bytes()).unwrap();
    let body = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    (response["statusCode"].as_u64().unwrap(), body)
}

#[test]
fn indexes_that_are_missing_are_named_once_a_connection() {
    for (sql, expected) in [
        ("SELECT", None),
        ("DROP INDEX users_have_local_media", Some("local_media_repository (user_id)")),
        (
            "ALTER TABLE access_tokens DROP CONSTRAINT access_tokens_token_key",
            Some("access_tokens (token)"),
        ),
        (
            "DROP INDEX profiles_full_user_id_key; ALTER TABLE users DROP CONSTRAINT users_name_key",
            Some("profiles (full_user_id), users (name)"),
        ),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_have_local_media'::regclass",
            Some("local_media_repository (user_id)"),
        ),
        (
            "UPDATE pg_index SET indisready = false WHERE indexrelid = 'users_have_local_media'::regclass",
            Some("local_media_repository (user_id)"),
        ),
        // Only with MAS may the role read it.
        ("ALTER TABLE devices DROP CONSTRAINT device_uniqueness", None),
        (
            "GRANT SELECT ON devices TO media_usage; ALTER TABLE devices DROP CONSTRAINT device_uniqueness",
            Some("devices (user_id)"),
        ),
        (
            "DROP INDEX users_have_local_media;
             CREATE INDEX ON local_media_repository (user_id) WHERE media_length > 0;
             CREATE INDEX ON local_media_repository USING hash (user_id);
             CREATE INDEX ON local_media_repository (user_id COLLATE \"POSIX\");
             CREATE INDEX ON local_media_repository (user_id text_pattern_ops)",
            Some("local_media_repository (user_id)"),
        ),
    ] {
        let database =
            block_on(async { Database::of_conformance("synapse-94").await.enlarge().await });
        let expected_page = ask(&start(&database.url()));
        block_on(database.run(sql));
        for pooler in ["false", "true"] {
            let url = database.url();
            let function =
                Function::start(&[("DATABASE_URL", url.as_str()), ("DATABASE_POOLER", pooler)]);
            for _ in 0..3 {
                assert_eq!(ask(&function), expected_page, "{sql}");
            }
            let log = function.stop();
            let warnings: Vec<_> =
                log.lines().filter(|line| line.contains("no index begins")).collect();
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{sql}: {log}");
            for warning in warnings {
                let expected = format!("missing_indexes=\"{}\"", expected.unwrap());
                assert!(warning.contains("WARN") && warning.contains(&expected), "{warning}");
            }
        }
    }
}

#[test]
fn a_collation_that_changed_takes_the_indexes_out_of_all_plans() {
    let database = block_on(Database::new("synapse-94"));
    let version = block_on(async {
        let mut superuser = database.superuser().await;
        let version = "SELECT current_setting('server_version_num')::int";
        sqlx::query_scalar::<_, i32>(version).fetch_one(&mut superuser).await.unwrap()
    });
    if version < 150_000 {
        println!("this PostgreSQL cannot tell");
        return;
    }
    let icu = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C'";
    let database = block_on(async {
        let database = Database::with_options(icu).await;
        database.run(&read("tests/conformance/dataset.sql")).await;
        database.enlarge().await
    });
    let function = start(&database.url());
    let queries = ["limit=5", "order_by=displayname", "search_term=e&order_by=media_length"];
    let expected = queries.map(|query| page(&function, query));
    assert_eq!(expected[0].0, 200);
    assert!(!function.stop().contains("collation"));
    // As on a server with another library: the indexes hide what is there.
    block_on(database.run(&format!(
        "UPDATE pg_database SET datcollversion = '0.1' WHERE datname = '{}'",
        database.name
    )));
    for pooler in ["false", "true"] {
        let url = database.url();
        let function =
            Function::start(&[("DATABASE_URL", url.as_str()), ("DATABASE_POOLER", pooler)]);
        assert_eq!(queries.map(|query| page(&function, query)), expected);
        let log = function.stop();
        let warnings: Vec<_> =
            log.lines().filter(|line| line.contains("collation library")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        // A walk would sort the whole table at each step.
        assert!(log.contains(r#""shape":"one_pass""#) && !log.contains("walk"), "{log}");
        for said in ["WARN", "REINDEX", "built_by=\"0.1\"", "compared_by="] {
            assert!(warnings[0].contains(said), "{log}");
        }
    }
    let plan = block_on(async {
        let mut session = database.session().await;
        let plan = "EXPLAIN SELECT name FROM public.users WHERE name = '@admin:example.com'";
        sqlx::query_scalar::<_, String>(plan).fetch_all(&mut session).await.unwrap().join("\n")
    });
    assert!(plan.contains("Seq Scan") && !plan.contains("Index"), "{plan}");
}

#[test]
fn what_the_encoding_cannot_write_finds_nobody() {
    let in_encoding = |encoding: &str| {
        let options = format!("TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
        block_on(async {
            let database = Database::with_options(&options).await;
            database.run(ROWS).await;
            database.run("ANALYZE local_media_repository").await;
            database
        })
    };
    let database = in_encoding("LATIN1");
    let function = start(&database.url());
    assert_eq!(page(&function, "limit=1").0, 200);
    for term in ["%F0%9F%98%80", "%E2%82%AC", "%40%E2%82%AC%3Ax"] {
        for more in ["", "&order_by=media_length", "&from_ts=1"] {
            let (status, body) = page(&function, &format!("search_term={term}{more}"));
            assert_eq!((status, &body["total"]), (200, &0.into()), "{term}{more} {body}");
        }
    }
    // A token of such characters is nobody's.
    let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
    let event = event.replace("Bearer syt_admin_ok", "Bearer \u{20ac}");
    assert_eq!(function.invoke(event.as_bytes()).unwrap()["statusCode"], 401);
    // Nothing broke.
    let (status, body) = page(&function, "search_term=%C3%BC");
    assert_eq!((status, &body["total"]), (200, &1.into()), "{body}");
    let log = function.stop();
    assert!(!log.contains("ERROR") && !log.contains("\"retries\":1"), "{log}");

    // A row that the encoding can keep and nobody can read is no reason to leave it out.
    let database = in_encoding("WIN1252");
    let function = start(&database.url());
    assert_eq!(page(&function, "search_term=%F0%9F%98%80").1["total"], 0);
    for sql in [
        "UPDATE profiles SET displayname = chr(129) || displayname",
        "UPDATE users SET name = '@admin' || chr(129) || ':example.com';
         UPDATE access_tokens SET user_id = (SELECT name FROM users)",
    ] {
        block_on(database.run(sql));
        for query in ["limit=1000", "search_term=%C3%BC"] {
            assert_eq!(page(&function, query).0, 500, "{sql} {query}");
        }
    }
    let log = function.stop();
    let named = "22P05 while reading media statistics: WIN1252; a row has a byte";
    assert!(log.contains(named) && log.contains("an access token: WIN1252"), "{log}");

    let database = in_encoding("SQL_ASCII");
    let function = start(&database.url());
    assert_eq!(page(&function, "limit=1").0, 200);
    block_on(database.run("UPDATE profiles SET displayname = convert_from('\\xfc', 'SQL_ASCII')"));
    assert_eq!(page(&function, "limit=1000").0, 500);
    let log = function.stop();
    assert!(log.contains("a row is not UTF-8, as a database in SQL_ASCII allows"), "{log}");
}

#[test]
fn a_user_with_two_profiles_ends_no_walk() {
    let database = block_on(async {
        let database = Database::of_conformance("synapse-94").await.enlarge().await;
        let twice = "DROP INDEX profiles_full_user_id_key;
                     INSERT INTO profiles (user_id, displayname, full_user_id)
                     SELECT user_id || ' once more', 'Another', full_user_id FROM profiles LIMIT 1";
        database.run(twice).await;
        database
    });
    let function = start(&database.url());
    for order_by in ["user_id", "displayname", "media_count", "media_length"] {
        for limit in [10, 1000] {
            for from in [0, 60] {
                let query = format!("order_by={order_by}&limit={limit}&from={from}");
                let (status, body) = page(&function, &query);
                assert_eq!(status, 200, "{query}: {body}");
            }
        }
    }
    function.stop();
}
