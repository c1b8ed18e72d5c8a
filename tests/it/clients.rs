//! Requests as the clients of the endpoint send them, through nginx, and what each needs of the
//! answers. The clients were watched, or read; synadm runs here.

use std::{collections::BTreeSet, fs, process::Command, sync::OnceLock};

use serde_json::Value;
use synapse_media_usage::service::PATH;

use crate::support::{
    block_on,
    database::Database,
    documentation::block,
    project, read,
    reverse_proxy::{Proxy, Split},
};

const ADMIN: (&str, &str) = ("Authorization", "Bearer admin");
const ORIGIN: (&str, &str) = ("Origin", "https://admin.example.org");

/// How many users have files. More than the largest page, and no multiple of any.
const USERS: usize = 1203;

/// A homeserver behind nginx, with so many users that every client has to turn pages: some without
/// a profile, some without a displayname, many with as many files as others. `None` where there is
/// no nginx.
fn homeserver() -> Option<Split> {
    // Nobody writes to it.
    static DATABASE: OnceLock<Database> = OnceLock::new();
    let database = || {
        let database = block_on(Database::new("synapse-94"));
        let rows = format!(
            "INSERT INTO users (name, admin) VALUES ('@admin:example.org', 1);
             INSERT INTO access_tokens (id, user_id, token) VALUES (1, '@admin:example.org', 'admin');
             INSERT INTO profiles (user_id, full_user_id, displayname)
                 SELECT 'user' || n, '@user' || n || ':example.org',
                     CASE WHEN n % 3 = 0 THEN NULL ELSE 'Jürgen + Ina ' || n END
                 FROM generate_series(1, {USERS}) n WHERE n % 7 > 0;
             INSERT INTO local_media_repository (media_id, media_length, created_ts, user_id)
                 SELECT n || '.' || file, 1000000 * (n % 10), 1700000000000 + n, '@user' || n || ':example.org'
                 FROM generate_series(1, {USERS}) n, generate_series(0, n % 4) file"
        );
        block_on(database.run(&rows));
        database
    };
    let has_nginx = Proxy::available().any(|proxy| proxy == Proxy::Nginx);
    has_nginx.then(|| Split::with(DATABASE.get_or_init(database), Proxy::Nginx, |text| text))
}

/// How many files all users of [`homeserver`] have, and how large they are together.
fn files_and_bytes() -> (u64, u64) {
    let files = |n: u64| n % 4 + 1;
    let users = 1..=USERS as u64;
    (users.clone().map(files).sum(), users.map(|n| 1_000_000 * (n % 10) * files(n)).sum())
}

/// The pages, each type checked.
struct Pages(Split);

#[derive(Debug)]
struct Page {
    users: Vec<String>,
    bytes: u64,
    total: usize,
    next_token: Option<u64>,
}

impl Pages {
    /// Those of [`homeserver`].
    fn start() -> Option<Self> {
        homeserver().map(Self)
    }

    fn get(&self, query: &str) -> Page {
        let target = if query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{query}") };
        let answer = self.0.running.client.send("GET", &target, &[ADMIN], "");
        assert_eq!(answer.status(), 200, "{query}: {answer:?}");
        assert_eq!(answer.header("content-type"), ["application/json"]);
        page(&answer.body)
    }

