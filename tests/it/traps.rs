//! A stranger with CREATE in the database: whatever name a text uses, it means PostgreSQL's own or
//! Synapse's, and never what the stranger has made by that name.
//!
//! Two ways to look: PostgreSQL notes what a function's body refers to, in branches too that never
//! run; and the texts are run, as the function's role.

use std::{collections::BTreeSet, str::FromStr};

use sqlx::{Connection as _, Executor as _, PgConnection, Row, postgres::PgConnectOptions};
use synapse_media_usage::statement::{Shape, Statement};

use crate::support::{
    block_on,
    database::{AURORA, Database},
    read,
};

/// A text, with the types of its parameters and values for them, as SQL.
#[derive(Debug)]
struct Text {
    name: &'static str,
    sql: String,
    types: &'static str,
    values: Vec<String>,
    /// Whether it is asked before the session's settings are known to be there.
    wary: bool,
}

/// Every text there is.
fn texts() -> Vec<Text> {
    let text = |name, statement: Statement, types, values: &[&str], wary| {
        let values = values.iter().map(|&values| values.to_owned()).collect();
        Text { name, sql: statement.in_schema("public"), types, values, wary }
    };
    let page =
        |name, shape, orders: &[&str], terms: &[&str]| {
            let mut values = Vec::new();
            for order in orders {
                for term in terms {
                    values.extend([false, true].map(|backwards| {
                        format!("10, 1, NULL, NULL, {term}, '{order}', {backwards}")
                    }));
                }
            }
            let sql = Statement::page(shape).in_schema("public");
            Text { name, sql, types: PAGE, values, wary: false }
        };
    let (names, all) = (["user_id", "displayname"], ["NULL", "'a'", "'@alice:example.com'"]);
    let sums = [&names[..], &["media_count", "media_length"]].concat();
    let texts = vec![
        text("session", Statement::SESSION, "", &[""], true),
        text("check_client", Statement::CHECK_CLIENT, "", &[""], true),
        text("missing_indexes", Statement::MISSING_INDEXES, "", &[""], true),
        text("collation", Statement::COLLATION, "", &[""], true),
        text("cancel", Statement::CANCEL, "pg_catalog.int4", &["0"], true),
        text(
            "access_token",
            Statement::ACCESS_TOKEN,
            TEXT_INT8,
            &["'syt_admin_ok', 1", "'syt_nosuch', 1"],
            false,
        ),
        text("user", Statement::USER, TEXT_INT8, &["'@admin:example.com', 1"], false),
        text(
            "account_validity",
            Statement::ACCOUNT_VALIDITY,
            TEXT_INT8,
            &["'@admin:example.com', 1"],
            false,
        ),
        text(
            "device",
            Statement::DEVICE,
            TEXT_TEXT_INT8,
            &["'@admin:example.com', 'DEV', 1"],
            false,
        ),
        text(
            "missing_grants",
            Statement::MISSING_GRANTS,
            TEXT,
            &["'devices, account_validity'"],
            false,
        ),
        text("replication_lag", Statement::REPLICATION_LAG, "", &[""], false),
        text("aurora_lag", Statement::AURORA_LAG, "", &[""], false),
        page("one_pass", Shape::OnePass, &sums, &all),
        page("counts", Shape::Counts, &sums[..3], &all),
        page("walk", Shape::Walk, &names, &all),
        page("search", Shape::Search, &sums, &all[1..]),
    ];
    // Each is a file's, and there is no other: a text that nobody lists here would set no trap off.
    let source = read("src/statement.rs");
    let (code, _) = source.split_once("#[cfg(test)]").unwrap();
    let of_files = code.matches("Self(include_str!(\"sql/").count();
    assert_eq!([of_files, code.matches("Self(").count()], [texts.len(); 2]);
    let names: BTreeSet<_> = texts.iter().map(|text| text.name).collect();
    assert_eq!(names.len(), texts.len(), "{names:?}");
    for Text { name, sql, .. } in &texts {
        assert!(code.contains(&format!("Self(include_str!(\"sql/{name}.sql\"))")), "{name}");
        assert!(read(&format!("src/sql/{name}.sql")).contains(sql), "{name}");
    }
    texts
}

