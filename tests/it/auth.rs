//! Whose token it is: every way in, with tokens that the homeserver keeps itself and with those of
//! Matrix Authentication Service (MAS), and where the replica lags.
//!
//! What Synapse answers was recorded from a real Synapse 1.163.2 with a MAS that was told what to say.

use std::collections::BTreeSet;

use serde_json::json;
use synapse_media_usage::{config::Config, service::Service};

use crate::support::{
    NOW_MS,
    asking::{
        ADMIN, CLIENT_API, DEVICE, SERVER_NAME, UNSTABLE_DEVICE, Variables, ask, ask_at,
        ask_function, assert_is, case, case_by_query, database, introspected,
    },
    block_on, conformance,
    database::{Database, SCHEMAS},
    homeserver::{Homeserver, owner, refusal},
    mas::{Mas, SECRET},
    read,
    server::{Answer, Reply},
};

/// Every way in, as a table of decisions: of the rows that fit a request the first one counts, so
/// that their order is the order of the checks. A column is `*`, or names separated by commas, or
/// `!` before a name. The last two columns are the answer, and how often the homeserver is asked.
struct Table {
    columns: &'static [(&'static str, &'static [&'static str])],
    rows: &'static str,
}

/// Tokens that Synapse keeps itself.
const INTERNAL: Table = Table {
    columns: &[
        // `fresh` tokens and those of application services are known to the homeserver alone.
        ("token", &["known", "expired", "fresh", "service", "unknown"]),
        ("user", &["admin", "plain", "locked", "guest", "locked-guest", "absent"]),
        ("account", &["endless", "valid", "expired"]),
        ("ACCOUNT_VALIDITY", &["true", "false"]),
        ("HOMESERVER_URL", &["none", "up", "down"]),
    ],
    rows: "
        expired        | !absent             | *       | *    | *    | 401 M_UNKNOWN_TOKEN true Access token has expired         | 0
        known          | locked,locked-guest | *       | *    | *    | 401 M_USER_LOCKED true User account has been locked        | 0
        known          | !absent             | expired | true | *    | 403 ORG_MATRIX_EXPIRED_ACCOUNT - User account has expired  | 0
        known          | guest               | *       | *    | *    | 403 M_GUEST_ACCESS_FORBIDDEN - Guest access not allowed    | 0
        known          | plain               | *       | *    | *    | 403 M_FORBIDDEN - You are not a server admin               | 0
        known          | admin               | *       | *    | *    | 200                                                        | 0
        *              | *                   | *       | *    | none | 401 M_UNKNOWN_TOKEN false Invalid access token passed.     | 0
        *              | *                   | *       | *    | down | 503 M_UNKNOWN - ...                                        | 1
        unknown        | *                   | *       | *    | up   | 401 M_UNKNOWN_TOKEN false Invalid access token passed.     | 1
        expired        | absent              | *       | *    | up   | 401 M_UNKNOWN_TOKEN true Access token has expired          | 1
        service        | absent              | *       | *    | up   | 403 M_FORBIDDEN - You are not a server admin               | 1
        *              | absent              | *       | *    | up   | 503 M_UNKNOWN - ...                                        | 1
        fresh          | !admin              | *       | *    | up   | 503 M_UNKNOWN - ...                                        | 1
        fresh          | *                   | expired | true | up   | 503 M_UNKNOWN - ...                                        | 1
        *              | locked,locked-guest | *       | *    | up   | 401 M_USER_LOCKED true User account has been locked        | 1
        *              | *                   | expired | true | up   | 403 ORG_MATRIX_EXPIRED_ACCOUNT - User account has expired  | 1
        *              | guest               | *       | *    | up   | 403 M_GUEST_ACCESS_FORBIDDEN - Guest access not allowed    | 1
        *              | plain               | *       | *    | up   | 403 M_FORBIDDEN - You are not a server admin               | 1
        *              | admin               | *       | *    | up   | 200                                                        | 1",
};

