//! A stranger who may create things in the database: whatever operators, functions, tables and types of
//! theirs lie beside PostgreSQL's own, no statement of the function uses one.

use std::collections::BTreeSet;

use sqlx::{Connection as _, PgConnection, Row};
use synapse_media_usage::statement::{Shape, Statements};

use crate::support::{
    block_on,
    database::Database,
    function::{ask, start},
};

/// Types that the texts can put on either side of an operator. Exact matches win, wherever they are
/// found (PostgreSQL, "Operator Type Resolution").
const TYPES: [&str; 14] = [
    "text",
    "name",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "bool",
    "oid",
    "text[]",
    "int2vector",
    "regclass",
    "\"char\"",
];

/// Every text: its name, itself, and whether it is asked before the settings are known to be there.
fn texts(statements: &Statements) -> Vec<(&'static str, String, bool)> {
    let pages = [Shape::OnePass, Shape::Counts, Shape::Walk, Shape::Search];
    let Statements {
        session,
        check_client,
        missing_indexes,
        collation,
        access_token,
        user,
        account_validity,
        device,
        missing_grants,
        cancel,
        one_pass: _,
        counts: _,
        walk: _,
        search: _,
    } = statements;
    let mut texts = vec![
        ("session", session.clone(), true),
        ("check_client", check_client.clone(), true),
        ("missing_indexes", missing_indexes.clone(), true),
        ("collation", collation.clone(), true),
        ("access_token", access_token.clone(), false),
        ("user", user.clone(), false),
        ("account_validity", account_validity.clone(), false),
        ("device", device.clone(), false),
        ("missing_grants", missing_grants.clone(), false),
        ("cancel", cancel.clone(), false),
    ];
    let names = ["one_pass", "counts", "walk", "search"];
    let pages = names.into_iter().zip(pages.map(|shape| statements.page(shape).to_owned()));
    texts.extend(pages.map(|(name, text)| (name, text, false)));
    texts
}

/// A text without its comments and literals, so that only code is left.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("--").next().unwrap());
    lines.collect::<Vec<_>>().join("\n").split('\'').step_by(2).collect::<Vec<_>>().join("''")
}

/// The names in a text: what may be a function, a table or a type.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code(text).split(|c| !is_part(c)).filter(|it| !it.is_empty()).map(str::to_lowercase).collect()
}

/// The operators in a text, and those that hide in IN, CASE and LIKE.
fn operators(text: &str) -> BTreeSet<String> {
    let code = code(text).replace("count(*)", "");
    let is_part = |c: char| "+-*/<>=~!@#%^&|`?".contains(c);
    let written = code.split(|c| !is_part(c)).filter(|it| !it.is_empty()).map(str::to_owned);
    written.chain(["=", "<>", "<", ">", "<=", ">=", "~~", "||"].map(str::to_owned)).collect()
}

