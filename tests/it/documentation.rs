//! What the documentation says can be found where it points to, and what it has people type works.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::support::{
    block_on,
    database::{Cluster, Database},
    documentation::{block, blocks, pages},
    project, read,
};

/// A heading's anchor, as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim_start_matches('#')
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// A page without what is inside of fences.
fn prose(page: &str) -> String {
    read(page).split("```").step_by(2).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for page in pages() {
        let text = prose(&page);
        let folder = project().join(&page).parent().unwrap().to_path_buf();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("https://") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let linked = if path.is_empty() { project().join(&page) } else { folder.join(path) };
            assert!(linked.exists(), "{page}: {target}");
            if !fragment.is_empty() {
                let linked = fs::read_to_string(&linked).unwrap();
                let headings = linked.split("```").step_by(2).flat_map(str::lines);
                let anchors: BTreeSet<_> =
                    headings.filter(|line| line.starts_with('#')).map(anchor).collect();
                assert!(anchors.contains(fragment), "{page}: {target}");
            }
            links += 1;
        }
    }
    assert!(links > 50, "{links}");
}

#[test]
fn every_errcode_is_explained() {
    let errors = read("docs/runbook.md");
    let source = ["error", "auth/homeserver"].map(|file| read(&format!("src/{file}.rs"))).concat();
    let errcodes: BTreeSet<_> = source
        .split('"')
        .filter(|text| text.starts_with("M_") || text.starts_with("ORG_MATRIX_"))
        .collect();
    assert!(errcodes.len() > 8, "{errcodes:?}");
    for errcode in errcodes {
        assert!(errors.contains(&format!("`{errcode}`")), "{errcode}");
    }
}

#[test]
fn the_role_is_made_and_removed_as_written() {
    let cluster = Cluster::of_its_own();
    // As the master user of RDS is: no superuser, and not the owner of what it has not made.
    block_on(
        Database { name: "postgres".to_owned(), cluster }
            .run("CREATE ROLE master LOGIN CREATEROLE CREATEDB"),
    );
    let shell = |command: &str| {
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(project())
            .env("PATH", format!("{}:{}", cluster.bin, std::env::var("PATH").unwrap()))
            .env("PGHOST", &cluster.socket_dir)
            .env("PGPORT", cluster.port.to_string())
            .env("PGUSER", "master")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{command}: {complaint}");
        text
    };
    let sql =
        |sql: &str| shell(&format!("psql -X -v ON_ERROR_STOP=1 -d synapse <<'END'\n{sql}\nEND"));
    let grant = block("docs/deploy.md", "GRANT synapse TO CURRENT_USER");
    shell(&format!(
        "psql -X -v ON_ERROR_STOP=1 -d postgres -c 'CREATE ROLE synapse' -c '{grant}' -c 'CREATE DATABASE synapse OWNER synapse'"
    ));
    sql("SET ROLE synapse;\n\\i tests/schema/synapse-94.sql");

    let command = block("docs/database.md", "psql ");
    shell(&command);
    shell(&command);
    // The lines for MAS and for account validity, as the page has the reader edit them.
    let role = read("src/sql/role.sql");
    assert_eq!(role.matches("\n-- GRANT SELECT ").count(), 2, "{role}");
    let role = role.replace("\n-- GRANT SELECT ", "\nGRANT SELECT ");
    let of_tokens = "\nGRANT SELECT (token, ";
    assert!(role.contains(of_tokens), "{role}");
    sql(&role.replace(of_tokens, "\n-- GRANT SELECT (token, "));

    let answer = shell(&block("docs/deploy.md", "PGOPTIONS="));
    for (table, column, granted) in [
        ("users", "admin", true),
        ("local_media_repository", "media_length", true),
        ("devices", "hidden", true),
        ("account_validity", "expiration_ts_ms", true),
        ("users", "password_hash", false),
        ("access_tokens", "token", false),
    ] {
        let row = |line: &str| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            cells == [table, column, "SELECT"]
        };
        assert_eq!(answer.lines().any(row), granted, "{table}.{column}: {answer}");
    }
    assert!(!answer.contains("UPDATE") && !answer.contains("INSERT"), "{answer}");

    sql(
        "SET ROLE synapse;
         INSERT INTO users (name, admin) VALUES ('@alice:example.org', 0), ('@bob:example.org', 0)",
    );
    let schema = sql(&block("docs/database.md", "SELECT schemaname "));
    assert!(schema.lines().any(|line| line.trim() == "public"), "{schema}");
    let unowned = sql(&block("docs/clients.md", "SELECT count(*), sum(media_length) "));
    assert!(unowned.contains("     0 |"), "{unowned}");
    sql(&block("docs/runbook.md", "UPDATE users "));
    let admins = sql("SELECT 'admin:' || name FROM users WHERE admin = 1");
    assert!(admins.contains("admin:@alice:example.org") && !admins.contains("bob"), "{admins}");

    // Where it fails, here because the role has rights in another database, nobody is left a member.
    let removal = block("docs/deploy.md", "BEGIN; GRANT media_usage TO CURRENT_USER");
    // From PostgreSQL 16 on, who has made it is one anyway. By stdin, because one -c is one transaction.
    let members = "SELECT to_jsonb(m) FROM pg_auth_members m WHERE roleid = 'media_usage'::regrole";
    let before = sql(members);
    let elsewhere = format!("psql -X -d postgres 2>&1 <<'END'\n{removal}\nEND");
    assert!(shell(&elsewhere).contains("cannot be dropped"));
    assert_eq!(sql(members), before);
    sql(&removal);
    assert!(!sql("\\du").contains("media_usage"));
}

