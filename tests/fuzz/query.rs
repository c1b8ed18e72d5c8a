//! The query string: what is read of it is what the contract makes of its form data.

#![no_main]

mod form;
mod integer;

use libfuzzer_sys::fuzz_target;
use synapse_media_usage::{
    error::Error,
    query::{Args, Direction, MediaUsageQuery, OrderBy},
};

use crate::integer::{clamped, python_int};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let form = form::parse(&text);
    let args = Args::parse(&text);
    assert_eq!(args.access_token.as_deref(), form::first(&form, "access_token"));

    let query = MediaUsageQuery::parse(&args);
    match (&query, expected(&form)) {
        (Ok(query), Ok(expected)) => {
            assert_eq!(query.order_by, expected.order_by);
            assert_eq!(query.dir, expected.dir);
            assert_eq!(query.from, expected.from);
            assert_eq!(query.limit, expected.limit);
            assert!(query.from >= 0 && query.limit >= 0);
            // `after` is exclusive and `from_ts` is not.
            let after = (expected.from_ts > 0).then(|| expected.from_ts - 1);
            assert_eq!(query.window.after, after);
            assert_eq!(query.window.until, expected.until_ts);
            if let (Some(after), Some(until)) = (query.window.after, query.window.until) {
                assert!(after >= 0 && after + 1 < until);
            }
            assert_eq!(query.window.is_bounded(), after.or(query.window.until).is_some());
            let term = query.search_term.as_ref();
            assert_eq!(term.map(|term| term.expose().as_bytes()), expected.search_term);
            assert!(term.is_none_or(|term| format!("{term:?}") == "SearchTerm(..)"));
        }
        (Err(error), Err(expected)) => {
            assert_eq!(*error, expected);
            assert_eq!(error.status(), 400);
        }
        (query, expected) => panic!("{query:?} is not {expected:?}"),
    }

    // The order of the items counts only where a name is repeated, and then the first wins.
    let twice = Args::parse(&format!("&{text}&&{text}"));
    assert_eq!(twice.access_token, args.access_token);
    assert_eq!(MediaUsageQuery::parse(&twice), query);
});

#[derive(Debug)]
struct Expected<'a> {
    order_by: OrderBy,
    dir: Direction,
    from: i64,
    limit: i64,
    from_ts: i64,
    until_ts: Option<i64>,
    search_term: Option<&'a [u8]>,
}

/// The checks in the order of `tests/conformance/README.md`.
fn expected(form: &form::Form) -> Result<Expected<'_>, Error> {
    let value = |name| form::first(form, name);
    let order_by = match value("order_by") {
        None | Some(b"user_id") => OrderBy::UserId,
        Some(b"displayname") => OrderBy::Displayname,
        Some(b"media_length") => OrderBy::MediaLength,
        Some(b"media_count") => OrderBy::MediaCount,
        Some(_) => {
            return Err(Error::NotOneOf {
                parameter: "order_by",
                allowed: "['media_length', 'media_count', 'user_id', 'displayname']",
            });
        }
    };
    let natural = |name| -> Result<Option<i64>, Error> {
        let Some(text) = value(name) else { return Ok(None) };
        let number = python_int(text).ok_or(Error::NotAnInteger(name))?;
        let number = clamped(&number);
        if number < 0 { Err(Error::NegativeInteger(name)) } else { Ok(Some(number)) }
    };
    let from = natural("from")?.unwrap_or(0);
    let limit = natural("limit")?.unwrap_or(100);
    let from_ts = natural("from_ts")?.unwrap_or(0);
    let until_ts = natural("until_ts")?;
    if until_ts.is_some_and(|until_ts| until_ts <= from_ts) {
        return Err(Error::UntilNotAfterFrom);
    }
    let search_term = value("search_term");
    if let Some(term) = search_term {
        if str::from_utf8(term).is_err() {
            return Err(Error::SearchTermNotUtf8);
        }
        if term.contains(&0) {
            return Err(Error::SearchTermWithNul);
        }
        if term.is_empty() {
            return Err(Error::EmptySearchTerm);
        }
    }
    let dir = match value("dir") {
        None | Some(b"f") => Direction::Forwards,
        Some(b"b") => Direction::Backwards,
        Some(_) => return Err(Error::NotOneOf { parameter: "dir", allowed: "['b', 'f']" }),
    };
    Ok(Expected { order_by, dir, from, limit, from_ts, until_ts, search_term })
}