/// SQL that lays a trap for each of these in a schema. It springs by an exception.
async fn traps(
    schema: &str,
    texts: &[(&str, String, bool)],
    superuser: &mut PgConnection,
) -> String {
    let all: String = texts.iter().map(|(_, text, _)| format!("{text}\n")).collect();
    let names: Vec<String> = names(&all).into_iter().collect();
    let raise = "LANGUAGE plpgsql AS $trap$ BEGIN RAISE EXCEPTION 'a trap sprang'; END $trap$;";
    let mut sql =
        format!("CREATE SCHEMA IF NOT EXISTS {schema}; GRANT ALL ON SCHEMA {schema} TO PUBLIC;");
    // Operators, of all pairs of types.
    for left in TYPES {
        for right in TYPES {
            sql += &format!(
                "CREATE FUNCTION {schema}.trap(pg_catalog.{left}, pg_catalog.{right}) RETURNS pg_catalog.bool {raise}
                 CREATE FUNCTION {schema}.trap_left(pg_catalog.{left}, pg_catalog.{right}) RETURNS pg_catalog.{left} {raise}"
            );
            for operator in operators(&all) {
                let keeps_type = ["+", "-", "*", "/", "||", "->>"].contains(&operator.as_str());
                let trap = if keeps_type { "trap_left" } else { "trap" };
                sql += &format!(
                    "CREATE OPERATOR {schema}.{operator} (LEFTARG = pg_catalog.{left}, RIGHTARG = pg_catalog.{right}, FUNCTION = {schema}.{trap});"
                );
            }
        }
    }
    // Functions with the very arguments of PostgreSQL's own. What takes any type there takes texts here.
    let functions = "SELECT proname::text AS name, prokind::text AS kind,
               (SELECT coalesce(string_agg(CASE WHEN typname IN ('anyarray', 'anycompatiblearray') THEN 'pg_catalog._text'
                                                WHEN typname LIKE 'any%' THEN 'pg_catalog.text'
                                                ELSE format('pg_catalog.%I', typname) END, ', ' ORDER BY n), '')
                  FROM unnest(proargtypes) WITH ORDINALITY AS argument(oid, n)
                       JOIN pg_type ON pg_type.oid = argument.oid
                 WHERE n <= pronargs - left_out) AS arguments,
               CASE WHEN proretset THEN 'SETOF ' ELSE '' END ||
               CASE WHEN result.typname IN ('anyarray', 'anycompatiblearray') THEN 'pg_catalog._text'
                    WHEN result.typname LIKE 'any%' THEN 'pg_catalog.text'
                    ELSE format('pg_catalog.%I', result.typname) END AS result
          FROM pg_proc JOIN pg_type AS result ON result.oid = prorettype
               CROSS JOIN generate_series(0, pronargdefaults) AS left_out
         WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ($1)
           AND prokind IN ('f', 'a', 'w') AND result.typname NOT IN ('internal', 'trigger', 'cstring', 'record')
           AND NOT EXISTS (SELECT FROM unnest(proargtypes) AS argument(oid)
                            WHERE argument.oid::regtype::text IN ('internal', 'cstring'))";
    let mut seen = BTreeSet::new();
    for function in sqlx::query(functions).bind(&names).fetch_all(&mut *superuser).await.unwrap() {
        let get = |column: &str| function.get::<String, _>(column);
        let (name, arguments, result) = (get("name"), get("arguments"), get("result"));
        if !seen.insert((name.clone(), arguments.clone())) {
            continue;
        }
        if get("kind") == "a" {
            let state = format!("{schema}.\"trap_{name}\"");
            let more = if arguments.is_empty() { String::new() } else { format!(", {arguments}") };
            sql += &format!(
                "CREATE FUNCTION {state}(pg_catalog.int4{more}) RETURNS pg_catalog.int4 {raise}"
            );
            let takes = if arguments.is_empty() { "*" } else { &arguments };
            sql += &format!(
                "CREATE AGGREGATE {schema}.\"{name}\"({takes}) (SFUNC = {state}, STYPE = pg_catalog.int4, INITCOND = '0');"
            );
        } else {
            sql += &format!(
                "CREATE FUNCTION {schema}.\"{name}\"({arguments}) RETURNS {result} {raise}"
            );
        }
    }
    // Tables, Synapse's and the catalog's.
    sql += &format!("CREATE FUNCTION {schema}.trap_row() RETURNS pg_catalog.bool {raise}");
    let tables = "SELECT nspname::text AS schema, relname::text AS name,
                         (SELECT string_agg(format('%I', attname), ', ') FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
                           WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped AND typtype <> 'p') AS columns
                    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                   WHERE nspname IN ('public', 'pg_catalog') AND nspname <> $1 AND relname = ANY ($2) AND (relkind = 'r' OR relkind = 'v' AND nspname = 'pg_catalog')";
    let tables =
        sqlx::query(tables).bind(schema).bind(&names).fetch_all(&mut *superuser).await.unwrap();
    for table in &tables {
        let get = |column: &str| table.get::<String, _>(column);
        let (of, name, columns) = (get("schema"), get("name"), get("columns"));
        sql += &format!(
            "CREATE VIEW {schema}.\"{name}\" AS SELECT {columns} FROM {of}.\"{name}\" WHERE {schema}.trap_row() OPERATOR(pg_catalog.=) true;
             GRANT SELECT ON {schema}.\"{name}\" TO PUBLIC;"
        );
    }
    // Types.
    for name in ["text", "int8", "int4", "bool", "regclass", "name", "oid"] {
        sql += &format!(
            "CREATE DOMAIN {schema}.\"{name}\" AS pg_catalog.int2 CHECK ({schema}.trap_row());"
        );
    }
    assert!(seen.len() > 40 && tables.len() > 5, "{} {}", seen.len(), tables.len());
    sql
}

/// Runs a text as psql would a statement with these types of parameters, and tells what went wrong.
async fn run(session: &mut PgConnection, name: &str, text: &str) -> Result<(), String> {
    let mut failed = Ok(());
    for (order_by, backwards, term, after) in [
        ("user_id", false, None, None),
        ("displayname", true, Some("a"), None),
        ("media_count", false, None, Some(1_i64)),
        ("media_length", true, Some("@a:b"), None),
        ("user_id", true, Some("e"), Some(1)),
    ] {
        let query = sqlx::query(text).persistent(false);
        let query = match name {
            "session" | "check_client" | "missing_indexes" | "collation" => query,
            "access_token" => query.bind("syt_admin_ok"),
            "user" | "account_validity" => query.bind("@admin:example.com"),
            "device" => query.bind("@admin:example.com").bind(Some("DEV")),
            "missing_grants" => query.bind("access_tokens, devices, account_validity"),
            "cancel" => query.bind(0),
            _ => {
                let query = query.bind(5_i64).bind(1_i64).bind(after).bind(None::<i64>);
                query.bind(term).bind(order_by).bind(backwards)
            }
        };
        if let Err(error) = query.fetch_all(&mut *session).await {
            failed = Err(error.to_string());
        }
    }
    failed
}