const TEXT: &str = "pg_catalog.text";
const TEXT_INT8: &str = "pg_catalog.text, pg_catalog.int8";
const TEXT_TEXT_INT8: &str = "pg_catalog.text, pg_catalog.text, pg_catalog.int8";
const PAGE: &str = "pg_catalog.int8, pg_catalog.int8, pg_catalog.int8, pg_catalog.int8, \
                    pg_catalog.text, pg_catalog.text, pg_catalog.bool";

/// What a text says, without its comments and literals: words and symbols.
fn tokens(sql: &str) -> BTreeSet<String> {
    let mut tokens = BTreeSet::new();
    let lines = sql.lines().map(|line| line.split("--").next().unwrap());
    let code = lines.collect::<Vec<_>>().join("\n");
    for piece in code.split('\'').step_by(2) {
        let mut token = String::new();
        let kind = |c: char| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => 1,
            _ if "+-*/<>=~!@#%^&|`?".contains(c) => 2,
            _ => 0,
        };
        for c in piece.chars().chain([' ']) {
            if token.chars().last().is_some_and(|last| kind(last) != kind(c)) {
                tokens.insert(std::mem::take(&mut token).to_lowercase());
            }
            if kind(c) > 0 {
                token.push(c);
            }
        }
    }
    tokens
}

/// Where the traps are: where everybody's search path leads, and where the role's own does.
const SCHEMAS: [&str; 2] = ["public", "media_usage"];

/// A database with the recorded rows, and traps for every name in the texts.
async fn database() -> Database {
    let database = Database::of_conformance("synapse-94").await;
    let stranger = format!("stranger_{}", database.name);
    let rights = format!(
        "GRANT SELECT ON devices, account_validity TO media_usage;
         DROP INDEX profiles_full_user_id_key; -- so that one is missing
         INSERT INTO account_validity (user_id, expiration_ts_ms, email_sent) VALUES ('@admin:example.com', 1, false);
         CREATE ROLE {stranger};
         GRANT CREATE ON SCHEMA public TO {stranger};
         GRANT CREATE ON DATABASE {} TO {stranger}",
        database.name
    );
    database.run(&rights).await;
    database.run(AURORA).await;
    let mut superuser = database.superuser().await;
    let tokens: Vec<_> = texts().iter().flat_map(|text| tokens(&text.sql)).collect();
    // Names are printed so that they are found from there.
    superuser.execute("SET search_path = pg_catalog").await.unwrap();
    let mut traps = format!(
        "SET search_path = pg_catalog;
         SET ROLE {stranger};
         CREATE SCHEMA media_usage;
         GRANT USAGE ON SCHEMA media_usage TO PUBLIC;"
    );
    for schema in SCHEMAS {
        for kind in [RELATIONS, FUNCTIONS, AGGREGATES, OPERATORS, TYPES] {
            let ddl: Vec<String> = sqlx::query_scalar(kind)
                .bind(&tokens)
                .bind(schema)
                .fetch_all(&mut superuser)
                .await
                .unwrap();
            assert!(!ddl.is_empty(), "{kind}");
            traps.extend(ddl.iter().flat_map(|ddl| [ddl, ";\n"]));
        }
    }
    superuser.close().await.unwrap();
    database.run(&traps).await;
    database
}

