//! The query string, read once: [`Args`] splits it, [`MediaUsageQuery`] is what it asks for.

use std::collections::BTreeMap;

use percent_encoding::percent_decode;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{error::Error, hidden::Hidden};

/// The parameters of the query string, decoded to bytes, the first value of each.
///
/// The syntax is the WHATWG URL standard's for form data (departure D7): only `&` separates, an
/// item without `=` has the empty value, `+` is a space, an invalid `%` escape stays as it is.
/// The values stay bytes because invalid UTF-8 in `search_term` is refused, not replaced (D2).
#[derive(Clone, Default)]
pub struct Args(BTreeMap<Vec<u8>, Vec<u8>>);

impl Args {
    /// Reads a query string, which is what follows the first `?` of the request line.
    pub fn parse(query: &str) -> Self {
        // Backwards, so that the first value of each stays.
        let items = query.split('&').rev().map(|item| item.split_once('=').unwrap_or((item, "")));
        Self(items.map(|(name, value)| (form_decode(name), form_decode(value))).collect())
    }

    /// The value of a parameter; that of `access_token` is a secret.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name.as_bytes()).map(Vec::as_slice)
    }
}

fn form_decode(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

/// What one request asks for; a value of this type cannot be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaUsageQuery {
    /// The key that orders the users.
    pub order_by: OrderBy,
    /// The direction of that key.
    pub dir: Direction,
    /// How many users of the order come before the page; 0 to 2^63-1.
    pub from: i64,
    /// How many users the page may hold; 0 to 2^63-1.
    pub limit: i64,
    /// Only media with a `created_ts` (Unix time in ms) greater than this count, which is one below
    /// `from_ts`; `None` counts also those without one.
    pub after: Option<i64>,
    /// Only media with a `created_ts` up to and including this count.
    pub until: Option<i64>,
    /// Which users count: those with this text in their names, literally and case-sensitively (D1).
    /// It is not empty, and may be personal. `None` for all.
    pub search_term: Option<Hidden<String>>,
}

impl MediaUsageQuery {
    /// Reads and checks the parameters, in Synapse's order: the first wrong one is the error
    /// (`synapse/rest/admin/statistics.py`).
    ///
    /// # Errors
    ///
    /// The 400s of [`Error`].
    pub fn parse(args: &Args) -> Result<Self, Error> {
        let order_by = args.get("order_by").unwrap_or(b"user_id");
        let order_by = choice(order_by).ok_or(Error::INVALID_ORDER_BY)?;
        let from = natural("from", args)?.unwrap_or(0);
        let limit = natural("limit", args)?.unwrap_or(100);
        let from_ts = natural("from_ts", args)?.unwrap_or(0);
        let until = natural("until_ts", args)?;
        if until.is_some_and(|until| until <= from_ts) {
            return Err(Error::UNTIL_NOT_AFTER_FROM);
        }
        // As in Synapse, `from_ts` 0 is no filter.
        let after = (from_ts > 0).then(|| from_ts - 1);
        let search_term = args.get("search_term").map(search_term).transpose()?;
        let dir = choice(args.get("dir").unwrap_or(b"f")).ok_or(Error::INVALID_DIR)?;
        Ok(Self { order_by, dir, from, limit, after, until, search_term })
    }
}

/// `order_by`. Users with equal keys follow each other by `user_id`, ascending, null last (D9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderBy {
    /// The Matrix user id, by its bytes.
    UserId,
    /// The profile's name, by its bytes.
    Displayname,
    /// The sum of the files' lengths.
    MediaLength,
    /// The number of files.
    MediaCount,
}

impl OrderBy {
    /// The parameter's value, which the page statements take as it is.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserId => "user_id",
            Self::Displayname => "displayname",
            Self::MediaLength => "media_length",
            Self::MediaCount => "media_count",
        }
    }
}

/// `dir`: nulls come last forwards and first backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// `f`: ascending.
    #[serde(rename = "f")]
    Forwards,
    /// `b`: descending.
    #[serde(rename = "b")]
    Backwards,
}

/// Reads one of a parameter's values.
fn choice<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_value(str::from_utf8(bytes).ok()?.into()).ok()
}

/// Reads a search term.
fn search_term(bytes: &[u8]) -> Result<Hidden<String>, Error> {
    match str::from_utf8(bytes) {
        Err(_) => Err(Error::SEARCH_TERM_NOT_UTF8),
        Ok("") => Err(Error::EMPTY_SEARCH_TERM),
        Ok(term) if term.contains('\0') => Err(Error::SEARCH_TERM_WITH_NUL),
        Ok(term) => Ok(Hidden(term.to_owned())),
    }
}

