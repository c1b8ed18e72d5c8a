//! The environment of Lambda as far as it holds credentials, and a Secrets Manager.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::OnceLock,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{function::Function, tool};

pub const ACCESS_KEY_ID: &str = "ASIAIOSFODNN7EXAMPLE";
pub const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
pub const SESSION_TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLE/+aZ==";

/// The environment's credentials, as Lambda sets them.
pub const AWS: [(&str, &str); 4] = [
    ("AWS_REGION", "eu-central-1"),
    ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
    ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
    ("AWS_SESSION_TOKEN", SESSION_TOKEN),
];

/// A secret in moto's Secrets Manager.
pub struct Secret {
    pub endpoint: String,
    pub arn: String,
}

impl Secret {
    pub fn create(name: &str, text: &str) -> Self {
        #[derive(Deserialize)]
        struct Server {
            url: String,
        }
        static SERVER: OnceLock<String> = OnceLock::new();
        let endpoint = SERVER.get_or_init(|| tool::<Server>("aws", &["secrets"]).url).clone();
        let created = call(
            &endpoint,
            "CreateSecret",
            &json!({"Name": name, "SecretString": text, "ClientRequestToken": TOKENS[0]}),
        );
        Self { arn: created["ARN"].as_str().unwrap().to_owned(), endpoint }
    }

    /// Puts a version there, as the current one or as the one to come.
    pub fn put(&self, text: &str, token: &str, stage: &str) {
        let body = json!({"SecretId": self.arn, "SecretString": text, "ClientRequestToken": token, "VersionStages": [stage]});
        call(&self.endpoint, "PutSecretValue", &body);
    }

    /// Deletes it for good.
    pub fn delete(&self) {
        let body = json!({"SecretId": self.arn, "ForceDeleteWithoutRecovery": true});
        call(&self.endpoint, "DeleteSecret", &body);
    }

    pub fn start(&self, more: &[(&str, &str)]) -> Function {
        let mut variables = AWS.to_vec();
        variables.extend([
            ("DATABASE_SECRET_ARN", self.arn.as_str()),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &self.endpoint),
            ("AWS_LAMBDA_LOG_LEVEL", "TRACE"),
        ]);
        variables.extend(more);
        Function::start(&variables)
    }
}

/// Names of versions are between 32 and 64 characters long.
pub const TOKENS: [&str; 3] = [
    "00000000-0000-0000-0000-000000000001",
    "00000000-0000-0000-0000-000000000002",
    "00000000-0000-0000-0000-000000000003",
];

/// One call of the Secrets Manager API.
fn call(endpoint: &str, action: &str, body: &Value) -> Value {
    let address = endpoint.strip_prefix("http://").unwrap();
    let mut server = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    write!(
        server,
        "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: secretsmanager.{action}\r\nContent-Length: {}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-3/secretsmanager/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}
