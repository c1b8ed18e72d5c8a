//! The SQL that makes the function's role, on a primary as RDS has it: `src/sql/role.sql`, and what the template's output
//! `SqlForPrimary` is for the sets of parameters in `tests/snapshots/template`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock},
};

use crate::support::{database::Cluster, documentation::block, project, read};

const PASSWORD: &str = "pa/ss@word";

/// How a master user may use the owner's tables.
const OWNS: &str = "GRANT synapse TO CURRENT_USER";

/// Answers what docs/deploy.md asks, from a file.
const AWS: &str = r#"#!/usr/bin/env bash
asked="cloudformation describe-stacks --stack-name media-usage --output text --query Stacks[0].Outputs[?OutputKey=='SqlForPrimary'].OutputValue"
[[ $* == "$asked" ]] && cat "$SQL"
"#;

/// In a session of its own there is no terminal, and psql reads passwords from stdin.
const WITHOUT_TERMINAL: &str = "import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])";

/// A server with Synapse's database, whose owner is `synapse`. It has RDS's role `rds_iam`, and RDS's master user, who is no
/// superuser: `master`.
struct Primary {
    cluster: &'static Cluster,
    folder: PathBuf,
}

/// One for all tests here, who take turns: roles belong to the whole server.
fn primary() -> MutexGuard<'static, Primary> {
    static PRIMARY: OnceLock<Mutex<Primary>> = OnceLock::new();
    let primary = PRIMARY.get_or_init(|| Mutex::new(Primary::start()));
    // After a test that failed the others can go on.
    primary.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Primary {
    fn start() -> Self {
        let cluster = Cluster::of_its_own();
        // Removed with the server.
        let primary = Self { cluster, folder: PathBuf::from(&cluster.socket_dir).join("role") };
        fs::create_dir(&primary.folder).unwrap();
        let aws = primary.folder.join("aws");
        fs::write(&aws, AWS).unwrap();
        fs::set_permissions(&aws, PermissionsExt::from_mode(0o755)).unwrap();
        primary.psql(
            "postgres",
            "postgres",
            "CREATE ROLE rds_iam; CREATE ROLE master LOGIN CREATEROLE CREATEDB",
        );
        primary.psql("postgres", "postgres", "GRANT rds_iam TO master WITH ADMIN OPTION");
        primary.psql("master", "postgres", &format!("CREATE ROLE synapse; {OWNS}"));
        primary.psql("master", "postgres", "CREATE DATABASE synapse OWNER synapse");
        primary.psql("master", "synapse", "SET ROLE synapse;\n\\i tests/schema/synapse-94.sql");
        primary
    }

    /// What a command prints, or what it complains of.
    fn shell(
        &self,
        command: &str,
        input: &str,
        variables: &[(&str, &str)],
    ) -> Result<String, String> {
        // Some installations of Python put themselves first.
        let path = std::env::var("PATH").unwrap();
        let path = format!("PATH={}:{}:{path}", self.folder.display(), self.cluster.bin);
        let shell = ["env", &path, "bash", "-euo", "pipefail", "-c", command];
        let mut python = Command::new("python3");
        self.run(python.args(["-c", WITHOUT_TERMINAL]).args(shell), input, variables)
    }

    fn run(
        &self,
        command: &mut Command,
        input: &str,
        variables: &[(&str, &str)],
    ) -> Result<String, String> {
        let mut running = command
            .current_dir(project())
            .env("PGHOST", &self.cluster.socket_dir)
            .env("PGPORT", self.cluster.port.to_string())
            .env("SQL", self.folder.join("sql"))
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = running.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            // A command that has failed reads no more.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            running.wait_with_output().unwrap()
        });
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// What SQL answers.
    #[track_caller]
    fn psql(&self, user: &str, database: &str, sql: &str) -> String {
        self.try_psql(user, database, sql, &[]).unwrap()
    }

    fn try_psql(
        &self,
        user: &str,
        database: &str,
        sql: &str,
        variables: &[(&str, &str)],
    ) -> Result<String, String> {
        let mut psql = Command::new(format!("{}/psql", self.cluster.bin));
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", database]);
        self.run(&mut psql, sql, variables)
    }

    /// Runs the step "Make the role", as it is written, where this is the stack's SQL.
    fn make(&self, sql: &str, user: &str, sets_password: bool) {
        fs::write(self.folder.join("sql"), sql).unwrap();
        let step = block("docs/deploy.md", "output() ");
        let step = step.trim_end();
        let (make, set_password) = step.rsplit_once('\n').unwrap();
        assert!(set_password.contains("# for secret, password and an RDS Proxy"));
        let step = (if sets_password { step } else { make })
            .replace(" PRIMARY ", &format!(" {} ", self.cluster.socket_dir))
            .replace(" MASTER ", " master ")
            .replace("password media_usage", &format!("password {user}"));
        self.shell(&step, &format!("{PASSWORD}\n").repeat(2), &[]).unwrap();
    }

    /// What the role may do: columns by right and table.
    fn rights(&self, user: &str) -> BTreeMap<String, String> {
        let rights = self.psql(
            "postgres",
            "synapse",
            &format!(
                "SELECT privilege_type || ' ' || table_name, string_agg(column_name, ', ' ORDER BY column_name)
                 FROM information_schema.column_privileges WHERE grantee = '{user}' GROUP BY 1"
            ),
        );
        rights
            .lines()
            .map(|line| line.split_once('|').unwrap())
            .map(|(right, columns)| (right.to_owned(), columns.to_owned()))
            .collect()
    }
}