    /// The same as a browser asks, which asks whether it may before.
    fn get_from_elsewhere(&self, query: &str) -> Page {
        let preflight = [
            ORIGIN,
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        let target = format!("{PATH}?{query}");
        let answer = self.0.running.client.send("OPTIONS", &target, &preflight, "");
        assert_eq!(answer.status(), 204, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
        let headers = [ADMIN, ORIGIN, ("Accept", "application/json")];
        let answer = self.0.running.client.send("GET", &target, &headers, "");
        assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
        page(&answer.body)
    }
}

fn page(body: &str) -> Page {
    let body: Value = serde_json::from_str(body).unwrap();
    let users = body["users"].as_array().unwrap();
    for user in users {
        // ketesa shows an empty list for a user_id that is no string, and "NaN undefined" for a
        // media_length that is no number; typed clients throw.
        assert!(user["user_id"].is_string(), "{user}");
        assert!(user["displayname"].is_string() || user["displayname"].is_null(), "{user}");
        assert!(i32::try_from(user["media_count"].as_i64().unwrap()).is_ok(), "{user}");
        assert!(user["media_length"].is_u64(), "{user}");
        assert_eq!(user.as_object().unwrap().len(), 4, "{user}");
    }
    let next_token = body.get("next_token").map(|token| token.as_u64().unwrap());
    assert!(next_token.is_none_or(|token| i32::try_from(token).is_ok()));
    Page {
        users: users.iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect(),
        bytes: users.iter().map(|user| user["media_length"].as_u64().unwrap()).sum(),
        total: usize::try_from(body["total"].as_i64().unwrap()).unwrap(),
        next_token,
    }
}

/// What all pages of one list must be together.
fn assert_everybody_once(lists: impl IntoIterator<Item = Vec<String>>, what: &str) {
    let users = lists.into_iter().flatten().collect::<Vec<_>>();
    assert_eq!(users.len(), USERS, "{what}");
    assert_eq!(users.iter().collect::<BTreeSet<_>>().len(), USERS, "{what}");
}

#[test]
fn an_admin_ui_pages_by_its_own_arithmetic() {
    let Some(pages) = Pages::start() else { return };
    // ketesa and synapse-admin ignore next_token.
    for per_page in [10, 25, 50, 100, 500, 1000] {
        for page_of in [ketesa, synapse_admin] {
            let get = |from| pages.get_from_elsewhere(&page_of(from, per_page));
            let total = get(0).total;
            assert_eq!(total, USERS);
            let all = (0..total.div_ceil(per_page)).map(|page| get(page * per_page).users);
            assert_everybody_once(all, &page_of(0, per_page));
        }
    }
    // A page that is no longer there, as after a search.
    assert_eq!(pages.get_from_elsewhere(&ketesa(5000, 50)).total, USERS);
}

#[test]
fn an_admin_ui_may_write_a_space_as_plus_or_percent_20() {
    let Some(pages) = Pages::start() else { return };
    // A plus is %2B.
    for words in ["J%C3%BCrgen+%2B+Ina+12", "J%C3%BCrgen%20%2B%20Ina%2012"] {
        let query = format!("from=0&limit=50&search_term={words}&order_by=media_length&dir=b");
        let found = pages.get_from_elsewhere(&query);
        assert!(found.users.contains(&"@user1201:example.org".to_owned()), "{found:?}");
        assert!(found.total < 100, "{found:?}");
    }
}

#[test]
fn a_script_follows_next_token_until_there_is_none() {
    let Some(pages) = Pages::start() else { return };
    for query in ["limit=100", "limit=100&order_by=media_length&dir=b", "limit=1000", ""] {
        let mut lists = Vec::new();
        let mut bytes = 0;
        let mut next = String::new();
        loop {
            let from = if next.is_empty() { String::new() } else { format!("&from={next}") };
            let page = pages.get(format!("{query}{from}").trim_start_matches('&'));
            assert_eq!(page.total, USERS);
            bytes += page.bytes;
            lists.push(page.users);
            match page.next_token {
                // A quota gate takes a repeated one for a failure.
                Some(token) => assert_ne!(std::mem::replace(&mut next, token.to_string()), next),
                None => break,
            }
        }
        assert_everybody_once(lists, query);
        assert_eq!(bytes, files_and_bytes().1, "{query}");
    }
    // One that shows only the first page.
    let first = pages.get("limit=10&order_by=media_length&dir=b");
    assert_eq!((first.users.len(), first.next_token), (10, Some(10)));
}

#[test]
fn a_quota_bot_searches_for_one_user() {
    let Some(pages) = Pages::start() else { return };
    // A quota bot that searches for a whole id (D11).
    let found = pages.get("search_term=@user1203:example.org&limit=10");
    assert_eq!(
        (found.users, found.total, found.next_token),
        (vec!["@user1203:example.org".to_owned()], 1, None)
    );
    assert_eq!(pages.get("search_term=user1203&limit=10").users, ["@user1203:example.org"]);
}

#[test]
fn an_old_script_sends_a_parameter_that_never_was() {
    let Some(homeserver) = homeserver() else { return };
    let headers = [ADMIN, ("Content-Type", "Content-Type: application/json")];
    let old = homeserver.get("limit=5&orderby=x", &headers);
    assert_eq!(page(&old.body).users.len(), 5);
}

fn ketesa(from: usize, limit: usize) -> String {
    format!("from={from}&limit={limit}&order_by=media_length&dir=b")
}

fn synapse_admin(from: usize, limit: usize) -> String {
    format!("dir=b&from={from}&limit={limit}&order_by=media_length")
}

#[test]
fn the_error_that_a_client_shows_is_a_matrix_error() {
    let Some(homeserver) = homeserver() else { return };
    for (query, headers, status, errcode) in [
        ("limit=x", &[ADMIN, ORIGIN][..], 400, "M_INVALID_PARAM"),
        ("order_by=x", &[ADMIN, ORIGIN], 400, "M_INVALID_PARAM"),
        ("", &[ORIGIN], 401, "M_MISSING_TOKEN"),
        ("", &[ORIGIN, ("Authorization", "Bearer old")], 401, "M_UNKNOWN_TOKEN"),
    ] {
        let answer = homeserver.get(query, headers);
        assert_eq!(answer.status(), status);
        assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["errcode"], errcode);
        assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()));
    }
}