/// The role's own settings, as the server says them, are the function's.
async fn function_session(database: &Database) -> PgConnection {
    let session = database.session().await;
    // Optional grants.
    database
        .run(
            "GRANT SELECT (user_id, device_id, hidden) ON public.devices TO media_usage;
             GRANT SELECT (user_id, expiration_ts_ms) ON public.account_validity TO media_usage",
        )
        .await;
    session
}

#[test]
fn no_trap_of_a_stranger_springs() {
    block_on(async {
        let database = Database::of_conformance("synapse-94").await.enlarge().await;
        // So that there is one to name.
        database.run("DROP INDEX profiles_full_user_id_key").await;
        let rows = "INSERT INTO devices (user_id, device_id, hidden) VALUES ('@admin:example.com', 'DEV', false);
                    INSERT INTO account_validity (user_id, expiration_ts_ms, email_sent) VALUES ('@x:example.com', 1, false)";
        database.run(rows).await;
        let mut texts = texts(&Statements::in_schema("public"));
        let mut superuser = database.superuser().await;
        let version = "SELECT current_setting('server_version_num')::int";
        if sqlx::query_scalar::<_, i32>(version).fetch_one(&mut superuser).await.unwrap() < 150_000
        {
            // What it asks for is not there.
            texts.retain(|(name, ..)| *name != "collation");
        }
        let mut session = function_session(&database).await;
        for (name, text, _) in &texts {
            assert_eq!(run(&mut session, name, text).await, Ok(()), "{name}");
        }
        let function = start(&database.url());
        let page = ask(&function);
        function.stop();

        sqlx::raw_sql("SET search_path = pg_catalog").execute(&mut superuser).await.unwrap();
        // In the schema that everybody's path has, in one of the role's own name, and in the stranger's.
        for schema in ["public", "media_usage", "stranger"] {
            let traps = traps(schema, &texts, &mut superuser).await;
            sqlx::raw_sql(&traps).execute(&mut superuser).await.unwrap();
        }
        let mut session = function_session(&database).await;
        for (name, text, _) in &texts {
            assert_eq!(run(&mut session, name, text).await, Ok(()), "{name}");
        }
        // Through the function, the settings of whose session a pooler carries, too.
        for pooler in ["false", "true"] {
            let url = database.url();
            let variables = [("DATABASE_URL", url.as_str()), ("DATABASE_POOLER", pooler)];
            let function = crate::support::function::Function::start(&variables);
            assert_eq!(ask(&function), page);
            let log = function.stop();
            assert!(!log.contains("trap"), "{log}");
        }
        session.close().await.unwrap();

        // The traps are good: where a stranger comes first, each text that trusts the settings springs one.
        let mut session = function_session(&database).await;
        sqlx::raw_sql("SET search_path = stranger, pg_catalog")
            .execute(&mut session)
            .await
            .unwrap();
        let mut sprung = 0;
        for (name, text, is_first) in &texts {
            let outcome = run(&mut session, name, text).await;
            if *is_first {
                assert_eq!(outcome, Ok(()), "{name}");
                // And so does any name or operator of the first question that is not written out.
                for (n, weak) in weakened(text).into_iter().enumerate() {
                    assert!(run(&mut session, name, &weak).await.is_err(), "{name} {n}: {weak}");
                }
            } else {
                assert!(outcome.is_err() || *name == "cancel", "{name}");
                sprung += usize::from(outcome.is_err_and(|error| error.contains("trap sprang")));
            }
        }
        assert!(sprung > 2, "{sprung}");
        // And without a path of one's own, even behind pg_catalog.
        let mut session = function_session(&database).await;
        sqlx::raw_sql(
            "RESET search_path; SET search_path = DEFAULT; SET search_path = \"$user\", public",
        )
        .execute(&mut session)
        .await
        .unwrap();
        let sprung = ["walk", "search"].map(|name| texts.iter().find(|it| it.0 == name).unwrap());
        for (name, text, _) in sprung {
            assert!(run(&mut session, name, text).await.is_err(), "{name}");
        }
    });
}

/// A text with one qualification less, for each that it has.
fn weakened(text: &str) -> Vec<String> {
    let mut weak = Vec::new();
    for (at, qualified) in text.match_indices("OPERATOR(pg_catalog.") {
        let (before, after) = (&text[..at], &text[at + qualified.len()..]);
        let (operator, after) = after.split_once(')').unwrap();
        weak.push(format!("{before} {operator} {after}"));
    }
    for (at, qualified) in text.match_indices("pg_catalog.") {
        let (before, after) = (&text[..at], &text[at + qualified.len()..]);
        if !before.ends_with("OPERATOR(") {
            weak.push(format!("{before}{after}"));
        }
    }
    assert!(!weak.is_empty(), "{text}");
    weak
}