/// `SqlForPrimary` of a set, for another role if that is named.
fn rendered(set: &str) -> String {
    read(&format!("tests/snapshots/template/{set}.sql"))
}

/// What makes the role: as the template has it, without a password and with one, and as `role.sql`.
fn every_sql(user: &str) -> [String; 3] {
    [rendered("iam"), rendered("secret"), read("src/sql/role.sql")]
        .map(|sql| sql.replace("media_usage", user))
}

/// The columns that `role.sql` grants, by right and table, those for some setups only among them.
fn granted() -> BTreeMap<String, String> {
    let sql = read("src/sql/role.sql");
    let grants = sql.split("GRANT SELECT (").skip(1).map(|rest| {
        let (columns, rest) = rest.split_once(") ON public.").unwrap();
        let mut columns: Vec<_> = columns.split(", ").collect();
        columns.sort_unstable();
        (format!("SELECT {}", rest.split(' ').next().unwrap()), columns.join(", "))
    });
    grants.collect()
}

#[test]
fn the_template_s_sql_is_that_of_role_sql() {
    let statements = |sql: &str| {
        let lines = sql.lines().map(|line| line.split("--").next().unwrap());
        lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
    };
    let sql = rendered("secret")
        .replace("\"media_usage\"", "media_usage")
        .replace("\"public\"", "public");
    // With a password it leaves rds_iam too, which servers of one's own have not.
    let (sql, leave_iam) = sql.split_once("DO $$ BEGIN").unwrap();
    assert!(leave_iam.contains("REVOKE rds_iam FROM media_usage;"));
    let role = read("src/sql/role.sql").replace("'20s'", "20000");
    assert_eq!(format!("{} COMMIT;", statements(sql)), statements(&role));
}

