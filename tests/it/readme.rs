//! What README says can be found where it points to, and what it has an operator type works.

use std::{collections::BTreeSet, process::Command};

use crate::support::{project, read};

/// The text between two lines that start so.
pub fn section<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{from}")).unwrap_or_else(|| panic!("no {from}"));
    rest.split_once(&format!("\n{to}")).map_or(rest, |(section, _)| section)
}

/// A heading's anchor, as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim_start_matches('#')
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    for file in [
        "README.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
        "docs/database.md",
        "docs/deploy.md",
        "docs/routing.md",
        "src/sql/README.md",
        "tests/bench/README.md",
        "tests/conformance/README.md",
        "tests/fuzz/README.md",
        "tests/release/README.md",
    ] {
        let text = read(file);
        let folder = project().join(file).parent().unwrap().to_path_buf();
        // The files that a table lists.
        for name in text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")) {
            let is_file = [".sql", ".md", ".jsonl"].iter().any(|end| name.0.ends_with(end));
            assert!(!is_file || folder.join(name.0).exists(), "{file}: {}", name.0);
        }
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("https://") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let linked = if path.is_empty() { project().join(file) } else { folder.join(path) };
            assert!(linked.exists(), "{file}: {target}");
            if !fragment.is_empty() {
                let linked = std::fs::read_to_string(&linked).unwrap();
                let anchors: BTreeSet<_> =
                    linked.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
                assert!(anchors.contains(fragment), "{file}: {target}");
            }
        }
    }
}

#[test]
fn every_errcode_and_every_line_of_the_process_is_explained() {
    let readme = read("README.md");
    let errors = section(&readme, "## What an error means", "## ");
    let source = read("src/error.rs");
    let errcodes: BTreeSet<_> = source
        .split('"')
        .filter(|text| text.starts_with("M_") || text.starts_with("ORG_MATRIX_"))
        .collect();
    assert!(errcodes.len() > 5, "{errcodes:?}");
    for errcode in errcodes {
        assert!(errors.contains(&format!("`{errcode}`")), "{errcode}");
    }

    let watching = section(&readme, "## Watching", "### ");
    for line in
        ["the configuration is wrong", "not ready yet", "the event is of no gateway", "panicked"]
    {
        let sources = ["log", "service"].map(|file| read(&format!("src/{file}.rs"))).concat();
        assert!(sources.contains(&format!("\"{line}")), "{line}");
        assert!(watching.contains(&format!("\"{line}")), "{line}");
    }
}

#[test]
fn the_pinned_tools_come_into_this_shell() {
    let (page, pinned) = (read("docs/deploy.md"), read("tests/tools/requirements.txt"));
    let export = page.split('`').find(|text| text.starts_with("export PATH=")).unwrap();
    for (tool, package) in [
        ("sam --version", "aws-sam-cli"),
        ("cargo lambda --version", "cargo-lambda"),
        ("python -m ziglang version", "ziglang"),
    ] {
        let output = Command::new("sh")
            .args(["-c", &format!("{export}; {tool}")])
            .current_dir(project())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let is_pinned = |word: &str| pinned.contains(&format!("\n{package}=={word} "));
        assert!(printed.split_whitespace().any(is_pinned), "{tool}: {printed}");
    }
}

/// What runs the commands of README that start so: a test, the Makefile or the bench.
/// The targets of `make`, and what needs AWS, are not listed.
const RUN: [(&str, &str); 20] = [
    ("sam build", "Makefile"),
    ("sam deploy", "test_a_release_is_deployed_without_a_toolchain"),
    ("curl -si ", "curl_shows_who_answers"),
    ("synadm raw ", "synadm_prints_a_page_and_an_error"),
    ("psql -v ON_ERROR_STOP=1 -d synapse ", "the_role_is_made_and_removed_as_written"),
    ("GRANT rds_iam TO media_usage;", "the_role_can_do_what_role_sql_grants_and_no_more"),
    ("\\password media_usage", "the_role_can_do_what_role_sql_grants_and_no_more"),
    ("GRANT SELECT ", "the_role_is_made_and_removed_as_written"),
    ("REVOKE SELECT ", "the_role_is_made_and_removed_as_written"),
    (
        "ALTER ROLE media_usage SET auto_explain.log_min_duration = -1",
        "only_the_settings_that_are_warned_of_log_the_token_and_the_term",
    ),
    ("UPDATE users ", "the_role_is_made_and_removed_as_written"),
    ("psql -c 'select 1'", "tests/bench/function.rs"),
    (
        "CREATE INDEX CONCURRENTLY media_usage_lengths ",
        "the_optional_indexes_are_used_as_soon_as_they_are_there",
    ),
    (
        "CREATE INDEX CONCURRENTLY media_usage_times ",
        "the_optional_indexes_are_used_as_soon_as_they_are_there",
    ),
    ("cargo test", "Makefile"),
    ("cargo deny", "Makefile"),
    ("cargo shear", "Makefile"),
    ("git verify-tag ", "test_a_release_is_made_and_verified_as_written"),
    ("diff SHA256SUMS ", "test_a_release_is_made_and_verified_as_written"),
    ("unzip -p ", "test_a_release_is_made_and_verified_as_written"),
];