/// Synapse's tables, empty, and the catalog's, which spring when they are read. Like the others, with
/// the words and symbols of the texts as $1 and a schema as $2.
const RELATIONS: &str = "
    SELECT format('CREATE FUNCTION %I.spring() RETURNS boolean LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION ''a trap''; END $$', $2)
    UNION ALL
    SELECT CASE nspname
               WHEN 'public' THEN format('CREATE TABLE %I.%I (%s)', $2, relname, definitions)
               ELSE format('CREATE VIEW %I.%I AS SELECT %s FROM pg_catalog.%I WHERE %I.spring()',
                           $2, relname, columns, relname, $2)
           END || format('; GRANT SELECT ON %I.%I TO PUBLIC', $2, relname)
      FROM pg_class
           JOIN pg_namespace ON pg_namespace.oid = relnamespace
           CROSS JOIN LATERAL (
               SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) AS columns,
                      string_agg(format('%I %s', attname, format_type(atttypid, NULL)), ', ' ORDER BY attnum) AS definitions
                 FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
                WHERE attrelid = pg_class.oid AND attnum > 0 AND typtype <> 'p'
           ) AS attributes
     WHERE nspname IN ('public', 'pg_catalog') AND nspname <> $2
       AND relkind IN ('r', 'v') AND relname = ANY($1)";

/// Functions with the arguments of PostgreSQL's own. Those for any type are there for texts and
/// their arrays, too, which then match better than PostgreSQL's own.
const FUNCTIONS: &str = "
    SELECT DISTINCT format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS
                              $$ BEGIN RAISE EXCEPTION ''a trap''; END $$', $2, proname, arguments,
                           CASE WHEN proretset THEN 'SETOF ' ELSE '' END
                           || CASE WHEN concrete THEN replace(replace(result, 'anyarray', 'text[]'), 'anyelement', 'text')
                                   ELSE result END)
      FROM pg_proc
           CROSS JOIN (VALUES (false), (true)) AS choice (concrete)
           CROSS JOIN LATERAL format_type(prorettype, NULL) AS result
           CROSS JOIN LATERAL (
               SELECT string_agg(
                          CASE WHEN concrete THEN replace(replace(name, 'anyarray', 'text[]'), 'anyelement', 'text')
                               ELSE name END
                          || CASE WHEN n > pronargs - pronargdefaults THEN ' DEFAULT NULL' ELSE '' END,
                          ', ' ORDER BY n) AS arguments,
                      coalesce(bool_and(typtype <> 'p' OR name IN ('anyarray', 'anyelement')), true) AS possible
                 FROM unnest(proargtypes::oid[]) WITH ORDINALITY AS argument (type, n)
                      JOIN pg_type ON pg_type.oid = type
                      CROSS JOIN LATERAL format_type(type, NULL) AS name
           ) AS arguments
     WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY($1)
       AND prokind = 'f' AND proallargtypes IS NULL AND possible
       AND result NOT IN ('internal', 'cstring', 'trigger', 'record')";

/// Aggregates, likewise. A stranger can make no window function: those are written in C.
const AGGREGATES: &str = "
    SELECT format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION ''a trap''; END $$;
                   CREATE AGGREGATE %I.%I(%s) (SFUNC = %I.%I, STYPE = %s)',
                  $2, step, concat_ws(', ', result, arguments), result,
                  $2, proname, coalesce(arguments, '*'), $2, step, result)
      FROM pg_proc
           JOIN pg_aggregate ON aggfnoid = pg_proc.oid
           CROSS JOIN LATERAL replace(replace(format_type(prorettype, NULL), 'anyarray', 'text[]'), 'anyelement', 'text') AS result
           CROSS JOIN LATERAL format('step_%s', pg_proc.oid) AS step
           CROSS JOIN LATERAL (
               SELECT string_agg(replace(replace(replace(name, 'anyarray', 'text[]'), 'anyelement', 'text'), '\"any\"', 'text'),
                                 ', ' ORDER BY n) AS arguments
                 FROM unnest(proargtypes::oid[]) WITH ORDINALITY AS argument (type, n)
                      CROSS JOIN LATERAL format_type(type, NULL) AS name
           ) AS arguments
     WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY($1) AND aggkind = 'n'
       AND result NOT IN ('internal', 'record') AND concat(result, arguments) NOT LIKE '%any%'";