#[test]
fn the_role_can_do_what_role_sql_grants_and_no_more() {
    let primary = primary();
    let every = granted();
    assert_eq!(every.len(), 6);
    // One that is there, may not log in, and may read more than it should.
    primary.psql(
        "postgres",
        "synapse",
        "CREATE ROLE reader; GRANT reader TO master WITH ADMIN OPTION; GRANT SELECT ON access_tokens TO reader",
    );
    let without_mas = ["devices", "account_validity"];
    for (set, user, missing) in [
        ("secret", "media_usage", &without_mas[..]),
        ("password", "media_usage", &["devices"]),
        ("iam", "media_usage", &without_mas),
        // As a member of rds_iam it would be refused its password.
        ("secret", "media_usage", &without_mas),
        ("iam", "media_usage", &without_mas),
        // The same role, after the homeserver has moved to MAS.
        ("mas", "media_usage", &["access_tokens", "account_validity"]),
        ("password", "reader", &["devices"]),
        ("full", "reader", &["access_tokens", "account_validity"]),
        // And back again.
        ("secret", "reader", &without_mas),
        // Words of SQL.
        ("secret", "current_user", &without_mas),
        ("iam", "user", &without_mas),
        ("proxy", "proxied", &without_mas),
    ] {
        let case = format!("{set} as {user}");
        let has_password = !["iam", "mas"].contains(&set);
        let sql = rendered(set).replace("media_usage", user).replace("Matrix_1", "public");
        let mut expected = every.clone();
        expected
            .retain(|right, _| missing.iter().all(|table| !right.ends_with(&format!(" {table}"))));
        // It is safe to repeat.
        for _ in 0..2 {
            primary.make(&sql, user, has_password);
            assert_eq!(primary.rights(user), expected, "{case}");
        }
        let in_rds_iam = format!("SELECT pg_has_role('{user}', 'rds_iam', 'MEMBER')");
        let expected = if has_password { "f\n" } else { "t\n" };
        assert_eq!(primary.psql("postgres", "synapse", &in_rds_iam), expected, "{case}");
        if has_password {
            let settings = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'; SHOW default_transaction_read_only";
            let login = [("PGPASSWORD", PASSWORD), ("PGHOST", "127.0.0.1")];
            let timeout = if set == "full" { 5000 } else { 20000 };
            let settings = primary.try_psql(user, "synapse", settings, &login);
            assert_eq!(settings, Ok(format!("{timeout}\non\n")), "{case}");
        }
    }
}

/// RDS refuses the passwords of members of `rds_iam`, and whoever has made a role is its member from PostgreSQL 16 on
/// (movetokube/postgres-operator#315).
#[test]
fn no_member_of_the_role_is_put_into_rds_iam_unless_it_is_there() {
    let primary = primary();
    primary.psql(
        "postgres",
        "synapse",
        "CREATE ROLE maker LOGIN CREATEROLE; GRANT synapse TO maker",
    );
    let [iam, secret] = ["iam", "secret"].map(|set| rendered(set).replace("media_usage", "shared"));
    primary.psql("maker", "synapse", &secret);
    let version: u32 =
        primary.psql("postgres", "synapse", "SHOW server_version_num").trim().parse().unwrap();
    if version < 160_000 {
        primary.psql("postgres", "synapse", "GRANT shared TO maker");
    }
    let in_rds_iam = |user| {
        let asked = format!("SELECT pg_has_role('{user}', 'rds_iam', 'MEMBER')");
        primary.psql("postgres", "synapse", &asked)
    };
    let make = || primary.shell("psql -Xq -U postgres -d synapse 2>&1", &iam, &[]).unwrap();
    let granted = primary.rights("shared");
    let warning = make();
    assert!(
        warning.contains("could then refuse the passwords of its members: maker. "),
        "{warning}"
    );
    assert_eq!((in_rds_iam("shared"), in_rds_iam("maker")), ("f\n".into(), "f\n".into()));
    assert_eq!(primary.rights("shared"), granted);

    // Who logs in by IAM has no password to lose.
    primary.psql("postgres", "synapse", "GRANT rds_iam TO maker");
    for _ in 0..2 {
        let said = make();
        assert!(!said.contains("WARNING"), "{said}");
        assert_eq!(in_rds_iam("shared"), "t\n");
    }
    primary.psql("postgres", "synapse", "DROP OWNED BY shared; DROP ROLE shared; DROP ROLE maker");
}

#[test]
fn a_server_that_is_not_rds_s_has_no_rds_iam() {
    let primary = primary();
    primary.psql("postgres", "synapse", "ALTER ROLE rds_iam RENAME TO elsewhere");
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        primary.make(&rendered("secret").replace("media_usage", "outside"), "outside", true);
    }));
    primary.psql("postgres", "synapse", "ALTER ROLE elsewhere RENAME TO rds_iam");
    assert!(made.is_ok());
}