/// Tokens of MAS. Of a user nothing counts but that there is one: neither flags nor the account's
/// validity.
const MAS: Table = Table {
    columns: &[
        ("token", &["active", "inactive", "past", "no-client", "unreachable"]),
        ("admin scope", &["yes", "no"]),
        ("user", &["admin", "plain", "locked", "guest", "expired", "absent"]),
        // `named` is beside the scope, `both` is one by either prefix, `hidden` is a key and no device.
        ("device", &["none", "scope", "named", "both", "several", "unusable", "hidden", "absent"]),
        // `other` names another user.
        ("HOMESERVER_URL", &["none", "up", "refuses", "other", "down"]),
    ],
    rows: "
        unreachable    | *   | *       | *             | *          | 503 M_UNKNOWN - Unable to introspect the access token                        | 0
        inactive,past  | *   | *       | *             | *          | 401 M_UNKNOWN_TOKEN false Token is not active                                | 0
        no-client      | *   | *       | *             | *          | 401 M_UNKNOWN_TOKEN false Token doesn't grant access to the Matrix C-S API   | 0
        active         | *   | absent  | *             | none       | 500 M_FORBIDDEN - User not found                                             | 0
        active         | *   | *       | several       | *          | 500 M_FORBIDDEN - Multiple device IDs in scope                               | 0
        active         | *   | *       | unusable      | *          | 500 M_FORBIDDEN - Invalid device ID in introspection result                  | 0
        active         | *   | *       | hidden,absent | none       | 401 M_UNKNOWN_TOKEN false Token is not active                                | 0
        active         | *   | absent  | *             | refuses    | 401 M_UNKNOWN_TOKEN true Refused                                             | 1
        active         | *   | *       | hidden,absent | refuses    | 401 M_UNKNOWN_TOKEN true Refused                                             | 1
        active         | *   | absent  | *             | other,down | 503 M_UNKNOWN - ...                                                          | 1
        active         | *   | *       | hidden,absent | other,down | 503 M_UNKNOWN - ...                                                          | 1
        active         | no  | absent  | *             | up         | 403 M_FORBIDDEN - You are not a server admin                                 | 1
        active         | no  | *       | hidden,absent | up         | 403 M_FORBIDDEN - You are not a server admin                                 | 1
        active         | yes | absent  | *             | up         | 200                                                                          | 1
        active         | yes | *       | hidden,absent | up         | 200                                                                          | 1
        active         | no  | *       | *             | *          | 403 M_FORBIDDEN - You are not a server admin                                 | 0
        active         | yes | *       | *             | *          | 200                                                                          | 0",
};

/// A request of a table: a value for each column.
type Way = Vec<&'static str>;

struct Row {
    patterns: Vec<&'static str>,
    answer: &'static str,
    questions: usize,
}

impl Table {
    /// All ways there are.
    fn ways(&self) -> Vec<Way> {
        self.columns.iter().fold(vec![Vec::new()], |ways, (_, values)| {
            let longer = |way: &Way| {
                values.iter().map(|value| [way.as_slice(), &[value]].concat()).collect::<Vec<_>>()
            };
            ways.iter().flat_map(longer).collect()
        })
    }

    fn rows(&self) -> Vec<Row> {
        let rows: Vec<_> =
            self.rows.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        rows.into_iter()
            .map(|line| {
                let mut cells: Vec<_> = line.split(" | ").map(str::trim).collect();
                let questions = cells.pop().unwrap().parse().unwrap();
                let answer = cells.pop().unwrap();
                assert_eq!(cells.len(), self.columns.len(), "{line}");
                Row { patterns: cells, answer, questions }
            })
            .collect()
    }

    /// The number of the row that decides.
    fn deciding(&self, rows: &[Row], way: &Way) -> usize {
        let fits = |row: &Row| {
            row.patterns.iter().zip(way).zip(self.columns).all(|((pattern, value), (_, values))| {
                let names: Vec<_> = pattern.trim_start_matches('!').split(',').collect();
                assert!(*pattern == "*" || names.iter().all(|n| values.contains(n)), "{pattern}");
                *pattern == "*" || names.contains(value) != pattern.starts_with('!')
            })
        };
        rows.iter().position(fits).unwrap_or_else(|| panic!("no row for {way:?}"))
    }
}

