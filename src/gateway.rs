//! Invocation events of every gateway kind, and the answers they expect.
//!
//! `lambda_http` could read them too, but it loses three things that the contract needs: the
//! repeats of a header in REST events, header values that are not ASCII, and the difference between
//! `%FF` and `%EF%BF%BD` in a load balancer's query. It also panics on an invalid host and on a
//! query with a raw `<`.

use std::slice;

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderValue, Method, header::AUTHORIZATION},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use url::form_urlencoded::Serializer;

use crate::page::Budget;

/// An invocation event. Any JSON can be read as one. An event of no known kind becomes a request
/// without a path, which the endpoint answers with 404. A field of an unexpected form counts as
/// absent.
#[derive(Debug, Deserialize)]
#[serde(from = "Box<RawValue>")]
pub struct Event(Value);

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// API Gateway's HTTP API with payload format 2.0, or a Function URL, which uses it too.
    HttpApi,
    /// API Gateway's REST API, or an HTTP API with payload format 1.0.
    RestApi,
    /// An Application Load Balancer.
    LoadBalancer,
    /// An Application Load Balancer with multi-value headers.
    LoadBalancerMultiValue,
    /// Whatever else invokes functions: VPC Lattice, an authorizer, a schedule.
    Unknown,
}

impl From<Box<RawValue>> for Event {
    fn from(json: Box<RawValue>) -> Self {
        // serde_json refuses half of a surrogate pair, which JSON allows.
        Self(serde_json::from_str(json.get()).unwrap_or_default())
    }
}

/// The query string of a request, as it stood in the request line: an extension, because a URI
/// cannot hold all that a gateway passes on.
#[derive(Debug, Clone, Default)]
pub struct RawQuery(pub String);

impl Event {
    /// Whether somebody asks by hand, or by a schedule, how the function is. A gateway's event has
    /// other fields, whatever its request says.
    pub fn is_probe(&self) -> bool {
        self.0 == json!({ "synapse_media_usage": "probe" })
    }

    /// Where the event comes from.
    pub fn kind(&self) -> Kind {
        let Self(fields) = self;
        let has_multi_value = fields["multiValueHeaders"].is_object();
        match &fields["requestContext"] {
            // API Gateway asks authorizers, and passes on WebSocket messages, by events that otherwise
            // look like requests.
            _ if !fields["type"].is_null() => Kind::Unknown,
            it if !it["connectionId"].is_null() => Kind::Unknown,
            it if it["elb"].is_object() && has_multi_value => Kind::LoadBalancerMultiValue,
            it if it["elb"].is_object() => Kind::LoadBalancer,
            it if it["http"]["method"].is_string() => Kind::HttpApi,
            _ if fields["httpMethod"].is_string() && fields["path"].is_string() => Kind::RestApi,
            _ => Kind::Unknown,
        }
    }

    /// The request that the event describes: its method; its path, as
    /// [`RequestExt::raw_http_path`]; its query string, as [`RawQuery`]; and of its headers the
    /// only one that matters, `Authorization`.
    ///
    /// The fields are those that AWS documents: "payload format version" in the API Gateway
    /// Developer Guide, "Lambda functions as targets" of Elastic Load Balancing.
    pub fn into_request(self) -> Request {
        let (method, path) = match self.kind() {
            Kind::HttpApi => (self.text("/requestContext/http/method"), self.text("/rawPath")),
            Kind::Unknown => ("", ""),
            _ => (self.text("/httpMethod"), self.text("/path")),
        };
        let mut request = Request::new(Body::Empty);
        // The endpoint refuses CONNECT, and so every invalid method.
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap_or(Method::CONNECT);
        // An HTTP API joins repeats by a comma. A second scheme then leaves a blank in the token,
        // and the header is not a valid one (D10).
        let headers = self.pairs("multiValueHeaders", "headers");
        let authorizations = headers.filter(|it| it.0.eq_ignore_ascii_case("authorization"));
        // HTTP servers refuse control characters, but an event made by hand can have one. Its header
        // must not look as if it were absent.
        let is_control = |c: char| c.is_control() && c != '\t';
        let authorizations = authorizations.map(|it| it.1.replace(is_control, "\u{fffd}"));
        // Two are as wrong as three.
        for value in authorizations.take(2).filter_map(|it| HeaderValue::try_from(it).ok()) {
            request.headers_mut().append(AUTHORIZATION, value);
        }
        request.extensions_mut().insert(RawQuery(self.query()));
        request.with_raw_http_path(path)
    }

    /// A field by its JSON Pointer; empty if it is no text.
    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn query(&self) -> String {
        let pairs = self.pairs("multiValueQueryStringParameters", "queryStringParameters");
        match self.kind() {
            Kind::HttpApi => self.text("/rawQueryString").to_owned(),
            // A REST API decodes names and values, a load balancer leaves them as they are.
            Kind::RestApi => Serializer::new(String::new()).extend_pairs(pairs).finish(),
            _ => pairs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&"),
        }
    }

    /// The names and values of a field. Its multi-value form, if there is one, has all that the
    /// other has, and the repeats.
    fn pairs(&self, multi_value: &str, single_value: &str) -> impl Iterator<Item = (&str, &str)> {
        let fields = [multi_value, single_value].map(|field| self.0[field].as_object());
        let fields = fields.into_iter().flatten().find(|fields| !fields.is_empty());
        fields.into_iter().flatten().flat_map(|(name, value)| {
            let values = value.as_array().map_or(slice::from_ref(value), Vec::as_slice);
            values.iter().filter_map(Value::as_str).map(|value| (name.as_str(), value))
        })
    }
}

impl Kind {
    /// How large a body this kind can carry.
    pub fn budget(self) -> Budget {
        match self {
            Self::LoadBalancer | Self::LoadBalancerMultiValue => Budget::LOAD_BALANCER,
            Self::HttpApi | Self::RestApi | Self::Unknown => Budget::INVOCATION,
        }
    }

    /// The invocation's response, in the form that this kind reads.
    pub fn answer(self, response: Response<Body>) -> Value {
        let (parts, body) = response.into_parts();
        let is_multi_value = self == Self::LoadBalancerMultiValue;
        let headers = parts.headers.iter().map(|(name, value)| {
            let value = json!(String::from_utf8_lossy(value.as_bytes()));
            (name.as_str(), if is_multi_value { json!([value]) } else { value })
        });
        let mut answer = json!({ "statusCode": parts.status.as_u16(), "isBase64Encoded": false });
        answer[if is_multi_value { "multiValueHeaders" } else { "headers" }] = headers.collect();
        if self == Self::HttpApi {
            // Payload format 2.0 has this list; `cargo lambda watch` insists on it.
            answer["cookies"] = json!([]);
        }
        // Moved, because it can be large.
        answer["body"] = if let Body::Text(text) = body { text.into() } else { "".into() };
        answer
    }
}