#[test]
fn another_schema_is_one_parameter_or_one_word() {
    let primary = primary();
    primary.psql("master", "postgres", "CREATE DATABASE elsewhere");
    let tables = "CREATE SCHEMA \"Matrix_1\"; SET search_path = \"Matrix_1\";\n\\i tests/schema/synapse-94.sql";
    primary.psql("master", "elsewhere", tables);
    let role = read("src/sql/role.sql");
    let edit = role
        .lines()
        .find_map(|line| line.split_once("  sed "))
        .unwrap()
        .1
        .split(" | ")
        .next()
        .unwrap();
    let edited =
        primary.shell(&format!("sed {}", edit.replace("matrix", "Matrix_1")), "", &[]).unwrap();
    for (user, sql, tables) in [
        (
            "by_role_sql",
            edited.replace("media_usage", "by_role_sql"),
            "access_tokens local_media_repository profiles users",
        ),
        (
            "by_template",
            rendered("full").replace("reader", "by_template"),
            "devices local_media_repository profiles users",
        ),
    ] {
        for _ in 0..2 {
            primary.psql("master", "elsewhere", &sql);
        }
        let granted = format!(
            "SELECT string_agg(DISTINCT table_name, ' ' ORDER BY table_name) FROM information_schema.column_privileges
             WHERE grantee = '{user}' AND table_schema = 'Matrix_1'"
        );
        assert_eq!(primary.psql("postgres", "elsewhere", &granted).trim(), tables);
        // That the schema itself is granted too.
        let read = format!("SET ROLE {user}; SELECT count(name) FROM \"Matrix_1\".users");
        primary.psql("postgres", "elsewhere", &read);
        primary.psql("postgres", "elsewhere", &format!("DROP OWNED BY {user}"));
    }
}

/// Everything that a stranger may put under the names that the SQL uses: operators also of types for which `pg_catalog` has
/// them only by a conversion, so that they win wherever their schema is searched at all.
const TRAPS: &str = r#"
    CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    DO $traps$ DECLARE
        types regtype[] := '{oid, regclass, regrole, regnamespace, name, text, integer, smallint, boolean}';
        a regtype;
        b regtype;
        called record;
    BEGIN
        FOREACH a IN ARRAY types || '"char"'::regtype LOOP
            FOREACH b IN ARRAY types || '"char"'::regtype LOOP
                EXECUTE format('CREATE FUNCTION trap(%s, %s) RETURNS boolean LANGUAGE plpgsql AS ''BEGIN RETURN public.trap(); END''', a, b);
                EXECUTE format('CREATE FUNCTION join(%s, %s) RETURNS text LANGUAGE plpgsql AS ''BEGIN RETURN public.trap(); END''', a, b);
                EXECUTE format('CREATE OPERATOR = (LEFTARG = %s, RIGHTARG = %s, FUNCTION = trap)', a, b);
                EXECUTE format('CREATE OPERATOR <> (LEFTARG = %s, RIGHTARG = %s, FUNCTION = trap)', a, b);
                EXECUTE format('CREATE OPERATOR || (LEFTARG = %s, RIGHTARG = %s, FUNCTION = join)', a, b);
            END LOOP;
        END LOOP;
        FOR called IN
            SELECT proname, pg_get_function_identity_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
            FROM pg_proc WHERE proname IN ('aclexplode', 'current_database', 'pg_describe_object', 'to_regrole')
        LOOP
            EXECUTE format('CREATE FUNCTION public.%I(%s) %s LANGUAGE plpgsql AS ''BEGIN PERFORM public.trap(); END''', called.proname,
                called.arguments, CASE WHEN called.arguments LIKE '%OUT %' THEN '' ELSE 'RETURNS ' || called.result END);
        END LOOP;
        FOR called IN
            SELECT relname FROM pg_class
            WHERE relname IN ('pg_roles', 'pg_class', 'pg_attribute', 'pg_namespace', 'pg_database', 'pg_auth_members', 'pg_shdepend')
        LOOP
            EXECUTE format('CREATE VIEW public.%I AS SELECT FROM pg_catalog.%I WHERE public.trap()', called.relname, called.relname);
        END LOOP;
    END $traps$;