#[test]
fn the_pinned_tools_come_into_this_shell() {
    let pinned = read("tests/tools/requirements.txt");
    let export = block("docs/deploy.md", "export PATH=");
    for (tool, package) in [
        ("sam --version", "aws-sam-cli"),
        ("cargo lambda --version", "cargo-lambda"),
        ("python -m ziglang version", "ziglang"),
    ] {
        let output = Command::new("sh")
            .args(["-c", &format!("{export}{tool}")])
            .current_dir(project())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let is_pinned = |word: &str| pinned.contains(&format!("\n{package}=={word} "));
        assert!(printed.split_whitespace().any(is_pinned), "{tool}: {printed}");
    }
}

/// The text of what runs commands of the documentation: tests in Rust and in Python.
fn runners() -> String {
    fn collect(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|it| it == "rs") || path.ends_with("check") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    collect(&project().join("tests"), &mut text);
    text
}

/// Whether a block has a command that needs an account of AWS: its tools, its database, or a load
/// balancer's rule, which is for a host that has no other server. `output` asks the stack.
fn needs_aws(text: &str) -> bool {
    let code = text.lines().map(|line| line.split('#').next().unwrap()).collect::<Vec<_>>();
    let code = code.join("\n");
    let words = code.split(|c: char| !c.is_alphanumeric() && !"-./".contains(c));
    words.into_iter().any(|word| ["aws", "output"].contains(&word))
        || ["sam deploy", "sam delete", "psql -h ", "Host: media-usage.invalid"]
            .iter()
            .any(|command| code.contains(command))
}

/// A block that commands are in is marked: `run` if a test takes it by `block(page, start)` and runs
/// it, `aws` if it needs an account, `mas` if it needs MAS. A target of `make` is run by whoever calls `make`.
#[test]
fn every_command_is_run_or_says_what_it_needs() {
    let (runners, makefile) = (runners(), read("Makefile"));
    let taken: Vec<_> = runners
        .split("block(")
        .filter_map(|call| match call.split('"').take(4).collect::<Vec<_>>()[..] {
            [before, page, between, start] if before.trim().is_empty() && between.trim() == "," => {
                Some((page, start))
            }
            _ => None,
        })
        .collect();
    let mut complaints = Vec::new();
    for page in pages() {
        for block in blocks(&page) {
            let first = block.text.lines().next().unwrap_or_default();
            let is_run = match &*block.mark {
                "text" | "json" | "yaml" | "hcl" | "ts" => true,
                "sh aws" => needs_aws(&block.text),
                "sh mas" => block.text.contains("mas-cli "),
                "sh run" | "sql run" if first.starts_with("make ") => {
                    block.text.lines().all(|line| {
                        let target = line["make ".len()..].split(' ').next().unwrap();
                        makefile.contains(&format!("\n{target}:"))
                    })
                }
                "sh run" | "sql run" => {
                    taken.iter().any(|(by, start)| page == *by && block.text.starts_with(start))
                }
                _ => false,
            };
            if !is_run {
                complaints.push(format!("{page}: ```{} {first}", block.mark));
            }
        }
    }
    assert_eq!(complaints, [""; 0]);
}