/// What stands for the homeserver, and what the function is told of it.
struct Homeservers {
    all: Vec<(&'static str, Homeserver)>,
}

impl Homeservers {
    fn start(names: &[&'static str]) -> Self {
        let homeserver = |name: &&'static str| (*name, Homeserver::start());
        Self { all: names.iter().filter(|name| **name != "none").map(homeserver).collect() }
    }

    fn get(&self, name: &str) -> Option<&Homeserver> {
        self.all.iter().find(|(other, _)| *other == name).map(|(_, homeserver)| homeserver)
    }

    fn variables(&self, variables: Variables, name: &str) -> Variables {
        match self.get(name) {
            Some(homeserver) => variables.homeserver(homeserver),
            None => variables,
        }
    }

    /// How many questions there were since the last time.
    fn questions(&self) -> usize {
        self.all.iter().map(|(_, homeserver)| homeserver.asked().len()).sum()
    }
}

/// The token, and the user that it is of.
fn names(way: &Way) -> (String, String) {
    (format!("token_{}", way.join("_").replace(' ', "")), format!("{}-{}", way[1], way[2]))
}

fn insert_user(user_id: &str, admin: bool, locked: bool, guest: bool) -> String {
    let (admin, guest) = (u8::from(admin), u8::from(guest));
    format!(
        "INSERT INTO users (name, admin, locked, is_guest) VALUES ('{user_id}', {admin}, {locked}, {guest});"
    )
}

fn insert_validity(user_id: &str, until_ms: i64) -> String {
    format!(
        "INSERT INTO account_validity (user_id, expiration_ts_ms, email_sent) VALUES ('{user_id}', {until_ms}, false);"
    )
}

/// A world in which the ways of [`INTERNAL`] differ.
struct Internal {
    database: Database,
    homeservers: Homeservers,
}

impl Internal {
    async fn new(schema: &str) -> Self {
        let database = database(schema).await;
        let homeservers = Homeservers::start(INTERNAL.columns[4].1);
        homeservers.get("down").unwrap().answers(Reply::Reset);
        let mut sql = BTreeSet::new();
        for (id, way) in (100_000..).zip(INTERNAL.ways()) {
            let (token, user) = names(&way);
            let user_id = format!("@{user}:{SERVER_NAME}");
            if way[1] != "absent" {
                let (admin, guest) = (way[1] != "plain", way[1].ends_with("guest"));
                sql.insert(insert_user(&user_id, admin, way[1].starts_with("locked"), guest));
            }
            match way[2] {
                "valid" => sql.insert(insert_validity(&user_id, i64::MAX)),
                "expired" => sql.insert(insert_validity(&user_id, NOW_MS)),
                _ => false,
            };
            if ["known", "expired"].contains(&way[0]) {
                let until =
                    if way[0] == "known" { "null".to_owned() } else { (NOW_MS - 1).to_string() };
                sql.insert(format!(
                    "INSERT INTO access_tokens (id, user_id, token, valid_until_ms) VALUES ({id}, '{user_id}', '{token}', {until});"
                ));
            }
            let up = homeservers.get("up").unwrap();
            match way[0] {
                "known" | "fresh" => up.knows(&token, owner(&user_id, Some("DEV"))),
                "service" => up.knows(&token, owner(&user_id, None)),
                "expired" => {
                    let error = "Access token has expired";
                    up.knows(&token, refusal(401, "M_UNKNOWN_TOKEN", error, true));
                }
                _ => (),
            }
        }
        database.run(&Vec::from_iter(sql).concat()).await;
        Self { database, homeservers }
    }