"#;

#[test]
fn a_stranger_s_objects_are_not_used() {
    let primary = primary();
    primary.psql("postgres", "postgres", "CREATE DATABASE trapped");
    primary.psql("postgres", "trapped", "\\i tests/schema/synapse-94.sql");
    // As everybody could up to PostgreSQL 14.
    primary.psql(
        "postgres",
        "trapped",
        "CREATE ROLE stranger; GRANT CREATE ON SCHEMA public TO stranger",
    );
    primary.psql("postgres", "trapped", &format!("SET ROLE stranger; {TRAPS}"));
    for (path, caught) in [
        ("public", &["SELECT 1::oid = 'pg_class'::regclass"][..]),
        ("public,pg_catalog", &["SELECT 1::oid = 'pg_class'::regclass", "SELECT FROM pg_roles"]),
    ] {
        let options = format!("-c search_path={path}");
        let searched = [("PGOPTIONS", options.as_str())];
        for sql in every_sql("careful") {
            for _ in 0..2 {
                assert_eq!(
                    primary.try_psql("postgres", "trapped", &sql, &searched),
                    Ok(String::new()),
                    "{path}"
                );
            }
        }
        // They do catch.
        for asked in caught {
            let complaint = primary.try_psql("postgres", "trapped", asked, &searched).unwrap_err();
            assert!(complaint.contains("trapped"), "{path}: {complaint}");
        }
    }
    primary.psql("postgres", "trapped", "DROP OWNED BY careful; DROP ROLE careful");
}

/// What others can have put into their databases.
const OBJECTS: &str = "
    CREATE SEQUENCE a_sequence;
    CREATE SCHEMA a_schema;
    CREATE TYPE a_type AS (a_column int);
    CREATE DOMAIN a_domain AS int;
    CREATE FUNCTION a_function() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FOREIGN DATA WRAPPER a_wrapper;
    CREATE SERVER a_server FOREIGN DATA WRAPPER a_wrapper;
    CREATE ROLE somebody;
    SELECT lo_create(1);
";

