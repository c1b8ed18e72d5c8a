//! Requests as the events that each gateway makes of them, built the way AWS documents them, and
//! the answers that each gateway makes of a function's response.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use synapse_media_usage::service::PATH;

use super::cases::{Answer, Case};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateway {
    HttpApi,
    FunctionUrl,
    RestApi,
    LoadBalancer,
    LoadBalancerMultiValue,
}

pub const GATEWAYS: [Gateway; 5] = [
    Gateway::HttpApi,
    Gateway::FunctionUrl,
    Gateway::RestApi,
    Gateway::LoadBalancer,
    Gateway::LoadBalancerMultiValue,
];

type Pairs = Vec<(String, String)>;

impl Gateway {
    /// The event of a request.
    ///
    /// # Errors
    ///
    /// Why a gateway of this kind cannot carry it.
    pub fn event(self, case: &Case) -> Result<Value, &'static str> {
        let mut event = match self {
            Self::HttpApi => {
                http_api_event(case, "abcdefghij.execute-api.eu-central-1.amazonaws.com")
            }
            Self::FunctionUrl => {
                http_api_event(case, "abcdefghijklmnop.lambda-url.eu-central-1.on.aws")
            }
            Self::RestApi => rest_api_event(case)?,
            Self::LoadBalancer => {
                let headers = lower_case(&case.headers);
                let pairs = raw_pairs(case);
                if has_repeats(&headers) || has_repeats(&pairs) {
                    return Err("keeps only the last of a repeated header or parameter");
                }
                load_balancer_event(
                    case,
                    "headers",
                    last_values(&headers),
                    "queryStringParameters",
                    last_values(&pairs),
                )
            }
            Self::LoadBalancerMultiValue => load_balancer_event(
                case,
                "multiValueHeaders",
                all_values(&lower_case(&case.headers)),
                "multiValueQueryStringParameters",
                all_values(&raw_pairs(case)),
            ),
        };
        event["body"] = case.body.clone().map_or(Value::Null, Value::String);
        event["isBase64Encoded"] = false.into();
        Ok(event)
    }

    /// What the gateway sends to its client.
    ///
    /// # Panics
    ///
    /// If the response is not of the form that the gateway reads.
    pub fn answer(self, response: &Value) -> Answer {
        let header = |value: &Value| match self {
            Self::LoadBalancerMultiValue => {
                let values = value.as_array().unwrap();
                assert_eq!(values.len(), 1, "{response}");
                values[0].as_str().unwrap().to_owned()
            }
            _ => value.as_str().unwrap().to_owned(),
        };
        let headers = match self {
            Self::LoadBalancerMultiValue => &response["multiValueHeaders"],
            _ => &response["headers"],
        };
        assert_eq!(response["isBase64Encoded"], false, "{response}");
        Answer {
            status: u16::try_from(response["statusCode"].as_u64().unwrap()).unwrap(),
            headers: headers
                .as_object()
                .unwrap_or_else(|| panic!("no headers: {response}"))
                .iter()
                .map(|(name, value)| (name.to_lowercase(), header(value)))
                .collect(),
            body: response["body"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

/// Payload format 2.0: header names in lower case, repeats joined by a comma, the query untouched.
fn http_api_event(case: &Case, host: &str) -> Value {
    let mut headers = BTreeMap::<String, String>::from([("host".to_owned(), host.to_owned())]);
    for (name, value) in lower_case(&case.headers) {
        headers
            .entry(name)
            .and_modify(|joined| {
                joined.push(',');
                joined.push_str(&value);
            })
            .or_insert(value);
    }
    let mut parameters = BTreeMap::<String, String>::new();
    for (name, value) in decoded_pairs(case) {
        parameters
            .entry(name)
            .and_modify(|joined| *joined = format!("{joined},{value}"))
            .or_insert(value);
    }
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": case.path,
        "rawQueryString": case.query.clone().unwrap_or_default(),
        "headers": headers,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdefghij",
            "domainName": host,
            "domainPrefix": "abcdefghij",
            "http": {
                "method": case.method,
                "path": case.path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "test",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "$default",
            "time": "24/Nov/2026:12:00:00 +0000",
            "timeEpoch": 1_795_521_600_000_i64,
        },
    });
    if !parameters.is_empty() {
        event["queryStringParameters"] = json!(parameters);
    }
    event
}

/// Payload format 1.0: decoded pairs; repeats in the multi-value fields, the last one elsewhere.
fn rest_api_event(case: &Case) -> Result<Value, &'static str> {
    if case.transport_sensitive && case.path == PATH {
        return Err("reads the query string by rules of its own and passes on decoded pairs");
    }
    let pairs = decoded_pairs(case);
    let or_null =
        |map: Map<String, Value>| if map.is_empty() { Value::Null } else { Value::Object(map) };
    Ok(json!({
        "resource": "/{proxy+}",
        "path": case.path,
        "httpMethod": case.method,
        "headers": last_values(&case.headers),
        "multiValueHeaders": all_values(&case.headers),
        "queryStringParameters": or_null(last_values(&pairs)),
        "multiValueQueryStringParameters": or_null(all_values(&pairs)),
        "pathParameters": null,
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdefghij",
            "domainName": "abcdefghij.execute-api.eu-central-1.amazonaws.com",
            "httpMethod": case.method,
            "identity": { "sourceIp": "192.0.2.1", "userAgent": "test" },
            "path": format!("/prod{}", case.path),
            "protocol": "HTTP/1.1",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "requestTimeEpoch": 1_795_521_600_000_i64,
            "resourceId": "123456",
            "resourcePath": "/{proxy+}",
            "stage": "prod",
        },
    }))
}

/// Header names in lower case; the query split but not decoded.
fn load_balancer_event(
    case: &Case,
    headers_field: &str,
    headers: Map<String, Value>,
    query_field: &str,
    query: Map<String, Value>,
) -> Value {
    let mut event = json!({
        "requestContext": {
            "elb": {
                "targetGroupArn":
                    "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/media/6d0ecf831eec9f09",
            },
        },
        "httpMethod": case.method,
        "path": case.path,
    });
    event[headers_field] = Value::Object(headers);
    event[query_field] = Value::Object(query);
    event
}

/// The items of the query as they stand there.
fn raw_pairs(case: &Case) -> Pairs {
    let query = case.query.as_deref().unwrap_or_default();
    let items = query.split('&').filter(|item| !item.is_empty());
    items
        .map(|item| item.split_once('=').unwrap_or((item, "")))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

fn decoded_pairs(case: &Case) -> Pairs {
    let decode =
        |text: String| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    raw_pairs(case).into_iter().map(|(name, value)| (decode(name), decode(value))).collect()
}

fn lower_case(headers: &Pairs) -> Pairs {
    headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect()
}

fn has_repeats(pairs: &Pairs) -> bool {
    last_values(pairs).len() < pairs.len()
}

fn last_values(pairs: &Pairs) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

fn all_values(pairs: &Pairs) -> Map<String, Value> {
    let mut map = Map::new();
    for (name, value) in pairs {
        let values = map.entry(name.clone()).or_insert_with(|| json!([]));
        values.as_array_mut().unwrap().push(value.clone().into());
    }
    map
}
