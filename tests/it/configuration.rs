//! The configuration as the process reads it, and where it is documented.

use serde_json::Value;

use crate::support::{cases::request, function::Function, gateway::Gateway, read};

#[test]
fn a_function_that_cannot_be_configured_still_answers() {
    let function = Function::start(&[
        ("STATEMENT_TIMEOUT_MS", "soon"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x"),
    ]);
    let send = |method: &str| {
        let mut case = request(None);
        method.clone_into(&mut case.method);
        let event = Gateway::HttpApi.event(&case).unwrap();
        Gateway::HttpApi.answer(&function.invoke(event.to_string().as_bytes()).unwrap())
    };
    let answer = send("GET");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, body["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{body}");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!((send("HEAD").status, send("OPTIONS").status, send("POST").status), (500, 204, 405));
    let log = function.stop();
    assert!(log.contains("DATABASE_URL does not start with postgres://"), "{log}");
    assert!(log.contains("STATEMENT_TIMEOUT_MS is no integer"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn every_variable_is_documented_in_the_readme() {
    let (config, readme) = (read("src/config.rs"), read("README.md"));
    let variables: Vec<_> =
        config.lines().filter_map(|line| line.strip_prefix("/// | `")?.split('`').next()).collect();
    assert!(variables.len() >= 4, "{variables:?}");
    for variable in variables {
        assert!(readme.contains(&format!("| `{variable}` |")), "{variable}");
    }
    // And nothing is read that is not documented.
    for file in ["src/config.rs", "src/log.rs", "src/main.rs"] {
        let source = read(file);
        for name in source.split("variable(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(config.contains(&format!("/// | `{name}` |")), "{name} in {file}");
        }
    }
}