/// Reads a parameter, an integer from 0 on, as Python's `int` reads bytes: ASCII blanks around, one sign, digits
/// with single `_` between them. What PostgreSQL's `bigint` cannot hold counts as 2^63-1 (D4).
fn natural(parameter: &str, args: &Args) -> Result<Option<i64>, Error> {
    let Some(value) = args.get(parameter) else { return Ok(None) };
    // Bytes that are not UTF-8 are no integer either.
    let text = str::from_utf8(value).unwrap_or_default();
    let text = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_group = |group: &str| !group.is_empty() && group.bytes().all(|it| it.is_ascii_digit());
    let is_integer = digits.split('_').all(is_group);
    let beyond = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    let number = text.replace('_', "").parse().unwrap_or(beyond);
    if !is_integer || number < 0 {
        // An integer is refused for being negative.
        return Err(Error::invalid_integer(parameter, is_integer));
    }
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<MediaUsageQuery, Error> {
        MediaUsageQuery::parse(&Args::parse(query))
    }

    #[test]
    fn no_parameter_means_the_documented_defaults() {
        assert_eq!(
            parse(""),
            Ok(MediaUsageQuery {
                order_by: OrderBy::UserId,
                dir: Direction::Forwards,
                from: 0,
                limit: 100,
                after: None,
                until: None,
                search_term: None,
            })
        );
    }

    #[test]
    fn integers_are_read_as_python_reads_them() {
        for (text, value) in [
            ("7", 7),
            ("%207%0A", 7),
            ("+7", 7), // a space
            ("%2B7", 7),
            ("-0", 0),
            ("007", 7),
            ("1_000", 1000),
            ("0_0", 0),
            ("9223372036854775807", i64::MAX),
            ("9223372036854775808", i64::MAX),
            ("1000000000000000000000000000000000000000000000000000", i64::MAX),
        ] {
            assert_eq!(
                parse(&format!("limit={text}")).map(|query| query.limit),
                Ok(value),
                "{text}"
            );
        }
        for text in [
            "", "%20", "%1C7", "+", "-", "_1", "1_", "1__0", "%2B-1", "-%201", "0x10", "1e3",
            "1.5", "%D9%A5", "5%00", "%FF",
        ] {
            assert_eq!(
                parse(&format!("limit={text}")),
                Err(Error::invalid_integer("limit", false)),
                "{text}"
            );
        }
        for text in ["-1", "-1_0", "-99999999999999999999"] {
            assert_eq!(
                parse(&format!("from={text}")),
                Err(Error::invalid_integer("from", true)),
                "{text}"
            );
        }
    }

    #[test]
    fn timestamps_beyond_bigint_count_as_the_largest() {
        let window = |query: &str| parse(query).map(|it| (it.after, it.until));
        assert_eq!(window("from_ts=0"), Ok((None, None)));
        assert_eq!(window("from_ts=1"), Ok((Some(0), None)));
        assert_eq!(window("until_ts=0"), Err(Error::UNTIL_NOT_AFTER_FROM));
        assert_eq!(window("from_ts=5&until_ts=5"), Err(Error::UNTIL_NOT_AFTER_FROM));
        for largest in ["9223372036854775807", "9223372036854775808", "100000000000000000000"] {
            let from_ts = format!("from_ts={largest}");
            assert_eq!(window(&from_ts), Ok((Some(i64::MAX - 1), None)));
            let until_ts = format!("until_ts={largest}");
            assert_eq!(window(&until_ts), Ok((None, Some(i64::MAX))));
            let both = format!("{from_ts}&until_ts=200000000000000000000");
            assert_eq!(window(&both), Err(Error::UNTIL_NOT_AFTER_FROM));
        }
    }

    #[test]
    fn an_order_is_written_as_it_is_read() {
        for text in ["user_id", "displayname", "media_length", "media_count"] {
            let query = parse(&format!("order_by={text}")).unwrap();
            assert_eq!(query.order_by.as_str(), text);
        }
    }

    #[test]
    fn the_query_string_is_form_data() {
        let term = |query| parse(query).map(|query| query.search_term.map(|term| term.0));
        let found = |term: &str| Ok(Some(term.to_owned()));
        assert_eq!(term("search_term=a+b%2Bc"), found("a b+c"));
        assert_eq!(term("search_term=%zz%6"), found("%zz%6"));
        assert_eq!(term("&&search_term=a;b&"), found("a;b"));
        assert_eq!(term("search_term=a=b"), found("a=b"));
        assert_eq!(term("search%5Fterm=a&search_term=b"), found("a"));
        assert_eq!(term("search_term"), Err(Error::EMPTY_SEARCH_TERM));
        assert_eq!(term("search_term=%ED%A0%80"), Err(Error::SEARCH_TERM_NOT_UTF8));
        assert_eq!(term("search_term=%00"), Err(Error::SEARCH_TERM_WITH_NUL));
    }

    #[test]
    fn debug_does_not_show_the_search_term() {
        let shown = format!("{:?}", parse("search_term=confidential"));
        assert!(!shown.contains("confidential"), "{shown}");
    }
}