#[test]
fn synadm_prints_a_page_and_an_error() {
    let Some(homeserver) = homeserver() else { return };
    let venv = Command::new(project().join("tests/tools/venv")).arg("clients").output().unwrap();
    assert!(venv.status.success(), "{}", String::from_utf8_lossy(&venv.stderr));
    let venv = String::from_utf8(venv.stdout).unwrap();

    let folder = homeserver.surroundings.tls.dir.join(".config");
    fs::create_dir(&folder).unwrap();
    let synadm = |token: &str, command: &str| {
        let text = format!(
            "user: '@admin:example.org'\ntoken: {token}\nbase_url: https://localhost:{}\n\
             admin_path: /_synapse/admin\nmatrix_path: /_matrix\ntimeout: 30\nserver_discovery: well-known\n\
             homeserver: example.org\nformat: json\nssl_verify: true\n",
            homeserver.running.port
        );
        fs::write(folder.join("synadm.yaml"), text).unwrap();
        let output = Command::new("/bin/sh")
            .args(["-c", command])
            .env_clear()
            .env("PATH", venv.trim())
            // What it reads and writes, and whom it trusts.
            .env("HOME", &homeserver.surroundings.tls.dir)
            .env("REQUESTS_CA_BUNDLE", homeserver.surroundings.tls.file("ca.pem"))
            .env("LANG", "C.UTF-8")
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}{complaints}");
        serde_json::from_str::<Value>(&printed).unwrap_or_else(|_| panic!("{printed}{complaints}"))
    };

    let command = block("docs/clients.md", "synadm raw ");
    assert_eq!(synadm("admin", &command)["users"].as_array().unwrap().len(), 100);
    homeserver.surroundings.api.events();

    let path = "v1/statistics/users/media?limit=2&order_by=user_id&search_term=J%C3%BCrgen+%2B+Ina";
    let page = synadm("admin", &format!("synadm raw '{path}'"));
    assert_eq!(page["users"][0]["user_id"], "@user1000:example.org");
    assert_eq!((&page["next_token"], page["users"].as_array().unwrap().len()), (&2.into(), 2));
    // The API was sent what makes CloudFront refuse it.
    let event = homeserver.surroundings.api.events().pop().unwrap();
    assert_eq!((event["body"].as_str(), &event["isBase64Encoded"]), (Some("{}"), &false.into()));

    let error = synadm("old", &command);
    assert_eq!(error["errcode"], "M_UNKNOWN_TOKEN");
}