    fn variables(&self, way: &Way) -> Variables {
        let variables = Variables::of(&self.database).with("ACCOUNT_VALIDITY", way[3]);
        self.homeservers.variables(variables, way[4])
    }
}

/// A world in which the ways of [`MAS`] differ.
struct WithMas {
    database: Database,
    mas: Mas,
    homeservers: Homeservers,
}

impl WithMas {
    async fn new(schema: &str) -> Self {
        let database = database(schema).await;
        let homeservers = Homeservers::start(MAS.columns[4].1);
        let mas = Mas::start();
        for user in MAS.columns[2].1.iter().filter(|user| **user != "absent") {
            let user_id = format!("@the-{user}:{SERVER_NAME}");
            let user_row =
                insert_user(&user_id, *user == "admin", *user == "locked", *user == "guest");
            let devices = format!(
                "INSERT INTO devices (user_id, device_id, hidden) VALUES ('{user_id}', 'DEV', false), ('{user_id}', 'KEY', true);"
            );
            let until = if *user == "expired" { 1 } else { i64::MAX };
            database.run(&[user_row, devices, insert_validity(&user_id, until)].concat()).await;
        }
        for way in MAS.ways() {
            let (token, user_id) = (names(&way).0, format!("@the-{}:{SERVER_NAME}", way[2]));
            let (scopes, named) = match way[3] {
                "scope" => (format!("{DEVICE}DEV"), None),
                "named" => (format!("{DEVICE}OTHER {DEVICE}ANOTHER"), Some("DEV")),
                "both" => (format!("{DEVICE}DEV {UNSTABLE_DEVICE}DEV"), None),
                "several" => (format!("{DEVICE}DEV {UNSTABLE_DEVICE}OTHER"), None),
                "unusable" => (DEVICE.to_owned(), None),
                "hidden" => (String::new(), Some("KEY")),
                "absent" => (format!("{UNSTABLE_DEVICE}GONE"), None),
                _ => (String::new(), None),
            };
            let client = if way[0] == "no-client" { "openid" } else { CLIENT_API };
            let admin = if way[1] == "yes" { ADMIN } else { "urn:synapse:admin:x" };
            let body = json!({
                "active": way[0] != "inactive",
                "scope": format!("{client} {scopes} {admin}"),
                "username": format!("the-{}", way[2]),
                "device_id": named,
                "expires_in": if way[0] == "past" { 0 } else { 300 },
            });
            match way[0] {
                "unreachable" => mas.knows(&token, Reply::Reset),
                _ => mas.knows(&token, introspected(&body)),
            }
            let device_id = match way[3] {
                "none" => None,
                "hidden" => Some("KEY"),
                "absent" => Some("GONE"),
                _ => Some("DEV"),
            };
            if let Some(homeserver) = homeservers.get(way[4]) {
                homeserver.knows(
                    &token,
                    match way[4] {
                        "up" => owner(&user_id, device_id).into(),
                        "refuses" => refusal(401, "M_UNKNOWN_TOKEN", "Refused", true).into(),
                        "other" => owner("@admin:example.com", device_id).into(),
                        _ => Reply::Reset,
                    },
                );
            }
        }
        Self { database, mas, homeservers }
    }