/// What runs each target of `make`: a file, and how it says so.
const TARGETS: [(&str, &str, &str); 9] = [
    ("demo", "tests/it/demo.rs", "HOMESERVER_URL="),
    ("serve", "tests/it/demo.rs", "HOMESERVER_URL="),
    ("test", ".ci/run", "make test"),
    ("lint", "Makefile", "\ntest: check lint build "),
    ("build", "Makefile", "\ntest: check lint build "),
    ("bench", "Makefile", "--bench bench -- --smoke"),
    // In small.
    ("soak", "tests/it/soak.rs", "SOAK_FAULTS"),
    ("fuzz", ".github/workflows/ci.yml", "make fuzz"),
    ("release", ".github/workflows/ci.yml", "make release"),
];

/// What looks like a command and is none.
const NO_COMMANDS: [&str; 4] = ["GET /", "SET LOCAL", "SET search_path", "log_"];

#[test]
fn every_command_is_run_or_says_what_it_needs() {
    let pages = ["README.md", "docs/database.md", "docs/deploy.md", "docs/routing.md"].map(read);
    let makefile = read("Makefile");
    let mut neither = Vec::new();
    // A page of steps says it once, at its beginning.
    let needs_aws = |page: &&String| page.contains("From step 2 on you need AWS credentials");
    for section in pages.iter().filter(|page| !needs_aws(page)).flat_map(|page| page.split("\n## "))
    {
        let mut before = "";
        for paragraph in section.split("\n\n") {
            let commands: Vec<_> = match paragraph.split_once('\n') {
                Some(("```sh" | "```sql", block)) => {
                    block.lines().filter(|line| !line.starts_with([' ', '`'])).collect()
                }
                Some((fence, _)) if fence.starts_with("```") => continue,
                _ => {
                    let code = paragraph.split('`').skip(1).step_by(2);
                    code.filter(|code| code.contains([' ', '\n']) && !code.contains(": ")).collect()
                }
            };
            // A block belongs to the paragraph before it.
            let said = [before, paragraph].concat();
            before = paragraph;
            if said.contains("needs AWS") {
                continue;
            }
            neither.extend(commands.into_iter().filter(|command| {
                let begins = |with: &str| command.starts_with(with);
                if let Some(target) = command.split("make ").nth(1) {
                    let target = target.split(' ').next().unwrap();
                    let by = TARGETS.iter().find(|(name, ..)| *name == target);
                    let is_run = by.is_some_and(|(_, file, says)| read(file).contains(says));
                    return !is_run || !makefile.contains(&format!("\n{target}:"));
                }
                let is_run = RUN.iter().any(|(with, _)| begins(with));
                let needs_mas = begins("mas-cli ") && said.contains("with MAS `");
                !(is_run || needs_mas || NO_COMMANDS.into_iter().any(begins))
            }));
        }
    }
    assert_eq!(neither, [""; 0]);

    let tests = ["clients.rs", "database_log.rs", "demo.rs", "plans.rs", "role.rs"]
        .map(|file| read(&format!("tests/it/{file}")));
    let checks = ["template", "release"].map(|folder| read(&format!("tests/{folder}/check")));
    let tests = [tests.concat(), checks.concat()].concat();
    for (command, by) in RUN {
        assert!(pages.iter().any(|page| page.contains(command)), "{command}");
        let is_there = if by.contains('/') || by == "Makefile" {
            read(by).contains(command)
        } else {
            tests.contains(&format!("fn {by}()")) || tests.contains(&format!("def {by}(self)"))
        };
        assert!(is_there, "{command} is run by {by}");
    }
}
