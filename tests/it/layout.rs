//! The shape of the house: imports point one way, and the modules below the database know neither
//! sockets nor Lambda.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{project, read};

/// A module may import from those before it. On one level they may not import each other.
const LEVELS: [&[&str]; 11] = [
    &["error", "grammar", "invocation", "hidden"],
    &["query", "page", "log", "aws", "client"],
    &["statement", "credentials", "read_ahead"],
    &["config"],
    &["postgres", "gateway"],
    &["auth"],
    &["media_usage", "probe"],
    &["request_log"],
    &["service"],
    &["lib"],
    &["main"],
];

/// The functional core: their tests need nothing but values.
const PURE: [&str; 6] = ["error", "grammar", "query", "page", "statement", "read_ahead"];

fn level(module: &str) -> usize {
    LEVELS
        .iter()
        .position(|level| level.contains(&module))
        .unwrap_or_else(|| panic!("{module} has no level"))
}

/// Module names and sources, without their tests.
fn sources() -> Vec<(String, String)> {
    let mut sources = Vec::new();
    let src = project().join("src");
    for path in files(&src) {
        // A file of a folder belongs to the folder's module.
        let module = path.strip_prefix(&src).unwrap().with_extension("");
        let module = module.iter().next().unwrap().to_str().unwrap();
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        let code: String =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        sources.push((module.to_owned(), code));
    }
    assert!(sources.len() > 12);
    sources
}

/// The modules that a source imports from: what follows `crate::`, alone or in braces.
fn imports(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let list = match rest.strip_prefix('{') {
            Some(braced) => outer_items(braced),
            None => vec![rest.to_owned()],
        };
        for item in list {
            let name: String =
                item.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !name.is_empty() {
                modules.push(name);
            }
        }
    }
    modules
}

/// The items of a braced list, nested lists left whole.
fn outer_items(braced: &str) -> Vec<String> {
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in braced.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ => items.last_mut().unwrap().push(c),
        }
    }
    items
}

#[test]
fn imports_point_one_way() {
    let mut count = 0;
    for (module, code) in sources() {
        for import in imports(&code) {
            if import != module {
                assert!(level(&import) < level(&module), "{module} imports from {import}");
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn the_core_knows_neither_sockets_nor_lambda() {
    for (module, code) in sources() {
        if PURE.contains(&module.as_str()) {
            for outside in
                ["lambda_http", "sqlx", "tokio", "std::net", "std::env", "SystemTime", "Instant"]
            {
                assert!(!code.contains(outside), "{module} knows {outside}");
            }
        }
    }
}

#[test]
fn time_is_an_argument() {
    for (module, code) in sources() {
        if module != "main" {
            assert!(!code.contains("SystemTime::now"), "{module} reads the clock");
        }
    }
}

/// The files of a folder and of those in it that are Rust.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn a_room_is_small_and_so_is_the_house() {
    let mut all = 0;
    for path in files(&project().join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("\n#[cfg(test)]").next().unwrap().lines();
        let code = code.map(str::trim).filter(|it| !it.is_empty() && !it.starts_with("//"));
        let lines = code.count();
        let most = if path.ends_with("src/service.rs") { 190 } else { 360 };
        assert!(lines <= most, "{} has {lines} lines of code", path.display());
        all += lines;
    }
    assert!((1000..=2900).contains(&all), "{all}");
}

#[test]
fn every_sql_file_is_named_in_the_overview() {
    let overview = read("src/sql/README.md");
    for entry in fs::read_dir(project().join("src/sql")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(overview.contains(&format!("`{name}`")), "{name}");
        }
    }
}