    fn variables(&self, way: &Way) -> Variables {
        let variables =
            Variables::of(&self.database).mas(&self.mas).with("ACCOUNT_VALIDITY", "true");
        self.homeservers.variables(variables, way[4])
    }
}

/// Asks every way of a table of one service for each configuration, and says what went wrong.
async fn complaints(
    table: &Table,
    homeservers: &Homeservers,
    variables: impl Fn(&Way) -> Variables,
) -> Vec<String> {
    let rows = table.rows();
    let (mut complaints, mut deciding) = (Vec::new(), BTreeSet::new());
    let mut services: Vec<(Vec<(&str, String)>, Service)> = Vec::new();
    for (n, way) in (0..).zip(table.ways()) {
        let variables = variables(&way);
        if !services.iter().any(|(other, _)| *other == variables.0) {
            services.push((variables.0.clone(), variables.service()));
        }
        let (_, service) = services.iter().find(|(other, _)| *other == variables.0).unwrap();
        // The homeserver is asked once a second.
        let outcome = ask_at(service, &names(&way).0, n * 1000).await;
        let (row, questions) = (table.deciding(&rows, &way), homeservers.questions());
        deciding.insert(row);
        if !outcome.is(rows[row].answer) || questions != rows[row].questions {
            complaints.push(format!(
                "{way:?}: expected {} and {} questions, got {outcome:?} and {questions}",
                rows[row].answer, rows[row].questions
            ));
        }
    }
    let idle: Vec<_> = (0..rows.len()).filter(|row| !deciding.contains(row)).collect();
    assert!(idle.is_empty(), "rows that decide nothing: {idle:?}");
    complaints
}

#[test]
fn every_way_in() {
    let ways = INTERNAL.ways().len() + MAS.ways().len();
    assert_eq!(ways, 5 * 6 * 3 * 2 * 3 + 5 * 2 * 6 * 8 * 5);
    for schema in SCHEMAS {
        block_on(async {
            let internal = Internal::new(schema).await;
            conformance::assert_none(
                &complaints(&INTERNAL, &internal.homeservers, |way| internal.variables(way)).await,
            );
            let with = WithMas::new(schema).await;
            conformance::assert_none(
                &complaints(&MAS, &with.homeservers, |way| with.variables(way)).await,
            );
        });
    }
    println!("{ways} ways in on each of {} schemas", SCHEMAS.len());
}

/// The first way of each row, each in an execution environment of its own.
fn through_the_binary(
    table: &Table,
    homeservers: &Homeservers,
    variables: impl Fn(&Way) -> Variables,
) {
    let rows = table.rows();
    let mut done = BTreeSet::new();
    for way in table.ways() {
        let row = table.deciding(&rows, &way);
        if done.insert(row) {
            let function = variables(&way).with("AWS_LAMBDA_LOG_LEVEL", "TRACE").function();
            let outcome = ask_function(&function, &case(&names(&way).0));
            assert_is(&outcome, rows[row].answer, &format!("{way:?}"));
            assert_eq!(homeservers.questions(), rows[row].questions, "{way:?}");
            assert!(!function.stop().contains("token_"), "{way:?}");
        }
    }
}

#[test]
fn every_row_of_the_tables_through_the_binary() {
    let internal = block_on(Internal::new("synapse-94"));
    through_the_binary(&INTERNAL, &internal.homeservers, |way| internal.variables(way));
    let with = block_on(WithMas::new("synapse-94"));
    through_the_binary(&MAS, &with.homeservers, |way| with.variables(way));
}

#[test]
fn an_account_expires_at_its_millisecond() {
    block_on(async {
        let database = database("synapse-94").await;
        database
            .run(&format!(
                "INSERT INTO account_validity (user_id, expiration_ts_ms, email_sent) VALUES
                   ('@admin:example.com', {}, false), ('@admin2:example.com', 0, true), ('@plain:example.com', {NOW_MS}, false)",
                NOW_MS + 1
            ))
            .await;
        let expired = "403 ORG_MATRIX_EXPIRED_ACCOUNT - User account has expired";
        let service = Variables::of(&database).with("ACCOUNT_VALIDITY", "true").service();
        assert_is(&ask_at(&service, "syt_admin_ok", 0).await, "200", "a ms before");
        assert_is(&ask_at(&service, "syt_admin_ok", 1).await, expired, "at it");
        assert_is(&ask_at(&service, "syt_admin_ok", 2).await, expired, "a ms after");
        assert_is(&ask(&service, "syt_admin2_ok").await, expired, "long ago");
        assert_is(&ask(&service, "syt_root_admin").await, "200", "without a row");
        // The account that counts is that of the user whom the token speaks for.
        assert_is(&ask(&service, "syt_plain_puppets_admin").await, "200", "owner expired");
        assert_is(&ask(&service, "syt_admin_puppets_plain").await, expired, "user expired");
        for variables in
            [Variables::of(&database), Variables::of(&database).with("ACCOUNT_VALIDITY", "false")]
        {
            assert_is(&ask_at(&variables.service(), "syt_admin_ok", 2).await, "200", "not enabled");
        }
    });
}

#[test]
fn nothing_is_read_that_is_not_asked_for() {
    // As role.sql leaves it: without the grants that only some need.
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("DROP TABLE devices; DROP TABLE account_validity"));
    let mas = Mas::start();
    mas.answers(introspected(&json!({})));
    let function = Variables::of(&database).with("AWS_LAMBDA_LOG_LEVEL", "ERROR").function();
    assert_eq!(ask_function(&function, &case("syt_admin_ok")).status, 200);
    assert_eq!(function.stop(), "");