/// Operators for all pairs of these types, the ones in the texts and those behind IN, BETWEEN, LIKE
/// and the like.
const OPERATORS: &str = "
    WITH types AS (
        SELECT format_type(oid, NULL) AS name
          FROM pg_type
         WHERE typname IN ('bool', 'int2', 'int4', 'int8', 'float4', 'float8', 'numeric', 'text', 'name', 'oid',
                           'varchar', 'pg_lsn', 'timestamptz', 'char', 'regclass', 'xid', '_text', '_name', '_oid', 'int2vector', 'oidvector')
    ), pairs AS (
        SELECT a.name AS a, b.name AS b FROM types AS a CROSS JOIN types AS b
    )
    SELECT format('CREATE FUNCTION %I.compare(%s, %s) RETURNS boolean LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION ''a trap''; END $$;
                   CREATE FUNCTION %I.combine(%s, %s) RETURNS %s LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION ''a trap''; END $$', $2, a, b, $2, a, b, a)
      FROM pairs
    UNION ALL
    SELECT format('CREATE OPERATOR %I.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = %I.%s)',
                  $2, operator, a, b, $2, CASE WHEN compares THEN 'compare' ELSE 'combine' END)
      FROM pairs
           CROSS JOIN (
               SELECT oprname AS operator, bool_and(oprresult = 'boolean'::regtype) AS compares
                 FROM pg_operator
                WHERE oprkind = 'b' AND oprname = ANY($1 || '{=,<>,<,<=,>,>=,~~,!~~}'::text[])
                GROUP BY oprname
           ) AS operators";

/// Types, the base types all.
const TYPES: &str = "
    SELECT format('CREATE DOMAIN %I.%I AS pg_catalog.text', $2, typname)
      FROM pg_type
     WHERE typnamespace = 'pg_catalog'::regnamespace AND typrelid = 0 AND typcategory <> 'A'
       AND (typname = ANY($1) OR typtype = 'b')";

/// What of a stranger's a text refers to, looked at with a search path; or how it fails.
async fn trapped(
    superuser: &mut PgConnection,
    text: &Text,
    path: &str,
) -> Result<BTreeSet<String>, sqlx::Error> {
    let mut transaction = superuser.begin().await?;
    // In a body of this kind names are looked up right now, and never again.
    let create = format!(
        "SET LOCAL search_path = {path};
         CREATE FUNCTION media_usage.text_of_ours({}) RETURNS SETOF pg_catalog.record LANGUAGE sql
         BEGIN ATOMIC {}; END",
        text.types, text.sql
    );
    transaction.execute(create.as_str()).await?;
    let named = "SET LOCAL search_path = pg_catalog; SELECT name
          FROM pg_depend
               CROSS JOIN LATERAL pg_identify_object(refclassid, refobjid, 0) AS object (type, schema, bare, name)
         WHERE classid = 'pg_proc'::regclass AND objid = 'media_usage.text_of_ours'::regproc
           AND type NOT IN ('schema', 'language') AND schema <> 'pg_catalog'
           AND NOT (type = 'table' AND schema = 'public'
                    AND 'postgres'::regrole = (SELECT relowner FROM pg_class WHERE oid = refobjid))";
    let rows = sqlx::raw_sql(named).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a text answers to each of its values, byte for byte.
async fn answers(
    session: &mut PgConnection,
    text: &Text,
) -> Result<Vec<Vec<Option<Vec<u8>>>>, sqlx::Error> {
    let mut answers = Vec::new();
    for values in &text.values {
        let sql = if text.types.is_empty() {
            text.sql.clone()
        } else {
            format!(
                "PREPARE text_of_ours ({}) AS {};
                 EXECUTE text_of_ours ({values});
                 DEALLOCATE text_of_ours",
                text.types, text.sql
            )
        };
        let rows = sqlx::raw_sql(&sql).fetch_all(&mut *session).await;
        if rows.is_err() {
            // What failed may have been prepared before.
            session.execute("DEALLOCATE ALL").await?;
        }
        for row in rows? {
            let columns = (0..row.len()).map(|column| {
                let value = row.try_get_raw(column).unwrap();
                value.as_bytes().ok().map(<[u8]>::to_vec)
            });
            answers.push(columns.collect());
        }
    }
    Ok(answers)
}

/// A session of the function's role, with nothing but a search path. And without JIT: the traps make texts look
/// costly enough to be compiled for seconds.
async fn session_with(database: &Database, path: &str) -> PgConnection {
    let options = PgConnectOptions::from_str(&database.url()).unwrap();
    let mut session = PgConnection::connect_with(&options).await.unwrap();
    session.execute(format!("SET search_path = {path}; SET jit = off").as_str()).await.unwrap();
    session
}

/// What the function's own settings say.
const OURS: &str = "pg_catalog, pg_temp";

/// Other search paths: a stranger's first or last, and what the server has by default.
const STRANGERS: [&str; 4] =
    ["public, pg_catalog", "media_usage, pg_catalog", "pg_catalog, public", "\"$user\", public"];

/// The sessions that a text may find itself in.
struct Sessions {
    superuser: PgConnection,
    ours: PgConnection,
    strangers: Vec<PgConnection>,
}

impl Sessions {
    async fn of(database: &Database) -> Self {
        let mut strangers = Vec::new();
        for path in STRANGERS {
            strangers.push(session_with(database, path).await);
        }
        Self { superuser: database.superuser().await, ours: database.session().await, strangers }
    }

    /// What is wrong with a text, if anything is: it refers to a trap, springs it, or answers
    /// otherwise than one that is right.
    async fn complaint(&mut self, text: &Text, right: &Text) -> Option<String> {
        let path = |path: &str| path.replace("\"$user\"", "media_usage");
        let paths = if text.wary { &STRANGERS[..] } else { &[] };
        for path in paths.iter().map(|it| path(it)).chain([OURS.to_owned()]) {
            match trapped(&mut self.superuser, text, &path).await {
                Ok(names) if names.is_empty() => {}
                found => return Some(format!("with {path}: {found:?}")),
            }
        }
        let strangers = if text.wary { &mut self.strangers[..] } else { &mut [] };
        for session in strangers.iter_mut().chain([&mut self.ours]) {
            let expected = answers(session, right).await.unwrap();
            match answers(session, text).await {
                Ok(answers) if answers == expected => {}
                Ok(_) => return Some("another answer".to_owned()),
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    }
}

#[test]
fn no_text_finds_what_a_stranger_made() {
    block_on(async {
        let database = database().await;
        let mut sessions = Sessions::of(&database).await;
        for text in texts() {
            assert_eq!(sessions.complaint(&text, &text).await, None, "{}", text.name);
        }
    });
}

#[test]
fn each_text_would_be_trapped_without_any_one_of_its_schemas() {
    block_on(async {
        let database = database().await;
        let mut sessions = Sessions::of(&database).await;
        let mut count = 0;
        for text in texts() {
            let schemas = ["public.", "pg_catalog.", "OPERATOR(pg_catalog."];
            for (start, schema) in schemas.iter().flat_map(|schema| text.sql.match_indices(schema))
            {
                let (before, rest) = (&text.sql[..start], &text.sql[start + schema.len()..]);
                let sql = match schema {
                    "OPERATOR(pg_catalog." => format!("{before}{}", rest.replacen(')', "", 1)),
                    _ => format!("{before}{rest}"),
                };
                let Text { name, types, wary, .. } = text;
                let mutant = Text { name, sql, types, values: text.values.clone(), wary };
                let complaint = sessions.complaint(&mutant, &text).await;
                let line = before.lines().count();
                assert!(complaint.is_some(), "{name}: nobody notices {schema} in line {line}");
                count += 1;
            }
        }
        assert!(count > 60, "{count}");
    });
}

#[test]
fn an_operator_in_disguise_is_noticed() {
    block_on(async {
        let database = database().await;
        let mut sessions = Sessions::of(&database).await;
        let mut texts = texts().into_iter();
        let right = texts.find(|text| text.name == "session").unwrap();
        let written_out = "pg_am.amname OPERATOR(pg_catalog.=) 'btree'";
        for disguise in [
            "pg_am.amname IN ('btree')",
            "pg_am.amname = ANY ('{btree}')",
            "pg_am.amname BETWEEN 'btree' AND 'btree'",
            "pg_am.amname LIKE 'btree'",
            "pg_am.amname NOT LIKE 'hash'",
            "pg_am.amname IS NOT DISTINCT FROM 'btree'",
            "nullif(pg_am.amname, 'btree') IS NULL",
            "CASE pg_am.amname WHEN 'btree' THEN true ELSE false END",
            "(pg_am.amname, 1) = ('btree', 1)",
            "pg_am.amname OPERATOR(pg_catalog.=) 'btree'::text",
            "EXISTS (SELECT FROM pg_catalog.pg_am AS other JOIN pg_catalog.pg_am AS same USING (oid))",
            "EXISTS (SELECT FROM pg_catalog.pg_am AS other NATURAL JOIN pg_catalog.pg_am AS same)",
        ] {
            let sql = right.sql.replace(written_out, disguise);
            assert_ne!(sql, right.sql);
            let Text { name, types, wary, .. } = right;
            let mutant = Text { name, sql, types, values: right.values.clone(), wary };
            assert!(sessions.complaint(&mutant, &right).await.is_some(), "{disguise}");
        }
    });
}

#[test]
fn the_traps_spring_where_a_stranger_comes_first() {
    block_on(async {
        let database = database().await;
        let mut superuser = database.superuser().await;
        for path in ["public, pg_catalog", "media_usage, pg_catalog"] {
            let mut session = session_with(&database, path).await;
            for mut text in texts() {
                text.sql = text
                    .sql
                    .replace("OPERATOR(pg_catalog.=)", "=")
                    .replace("OPERATOR(pg_catalog.<)", "<")
                    .replace("OPERATOR(pg_catalog.>=)", ">=")
                    .replace("pg_catalog.", "");
                // There is a trap for all that the text uses.
                let found = trapped(&mut superuser, &text, path).await.unwrap();
                let bare = |name: &str| {
                    let name = name.split('(').next().unwrap();
                    name.split_once('.').unwrap().1.trim_matches('"').to_owned()
                };
                let found: BTreeSet<_> = found.iter().map(|name| bare(name)).collect();
                let used = used(&mut superuser, &text.sql).await;
                let safe: Vec<_> = used.difference(&found).collect();
                assert!(safe.is_empty(), "{} with {path}: no trap for {safe:?}", text.name);
                // And they do spring.
                let error = answers(&mut session, &text).await.unwrap_err().to_string();
                assert!(error.contains("a trap"), "{} with {path}: {error}", text.name);
            }
        }
        // Where PostgreSQL has an operator for other types only, even one that comes last is taken.
        let mut session = session_with(&database, "\"$user\", public").await;
        for text in texts().iter().filter(|it| ["counts", "walk", "search"].contains(&it.name)) {
            let error = answers(&mut session, text).await.unwrap_err().to_string();
            assert!(error.contains("a trap"), "{}: {error}", text.name);
        }
    });
}

/// The functions and operators in a text, which PostgreSQL has.
async fn used(superuser: &mut PgConnection, sql: &str) -> BTreeSet<String> {
    let tokens: Vec<_> = tokens(sql).into_iter().collect();
    // Not those that are no more than columns by the same name; no star, which may be all columns;
    // and no minus, which may be a sign.
    let tokens: Vec<_> = tokens
        .into_iter()
        .filter(|it| {
            it != "*"
                && it != "-"
                && (!it.starts_with(|c: char| c.is_ascii_lowercase())
                    || sql.contains(&format!(" {it}("))
                    || sql.contains(&format!("({it}(")))
        })
        .collect();
    let names = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind <> 'w' AND proname = ANY($1)
                 UNION SELECT oprname::text FROM pg_operator WHERE oprname = ANY($1)";
    sqlx::query_scalar(names).bind(tokens).fetch_all(superuser).await.unwrap().into_iter().collect()
}
