//! Texts that are checked in and read by people: what is written today is compared with the file, and
//! `make snapshots` writes the file anew.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::project;

/// Compares a text with the file of that name in `tests/snapshots`, or writes the file where
/// `UPDATE_SNAPSHOTS` is set. Whoever calls this has the word `snapshot` in the test's name.
#[track_caller]
pub fn assert_snapshot(name: &str, text: &str) {
    let file = project().join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        return;
    }
    if fs::read_to_string(&file).ok().as_deref() == Some(text) {
        return;
    }
    // Of a file that is missing, everything is new.
    let mut diff = Command::new("diff")
        .args(["--unified", "--new-file", "--label", name, "--label", "now"])
        .arg(&file)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    diff.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let diff = diff.wait_with_output().unwrap();
    panic!(
        "tests/snapshots/{name} is not what is written now (`make snapshots` renews it):\n{}",
        String::from_utf8_lossy(&diff.stdout)
    );
}

/// JSON as a person reads it: what fits into a line stands in one. The fields stand in the order in
/// which `line`, the text that the value was read from, first has their names.
pub fn pretty(value: &Value, line: &str) -> String {
    fn write(value: &Value, line: &str, margin: usize, text: &mut String) {
        const WIDTH: usize = 100;
        let short = value.to_string();
        let mut members: Vec<(String, &Value)> = match value {
            Value::Object(map) if margin == 0 || short.len() + margin > WIDTH => {
                map.iter().map(|(name, value)| (format!("{name:?}: "), value)).collect()
            }
            Value::Array(items) if short.len() + margin > WIDTH => {
                items.iter().map(|value| (String::new(), value)).collect()
            }
            _ => return text.push_str(&short),
        };
        members.sort_by_key(|(name, _)| line.find(name.trim_end()));
        let (open, close) = if value.is_object() { ('{', '}') } else { ('[', ']') };
        text.push(open);
        for (number, (name, value)) in members.iter().enumerate() {
            text.push_str(if number == 0 { "\n" } else { ",\n" });
            text.extend(std::iter::repeat_n(' ', margin + 2));
            text.push_str(name);
            write(value, line, margin + 2, text);
        }
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', margin));
        text.push(close);
    }
    let mut text = String::new();
    write(value, line, 0, &mut text);
    text + "\n"
}