    let database = block_on(Database::of_conformance("synapse-94"));
    for (variables, token, missing) in [
        (
            Variables::of(&database).mas(&mas),
            "mat_token",
            "SELECT ON devices (device_id, hidden, user_id)",
        ),
        (
            Variables::of(&database).with("ACCOUNT_VALIDITY", "true"),
            "syt_admin_ok",
            "SELECT ON account_validity (expiration_ts_ms, user_id)",
        ),
    ] {
        let function = variables.function();
        let outcome = ask_function(&function, &case(token));
        assert_is(&outcome, "500 M_UNKNOWN - ...", missing);
        let log = function.stop();
        assert!(log.contains(&format!("the role lacks {missing}")), "{missing}: {log}");
    }
}

#[test]
fn settings_that_do_not_fit_together_are_named_and_not_shown() {
    let database = [("DATABASE_URL", "postgres://x@127.0.0.1/x")];
    let mas = [
        ("MAS_ENDPOINT", "https://mas.example.com/"),
        ("MAS_SECRET", "hunter2hunter2"),
        ("SERVER_NAME", "example.com"),
    ];
    let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:hunter2hunter2-AbCdEf";
    let wrong: [(&[(&str, &str)], &str); 14] = [
        (&[("SERVER_NAME", "")], "SERVER_NAME"),
        (&[("MAS_SECRET", "")], "MAS_SECRET"),
        (&[("MAS_SECRET_ARN", arn)], "MAS_SECRET"),
        (&[("MAS_SECRET", ""), ("MAS_SECRET_ARN", "hunter2hunter2")], "MAS_SECRET_ARN"),
        (&[("MAS_ENDPOINT", "")], "MAS_ENDPOINT"),
        (&[("MAS_ENDPOINT", "hunter2hunter2")], "MAS_ENDPOINT"),
        (&[("MAS_ENDPOINT", "ftp://hunter2hunter2")], "MAS_ENDPOINT"),
        (&[("MAS_ENDPOINT", "https://u:hunter2hunter2@mas.example.com")], "MAS_ENDPOINT"),
        (&[("MAS_ENDPOINT", "https://mas.example.com/?hunter2hunter2")], "MAS_ENDPOINT"),
        (&[("MAS_ENDPOINT", "https://mas.example.com/#hunter2hunter2")], "MAS_ENDPOINT"),
        (&[("HOMESERVER_URL", "https://u:hunter2hunter2@example.com")], "HOMESERVER_URL"),
        (&[("HOMESERVER_URL", "matrix.example.com")], "HOMESERVER_URL"),
        (&[("MAS_CACHE_SECONDS", "-1")], "MAS_CACHE_SECONDS"),
        (&[("ACCOUNT_VALIDITY", "hunter2hunter2")], "ACCOUNT_VALIDITY"),
    ];
    for (changed, name) in wrong {
        let variable = |name: &str| {
            let mut all = changed.iter().chain(&mas).chain(&database);
            all.find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        };
        let error = Config::read(variable).unwrap_err();
        for text in [error.join("; "), format!("{error:?}")] {
            assert!(text.contains(name), "{changed:?}: {text}");
            assert!(!text.contains("hunter2"), "{changed:?}: {text}");
        }
    }
    // All of them at once, and none shown.
    let config = Config::read(|name| {
        let mut all = database.into_iter().chain(mas);
        all.find(|(other, _)| *other == name).map(|(_, value)| value.to_owned())
    });
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn neither_tokens_nor_secrets_nor_digests_are_logged_at_any_level() {
    const TOKEN: &str = "syt_b2JzY3VyZQ_wHaTeVeRiTiS_3XyZ9q";
    let database = block_on(database("synapse-94"));
    let (mas, homeserver) = (Mas::start(), Homeserver::start());
    let internal =
        Variables::of(&database).homeserver(&homeserver).with("ACCOUNT_VALIDITY", "true");
    let with_mas = internal.clone().mas(&mas);
    let remembering = with_mas.clone().with("MAS_CACHE_SECONDS", "60");

    // Everything that quotes the token, or what is known of it.
    let echo = format!("{TOKEN} of @obscure:example.com on OBSCUREDEVICE with {SECRET}");
    let replies_of_mas: Vec<Reply> = vec![
        introspected(&json!({})).into(),
        introspected(&json!({ "device_id": "OBSCUREDEVICE" })).into(),
        introspected(&json!({ "username": "obscure" })).into(),
        introspected(&json!({ "username": null, "scope": format!("{CLIENT_API} obscure-scope") }))
            .into(),
        introspected(&json!({ "scope": "obscure-scope" })).into(),
        introspected(&json!({ "active": echo })).into(),
        introspected(&json!({ "expires_in": echo })).into(),
        Answer::new(200, echo.as_str()).into(),
        Answer::new(401, echo.as_str()).with("X-Echo", &echo).into(),
        Answer::new(302, "").with("Location", &format!("/{TOKEN}")).into(),
        Reply::Bytes(format!("HTTP/1.1 {echo}\r\n\r\n").into_bytes()),
        Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{echo}\r\n\r\n").into_bytes()),
        Reply::Cut(Answer::new(200, echo.as_str()), 1),
        Reply::Reset,
    ];
    let replies_of_homeserver: Vec<Reply> = vec![
        owner("@obscure:example.com", Some("OBSCUREDEVICE")).into(),
        owner(&echo, None).into(),
        refusal(401, "M_UNKNOWN_TOKEN", &echo, false).into(),
        refusal(403, "M_FORBIDDEN", &echo, None).into(),
        refusal(401, &echo, &echo, true).into(),
        Answer::json(200, &json!({ "user_id": [echo] })).into(),
        Answer::new(500, echo.as_str()).into(),
        Reply::Bytes(format!("HTTP/1.1 {echo}\r\n\r\n").into_bytes()),
        Reply::Reset,
    ];
    let digests = block_on(async {
        let mut superuser = database.superuser().await;
        let sql = "SELECT array[encode(d, 'hex'), upper(encode(d, 'hex')), rtrim(encode(d, 'base64'), '='),
                                translate(rtrim(encode(d, 'base64'), '='), '+/', '-_'),
                                left(encode(d, 'hex'), 12), get_byte(d, 0) || ', ' || get_byte(d, 1) || ', ' || get_byte(d, 2)]
                     FROM sha256(convert_to($1, 'UTF8')) AS d";
        sqlx::query_scalar::<_, Vec<String>>(sql)
            .bind(TOKEN)
            .fetch_one(&mut superuser)
            .await
            .unwrap()
    });
    let mut lines = 0;
    // Which replies meet: each of MAS, and each of the homeserver where MAS names an unknown device.
    let (device_gone, gone) = (&replies_of_mas[1], &replies_of_homeserver[0]);
    let pairs: Vec<_> = replies_of_mas
        .iter()
        .map(|of_mas| (of_mas, gone))
        .chain(replies_of_homeserver.iter().map(|of_homeserver| (device_gone, of_homeserver)))
        .collect();
    for format in ["JSON", "Text"] {
        for variables in [&with_mas, &remembering, &internal] {
            let variables = variables
                .clone()
                .with("AWS_LAMBDA_LOG_LEVEL", "TRACE")
                .with("AWS_LAMBDA_LOG_FORMAT", format)
                .with("RUST_LOG", "trace")
                .with("RUST_BACKTRACE", "full");
            // An execution environment asks the homeserver ten times.
            for pairs in pairs.chunks(5) {
                let function = variables.function();
                for (of_mas, of_homeserver) in pairs {
                    mas.answers((*of_mas).clone());
                    homeserver.answers((*of_homeserver).clone());
                    for case in [case(TOKEN), case_by_query(TOKEN)] {
                        ask_function(&function, &case);
                    }
                }
                let log = function.stop();
                assert!(!log.contains("too many unknown tokens"), "{log}");
                let more = ["bscure", "BSCURE", "Bearer", "access_token", SECRET, TOKEN];
                for secret in digests.iter().map(String::as_str).chain(more) {
                    assert!(!log.contains(secret), "{secret:?} was logged:\n{log}");
                }
                lines += log.lines().count();
            }
        }
    }
    assert!(lines > 100, "the log is not talkative: {lines}");
    assert!(mas.asked().len() > 50 && homeserver.asked().len() > 50);
}

#[test]
fn the_security_reading_names_tests_that_there_are() {
    let reading = read("src/auth.rs");
    let reading: String = reading.lines().filter_map(|line| line.strip_prefix("//!")).collect();
    let mut count = 0;
    for name in reading.split('`').skip(1).step_by(2) {
        if let Some((module, test)) = name.split_once("::") {
            let tests = read(&format!("tests/it/{module}.rs"));
            assert!(tests.contains(&format!("#[test]\nfn {test}() {{")), "{name}");
            count += 1;
        }
    }
    assert!(count > 8, "{count}");
}