/// What a role R can have beside reading: in which database it is given, how, and what it is called.
const EXCESSES: [(&str, &str, &str); 44] = [
    ("synapse", "ALTER ROLE R SUPERUSER", "SUPERUSER"),
    ("synapse", "ALTER ROLE R CREATEROLE", "CREATEROLE"),
    ("synapse", "ALTER ROLE R CREATEDB", "CREATEDB"),
    ("synapse", "ALTER ROLE R REPLICATION", "REPLICATION"),
    ("synapse", "ALTER ROLE R BYPASSRLS", "BYPASSRLS"),
    ("synapse", "ALTER ROLE R NOINHERIT; GRANT synapse TO R", "membership in synapse"),
    ("synapse", "GRANT pg_read_all_data TO R", "membership in pg_read_all_data"),
    ("synapse", "GRANT rds_iam TO R WITH ADMIN OPTION", "membership in rds_iam"),
    (
        "synapse",
        "GRANT INSERT ON local_media_repository TO R",
        "rights on table public.local_media_repository",
    ),
    ("synapse", "GRANT TRUNCATE ON profiles TO R", "rights on table public.profiles"),
    ("synapse", "GRANT SELECT, TRIGGER ON devices TO R", "rights on table public.devices"),
    ("synapse", "GRANT SELECT ON users TO R WITH GRANT OPTION", "rights on table public.users"),
    (
        "synapse",
        "GRANT UPDATE (admin) ON users TO R",
        "rights on column admin of table public.users",
    ),
    (
        "synapse",
        "GRANT INSERT (token) ON access_tokens TO R",
        "rights on column token of table public.access_tokens",
    ),
    (
        "synapse",
        "GRANT SELECT (name) ON users TO R WITH GRANT OPTION",
        "rights on column name of table public.users",
    ),
    ("synapse", "GRANT SELECT ON SEQUENCE a_sequence TO R", "rights on sequence public.a_sequence"),
    ("synapse", "GRANT UPDATE ON SEQUENCE a_sequence TO R", "rights on sequence public.a_sequence"),
    ("synapse", "GRANT USAGE ON SEQUENCE a_sequence TO R", "rights on sequence public.a_sequence"),
    ("synapse", "GRANT CREATE ON SCHEMA public TO R", "rights on schema public"),
    ("synapse", "GRANT USAGE ON SCHEMA a_schema TO R", "rights on schema a_schema"),
    ("synapse", "GRANT CREATE ON DATABASE synapse TO R", "rights on database synapse"),
    ("synapse", "GRANT TEMPORARY ON DATABASE synapse TO R", "rights on database synapse"),
    (
        "synapse",
        "GRANT EXECUTE ON FUNCTION a_function() TO R",
        "rights on function public.a_function()",
    ),
    ("synapse", "GRANT USAGE ON TYPE a_type TO R", "rights on type public.a_type"),
    ("synapse", "GRANT USAGE ON DOMAIN a_domain TO R", "rights on type public.a_domain"),
    ("synapse", "GRANT USAGE ON LANGUAGE plpgsql TO R", "rights on language plpgsql"),
    (
        "synapse",
        "GRANT USAGE ON FOREIGN DATA WRAPPER a_wrapper TO R",
        "rights on foreign-data wrapper a_wrapper",
    ),
    ("synapse", "GRANT USAGE ON FOREIGN SERVER a_server TO R", "rights on server a_server"),
    (
        "synapse",
        "CREATE USER MAPPING FOR R SERVER a_server",
        "ownership of user mapping for R on server a_server",
    ),
    ("synapse", "GRANT SELECT ON LARGE OBJECT 1 TO R", "rights on large object 1"),
    ("synapse", "GRANT CREATE ON TABLESPACE pg_default TO R", "rights on tablespace pg_default"),
    (
        "synapse",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO R",
        "rights on default privileges on new relations",
    ),
    (
        "synapse",
        "ALTER DEFAULT PRIVILEGES FOR ROLE R GRANT SELECT ON TABLES TO somebody",
        "ownership of default privileges",
    ),
    (
        "synapse",
        "CREATE POLICY a_policy ON users TO R",
        "rights on policy a_policy on table public.users",
    ),
    (
        "synapse",
        "CREATE TABLE R_s (a_column int); ALTER TABLE R_s OWNER TO R",
        "ownership of table public.R_s",
    ),
    (
        "synapse",
        "CREATE TABLE R_r (); ALTER TABLE R_r OWNER TO R; REVOKE ALL ON R_r FROM R; GRANT SELECT ON R_r TO R",
        "ownership of table public.R_r",
    ),
    (
        "synapse",
        "CREATE PUBLICATION R_s; ALTER PUBLICATION R_s OWNER TO R",
        "ownership of publication R_s",
    ),
    ("mas", "GRANT SELECT ON a_table TO R", "rights on something in database mas"),
    ("mas", "GRANT SELECT (a_column) ON a_table TO R", "rights on something in database mas"),
    ("mas", "GRANT USAGE ON SCHEMA public TO R", "rights on something in database mas"),
    (
        "mas",
        "GRANT UPDATE ON pg_description TO R;\n\\c synapse\nGRANT SELECT ON pg_description TO R",
        "rights on something in database mas",
    ),
    ("mas", "CREATE SCHEMA AUTHORIZATION R", "ownership of something in database mas"),
    ("mas", "GRANT CONNECT ON DATABASE mas TO R", "rights on database mas"),
    ("postgres", "CREATE DATABASE R_s OWNER R", "ownership of database R_s"),
];

/// What a role can have that may be the function's.
const READING: [&str; 5] = [
    "GRANT SELECT ON users TO R",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO R",
    "GRANT SELECT (name) ON users TO R; GRANT CONNECT ON DATABASE synapse TO R; GRANT USAGE ON SCHEMA public TO R",
    "ALTER ROLE R CONNECTION LIMIT 10; ALTER ROLE R NOINHERIT",
    "GRANT rds_iam TO R",
];