/// What a command prints, whose curl takes the reverse proxy for the homeserver.
fn curl(homeserver: &Split, command: &str) -> String {
    // Every homeserver of these tests has the same folder.
    let home = homeserver.surroundings.tls.dir.join(format!("curl-{}", homeserver.running.port));
    fs::create_dir_all(&home).unwrap();
    let options = format!(
        "connect-to = matrix.example.org:443:127.0.0.1:{}\ncacert = {}\nnoproxy = *\n",
        homeserver.running.port,
        homeserver.surroundings.tls.file("ca.pem")
    );
    fs::write(home.join(".curlrc"), options).unwrap();
    let output = Command::new("sh")
        .args(["-c", command])
        .env("CURL_HOME", home)
        .env("ADMIN_TOKEN", ADMIN.1.strip_prefix("Bearer ").unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn curl_shows_who_answers() {
    let Some(homeserver) = homeserver() else { return };
    let command = block("docs/routing.md", "curl -si ");
    let answer = curl(&homeserver, &command).to_lowercase();
    assert_eq!(answer.split(' ').nth(1), Some("401"), "{answer}");
    assert!(
        answer.contains("m_missing_token") && answer.contains("\nsynapse-trace-id: "),
        "{answer}"
    );
    let other = curl(&homeserver, &command.replace("/media ", "/other ")).to_lowercase();
    assert!(!other.contains("synapse-trace-id"), "{other}");
}

#[test]
fn a_script_has_ten_lines_at_most() {
    for start in ["everybody() {", "total() {", "#!/bin/sh"] {
        let script = block("docs/clients.md", start);
        assert!(script.lines().count() <= 10, "{script}");
    }
}

#[test]
fn a_script_writes_everybody_as_csv() {
    let Some(homeserver) = homeserver() else { return };
    let script = block("docs/clients.md", "everybody() {");
    let csv = curl(&homeserver, &script);
    let user = |line: &str| line.split('"').nth(1).unwrap().to_owned();
    assert_everybody_once([csv.lines().map(user).collect()], &csv);
    let line = "\"@user1201:example.org\",\"Jürgen + Ina 1201\",2,2000000";
    assert!(csv.lines().any(|it| it == line), "{csv}");
    // An error ends it, and is told.
    for start in ["ADMIN_TOKEN=old\n", NO_USERS, NO_PAGE, NO_BODY] {
        let fails = format!("{start}{} || echo failed", script.trim_end());
        assert_eq!(curl(&homeserver, &fails), "failed\n");
    }
}

/// What a script starts with so that its second page fails.
const SECOND_PAGE_FAILS: &str = "curl() {
    case \"$*\" in *from=1000*) return 22 ;; esac
    command curl \"$@\"
}
";

/// What a script starts with so that something else than the function answers.
const NO_USERS: &str = "curl() { echo '{}'; }\n";

/// The same with what is not even JSON, which is no reason to ask again.
const NO_PAGE: &str = "exec 3>&1
curl() {
    case \"$*\" in *from=0) echo '<html>' ;; *) echo 'asked again' >&3; return 22 ;; esac
}
";

/// The same with no body, as a redirect may have it.
const NO_BODY: &str = "exec 3>&1
curl() {
    case \"$*\" in *from=0) ;; *) echo 'asked again' >&3; return 22 ;; esac
}
";

#[test]
fn a_script_adds_up_what_the_server_holds() {
    let Some(homeserver) = homeserver() else { return };
    let script = block("docs/clients.md", "total() {");
    let (files, bytes) = files_and_bytes();
    assert_eq!(curl(&homeserver, &script), format!("{files} files, {bytes} bytes\n"));
    for start in ["ADMIN_TOKEN=old\n", SECOND_PAGE_FAILS, NO_USERS, NO_PAGE, NO_BODY] {
        let fails = format!("{start}{} || echo failed", script.trim_end());
        assert_eq!(curl(&homeserver, &fails), "failed\n");
    }
}

#[test]
fn a_script_writes_metrics_for_prometheus() {
    let Some(homeserver) = homeserver() else { return };
    let folder = homeserver.surroundings.tls.dir.join("metrics");
    fs::create_dir(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mut script = block("docs/clients.md", "#!/bin/sh");
    for (placeholder, path) in [
        ("/etc/synapse-media-usage.curlrc", file("curlrc")),
        ("/var/lib/prometheus/node-exporter", file("")),
    ] {
        assert_eq!(script.matches(placeholder).count(), 1, "{placeholder}");
        script = script.replace(placeholder, &path);
    }
    let header = block("docs/clients.md", "header = ");
    // In a file, because its `exit` would end the shell.
    let run = |start: &str, token: &str| {
        fs::write(file("curlrc"), header.replace("<token>", token)).unwrap();
        fs::write(file("script"), format!("{start}{script}")).unwrap();
        curl(&homeserver, &format!("sh {} || echo failed", file("script")))
    };
    let written = || fs::read_to_string(file("synapse_media_usage.prom"));

    assert_eq!(run("", "admin"), "");
    let (files, bytes) = files_and_bytes();
    let expected =
        format!("synapse_media_usage_files {files}\nsynapse_media_usage_bytes {bytes}\n");
    assert_eq!(written().unwrap(), expected);
    for (start, token) in [
        ("", "old"),
        (SECOND_PAGE_FAILS, "admin"),
        (NO_USERS, "admin"),
        (NO_PAGE, "admin"),
        (NO_BODY, "admin"),
    ] {
        assert_eq!(run(start, token), "failed\n");
        assert_eq!(written().unwrap(), expected);
    }
    // The panels ask for what the script writes.
    let page = read("docs/clients.md");
    for query in [
        "`synapse_media_usage_bytes`",
        "(synapse_media_usage_bytes[",
        "/synapse_media_usage.prom\"",
    ] {
        assert!(page.contains(query), "{query}");
    }
}
