//! Introspection answers: they are read as Synapse reads them (`synapse/api/auth/mas.py`).
//!
//! The first line of an input is the status code, the rest the body.

#![no_main]

mod integer;

use std::{collections::BTreeSet, fmt};

use lambda_http::http::StatusCode;
use libfuzzer_sys::{Corpus, fuzz_target};
use num_bigint::BigInt;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use synapse_media_usage::{auth::Introspection, error::Error};

use crate::integer::python_int;

const NOW_MS: i64 = 1_780_000_000_000;

fuzz_target!(|data: &[u8]| -> Corpus {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Ok(status) = StatusCode::from_bytes(&data[..at]) else { return Corpus::Reject };
    let body = data.get(at + 1..).unwrap_or_default();

    let introspection = Introspection::read(status, body, NOW_MS);
    let expected =
        if (200..300).contains(&status.as_u16()) { expected(body) } else { Expected::Failure };
    match (introspection, expected) {
        (Ok(introspection), Expected::Active(answer)) => {
            let scope = answer.scope.unwrap_or_default();
            let scope: BTreeSet<_> = scope.split(' ').filter(|item| !item.is_empty()).collect();
            assert_eq!(introspection.scope().collect::<BTreeSet<_>>(), scope);
            assert_eq!(introspection.username, answer.username);
            assert_eq!(introspection.device_id(), device_id(answer.device_id, &scope));

            let end = answer.expires_in.map(|seconds| seconds * 1000 + NOW_MS);
            let is_over = |end: &BigInt| *end <= NOW_MS.into();
            assert_eq!(introspection.has_expired(NOW_MS), end.as_ref().is_some_and(is_over));
        }
        (Err(error), Expected::Inactive) if error == Error::TOKEN_NOT_ACTIVE => {}
        (Err(error @ Error::IntrospectionFailed { .. }), Expected::Failure) => {
            assert_eq!(error.answer().status, 503);
            assert!(!error.body().contains("answer"), "the cause is for the log");
        }
        (introspection, expected) => panic!("{introspection:?} is not {expected:?}"),
    }
    Corpus::Keep
});

#[derive(Debug)]
enum Expected {
    Active(Answer),
    Inactive,
    Failure,
}

#[derive(Debug, Default)]
struct Answer {
    scope: Option<String>,
    username: Option<String>,
    device_id: Option<String>,
    expires_in: Option<BigInt>,
}

fn expected(body: &[u8]) -> Expected {
    let Ok(fields) = serde_json::from_slice::<Fields>(body) else { return Expected::Failure };
    match answer(&fields) {
        Err(OfAnotherType) => Expected::Failure,
        Ok((false, _)) => Expected::Inactive,
        Ok((true, answer)) => Expected::Active(answer),
    }
}

struct OfAnotherType;

/// Whether the token is active, and what else is asked.
fn answer(fields: &Fields) -> Result<(bool, Answer), OfAnotherType> {
    let text = |name| fields.get(name, |text| serde_json::from_str(text).ok());
    let answer = Answer {
        scope: text("scope")?,
        username: text("username")?,
        device_id: text("device_id")?,
        // What JSON has for an integer is what Python has, but for what Python would also take.
        expires_in: fields.get("expires_in", |text| {
            // One of more bits is no MAS's, and not read.
            python_int(text.as_bytes()).filter(|seconds| i128::try_from(seconds).is_ok())
        })?,
    };
    let active = fields.get("active", |text| text.parse().ok())?.ok_or(OfAnotherType)?;
    Ok((active, answer))
}

/// The device that the token is of.
fn device_id(named: Option<String>, scope: &BTreeSet<&str>) -> Result<Option<String>, Error> {
    let device_id = if let Some(device_id) = named {
        device_id
    } else {
        let mut devices = BTreeSet::new();
        for item in scope {
            for prefix in
                ["urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:"]
            {
                devices.extend(item.strip_prefix(prefix));
            }
        }
        match devices.len() {
            0 => return Ok(None),
            1 => devices.into_iter().collect(),
            _ => return Err(Error::MULTIPLE_DEVICE_IDS),
        }
    };
    // NUL is ours: no text in PostgreSQL has it.
    if device_id.is_empty() || device_id.chars().count() > 255 || device_id.contains('\0') {
        return Err(Error::INVALID_DEVICE_ID);
    }
    Ok(Some(device_id))
}

const ASKED: [&str; 5] = ["active", "scope", "username", "device_id", "expires_in"];

/// The fields that are asked, in their order. One that is repeated makes the answer wrong: of those the last
/// counts in Synapse, and the first may elsewhere.
struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    /// A field, unless it is not there or null.
    fn get<T>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, OfAnotherType> {
        let field = self.0.iter().find(|(other, _)| other == name);
        match field.map(|(_, value)| value.get()) {
            None | Some("null") => Ok(None),
            Some(text) => read(text).map(Some).ok_or(OfAnotherType),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if fields.iter().any(|(other, _)| *other == name) {
                        return Err(de::Error::custom("a repeated field"));
                    }
                    if ASKED.contains(&&*name) {
                        fields.push((name, value));
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}