/// A text with another role in place of R.
fn of_role(text: &str, user: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric();
    let mut written = String::new();
    for (at, c) in text.char_indices() {
        let alone = !text[..at].ends_with(|c: char| is_word(c) || c == '_')
            && !text[at + c.len_utf8()..].starts_with(is_word);
        if c == 'R' && alone { written.push_str(user) } else { written.push(c) }
    }
    written
}

#[test]
fn a_role_that_is_not_the_function_s_is_left_as_it_is() {
    let primary = primary();
    primary.psql("postgres", "postgres", "CREATE DATABASE mas");
    primary.psql("postgres", "mas", "CREATE TABLE a_table (a_column int)");
    primary.psql("postgres", "synapse", OBJECTS);
    let version: u32 =
        primary.psql("postgres", "synapse", "SHOW server_version_num").trim().parse().unwrap();
    let mut excesses = EXCESSES.to_vec();
    if version >= 150_000 {
        excesses.push((
            "synapse",
            "GRANT SET ON PARAMETER log_statement TO R",
            "rights on parameter log_statement",
        ));
    }
    let (mut roles, mut given_to_them) = (Vec::new(), Vec::new());
    for (number, (database, given, called)) in excesses.into_iter().enumerate() {
        let user = format!("other_{number}");
        let given = of_role(given, &user);
        given_to_them.push(format!("\\c {database}\nCREATE ROLE {user};\n{given};\n"));
        let called = of_role(called, &user);
        roles.push((user, called));
    }
    primary.psql("postgres", "postgres", &given_to_them.concat());
    let everything = "
        SELECT to_jsonb(r) FROM pg_roles r ORDER BY oid; SELECT to_jsonb(m) FROM pg_auth_members m ORDER BY 1;
        SELECT to_jsonb(d) FROM pg_shdepend d ORDER BY 1; SELECT relname, relacl FROM pg_class ORDER BY 1;
        SELECT attrelid, attname, attacl FROM pg_attribute WHERE attacl IS NOT NULL ORDER BY 1, 2";
    let before = primary.psql("postgres", "synapse", everything);

    // Pasted into a console, which goes on after an error, and by a superuser, whom nothing else stops.
    roles.extend(["synapse", "master", "postgres"].map(|user| (user.to_owned(), String::new())));
    let pasted: String = roles.iter().flat_map(|(user, _)| every_sql(user)).collect();
    let complaints = primary.shell("psql -Xq -U postgres -d synapse 2>&1", &pasted, &[]).unwrap();
    let mut refusals = complaints
        .lines()
        .filter(|line| line.contains("ERROR:  ") && !line.contains("transaction is aborted"));
    for (user, called) in &roles {
        for sql in ["iam", "secret", "role.sql"] {
            let refused = format!("{user} is not a role for the function: it has {called}");
            let said = refusals.next().unwrap();
            assert!(said.contains(&refused), "{sql}: {said}, not {refused}");
        }
    }
    assert_eq!(refusals.next(), None);
    // And as documented.
    for sql in every_sql("synapse") {
        let complaint = primary.try_psql("postgres", "synapse", &sql, &[]).unwrap_err();
        assert!(complaint.contains("synapse is not a role for the function"), "{complaint}");
    }
    assert_eq!(primary.psql("postgres", "synapse", everything), before);
}

#[test]
fn a_role_that_only_reads_can_be_the_function_s() {
    let primary = primary();
    for given in READING {
        primary.psql("postgres", "synapse", "CREATE ROLE a_reader");
        primary.psql("postgres", "synapse", &of_role(given, "a_reader"));
        for sql in every_sql("a_reader") {
            assert_eq!(
                primary.try_psql("postgres", "synapse", &sql, &[]),
                Ok(String::new()),
                "{given}"
            );
        }
        primary.psql("postgres", "synapse", "DROP OWNED BY a_reader; DROP ROLE a_reader");
    }
}
