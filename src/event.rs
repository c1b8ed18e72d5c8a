//! Invocation events of every gateway kind, and the answers they expect.
//!
//! This is ours and not `lambda_http`'s because there three things are lost on the way that the
//! contract needs: the repeats of a header in REST events, header values that are not ASCII, and
//! the difference between `%FF` and `%EF%BF%BD` in a load balancer's query; and because its
//! conversion panics on a host that is no host and on a query with a raw `<`.

use std::collections::BTreeMap;

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri},
};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::{error::Error, page::Budget};

/// An invocation event. Any JSON can be read as one: an event of no known kind becomes a request
/// for no path, whose answer is 404.
#[derive(Debug)]
pub struct Event {
    kind: Kind,
    fields: Fields,
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// API Gateway's HTTP API with payload format 2.0, or a Function URL, which uses it too.
    HttpApi,
    /// API Gateway's REST API, or an HTTP API with payload format 1.0.
    RestApi,
    /// An Application Load Balancer.
    LoadBalancer,
    /// An Application Load Balancer with multi-value headers.
    LoadBalancerMultiValue,
    /// Nothing that this function knows.
    Unknown,
}

/// What is read of the events of all kinds (AWS Lambda Developer Guide and API Gateway Developer
/// Guide, "payload format version"; Elastic Load Balancing, "Lambda functions as targets").
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields {
    request_context: RequestContext,
    http_method: Option<String>,
    path: Option<String>,
    raw_path: Option<String>,
    raw_query_string: Option<String>,
    headers: Option<BTreeMap<String, Option<String>>>,
    multi_value_headers: Option<BTreeMap<String, Vec<String>>>,
    query_string_parameters: Option<BTreeMap<String, Option<String>>>,
    multi_value_query_string_parameters: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RequestContext {
    http: Option<Http>,
    elb: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Http {
    method: String,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let fields: Fields = serde_json::from_str(json.get()).unwrap_or_default();
        let kind = if fields.request_context.elb.is_some() {
            if fields.multi_value_headers.is_some() {
                Kind::LoadBalancerMultiValue
            } else {
                Kind::LoadBalancer
            }
        } else if fields.request_context.http.is_some() {
            Kind::HttpApi
        } else if fields.http_method.is_some() {
            Kind::RestApi
        } else {
            Kind::Unknown
        };
        Ok(Self { kind, fields })
    }
}

/// What may not stand in a URI's query as it is. Escaping it changes nothing: whoever reads the
/// query decodes it.
const NOT_IN_A_QUERY: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}');

impl Event {
    /// Where the event comes from.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The request that the event describes. Its path is [`RequestExt::raw_http_path`]; the path
    /// of its URI means nothing.
    ///
    /// # Errors
    ///
    /// [`Error::UriTooLong`] for a query string of more than 64 kB.
    pub fn into_request(self) -> Result<Request, Error> {
        let query = self.query();
        let Fields {
            request_context,
            http_method,
            path,
            raw_path,
            headers,
            multi_value_headers,
            ..
        } = self.fields;
        let (method, path) = match self.kind {
            Kind::HttpApi => (request_context.http.map(|http| http.method), raw_path),
            Kind::RestApi | Kind::LoadBalancer | Kind::LoadBalancerMultiValue => {
                (http_method, path)
            }
            Kind::Unknown => (None, None),
        };
        let mut request = Request::new(Body::Empty);
        // A method that is none is not one of the endpoint's.
        *request.method_mut() =
            Method::from_bytes(method.unwrap_or_default().as_bytes()).unwrap_or(Method::CONNECT);
        *request.uri_mut() = Uri::try_from(format!("/?{query}")).map_err(|_| Error::UriTooLong)?;
        // The multi-value form holds what the single-value form holds, and the repeats.
        *request.headers_mut() = match multi_value_headers.filter(|headers| !headers.is_empty()) {
            Some(headers) => header_map(headers),
            None => header_map(single_values(headers)),
        };
        Ok(request.with_raw_http_path(path.unwrap_or_default()))
    }

    /// The query string, with all that a URI does not allow escaped.
    fn query(&self) -> String {
        let fields = &self.fields;
        let query = if let Some(query) = &fields.raw_query_string {
            query.clone()
        } else {
            // Across different names the order is lost, and it does not matter.
            let pairs = match fields.multi_value_query_string_parameters.clone() {
                Some(pairs) if !pairs.is_empty() => pairs,
                _ => single_values(fields.query_string_parameters.clone()),
            };
            let encode = |text: &str| match self.kind {
                // A REST API decodes names and values, a load balancer leaves them as they are.
                Kind::RestApi => utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
                _ => text.to_owned(),
            };
            pairs
                .iter()
                .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
                .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
                .collect::<Vec<_>>()
                .join("&")
        };
        utf8_percent_encode(&query, NOT_IN_A_QUERY).to_string()
    }
}

type MultiValues = BTreeMap<String, Vec<String>>;

fn single_values(map: Option<BTreeMap<String, Option<String>>>) -> MultiValues {
    let values = map.unwrap_or_default().into_iter();
    values.map(|(name, value)| (name, vec![value.unwrap_or_default()])).collect()
}

fn header_map(headers: MultiValues) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, values) in headers {
        // What is no header name is no header that this function reads.
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        for value in values {
            // No HTTP server lets a control character through; an event made by hand can have
            // one, and its header must not look as if it were absent.
            let value = value.replace(char::is_control, "\u{fffd}");
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                map.append(&name, value);
            }
        }
    }
    map
}

impl Kind {
    /// How large a body this kind can carry.
    #[must_use]
    pub fn budget(self) -> Budget {
        match self {
            Self::LoadBalancer | Self::LoadBalancerMultiValue => Budget::LOAD_BALANCER,
            Self::HttpApi | Self::RestApi | Self::Unknown => Budget::INVOCATION,
        }
    }

    /// A response in the form that this kind reads.
    #[must_use]
    pub fn answer(self, response: Response<Body>) -> Answer {
        let (parts, body) = response.into_parts();
        let pairs = parts.headers.iter().map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let mut answer = Answer {
            status_code: parts.status.as_u16(),
            headers: None,
            multi_value_headers: None,
            cookies: (self == Self::HttpApi).then_some([]),
            body: match body {
                Body::Text(text) => text,
                _ => String::new(),
            },
            is_base64_encoded: false,
        };
        if self == Self::LoadBalancerMultiValue {
            answer.multi_value_headers =
                Some(pairs.map(|(name, value)| (name, vec![value])).collect());
        } else {
            answer.headers = Some(pairs.collect());
        }
        answer
    }
}

/// The invocation's response: the fields that all kinds understand.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multi_value_headers: Option<BTreeMap<String, Vec<String>>>,
    /// Payload format 2.0 has this list; `cargo lambda watch` insists on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cookies: Option<[String; 0]>,
    body: String,
    is_base64_encoded: bool,
}
