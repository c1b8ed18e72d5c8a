//! The query string: what is read of it is what the contract makes of its form data.

#![no_main]

mod form;
mod integer;

use libfuzzer_sys::fuzz_target;
use num_bigint::BigInt;
use synapse_media_usage::{
    error::Error,
    query::{Args, Direction, MediaUsageQuery, OrderBy},
};

use crate::integer::python_int;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let form = form::parse(&text);
    let args = Args::parse(&text);
    assert_eq!(args.get("access_token"), form::first(&form, "access_token"));

    let query = MediaUsageQuery::parse(&args);
    match (&query, expected(&form)) {
        (Ok(query), Ok(expected)) => {
            assert_eq!(query.order_by, expected.order_by);
            assert_eq!(query.dir, expected.dir);
            assert_eq!(query.from, clamped(&expected.from));
            assert_eq!(query.limit, clamped(&expected.limit));
            assert!(query.from >= 0 && query.limit >= 0);
            // `after` is exclusive and `from_ts` is not.
            let after = (expected.from_ts > BigInt::ZERO).then(|| clamped(&(expected.from_ts - 1)));
            assert_eq!(query.after, after);
            assert_eq!(query.until, expected.until_ts.as_ref().map(clamped));
            if let (Some(after), Some(until)) = (query.after, query.until) {
                assert!(after >= 0 && after <= until);
            }
            let term = query.search_term.as_ref();
            assert_eq!(term.map(|term| term.0.as_bytes()), expected.search_term);
            assert!(term.is_none_or(|term| format!("{term:?}") == "Hidden(..)"));
        }
        (Err(error), Err(expected)) => {
            assert_eq!(*error, expected);
            assert_eq!(error.answer().status, 400);
        }
        (query, expected) => panic!("{query:?} is not {expected:?}"),
    }

    // The order of the items counts only where a name is repeated, and then the first wins.
    let twice = Args::parse(&format!("&{text}&&{text}"));
    assert_eq!(twice.get("access_token"), args.get("access_token"));
    assert_eq!(MediaUsageQuery::parse(&twice), query);
});

#[derive(Debug)]
struct Expected<'a> {
    order_by: OrderBy,
    dir: Direction,
    from: BigInt,
    limit: BigInt,
    from_ts: BigInt,
    until_ts: Option<BigInt>,
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
        Some(_) => return Err(Error::INVALID_ORDER_BY),
    };
    let natural = |name| -> Result<Option<BigInt>, Error> {
        let Some(text) = value(name) else { return Ok(None) };
        let number = python_int(text).ok_or(Error::invalid_integer(name, false))?;
        if number < BigInt::ZERO {
            Err(Error::invalid_integer(name, true))
        } else {
            Ok(Some(number))
        }
    };
    let from = natural("from")?.unwrap_or_default();
    let limit = natural("limit")?.unwrap_or_else(|| 100.into());
    let from_ts = natural("from_ts")?.unwrap_or_default();
    let until_ts = natural("until_ts")?;
    if until_ts.as_ref().is_some_and(|until_ts| *until_ts <= from_ts) {
        return Err(Error::UNTIL_NOT_AFTER_FROM);
    }
    let search_term = value("search_term");
    if let Some(term) = search_term {
        if str::from_utf8(term).is_err() {
            return Err(Error::SEARCH_TERM_NOT_UTF8);
        }
        if term.contains(&0) {
            return Err(Error::SEARCH_TERM_WITH_NUL);
        }
        if term.is_empty() {
            return Err(Error::EMPTY_SEARCH_TERM);
        }
    }
    let dir = match value("dir") {
        None | Some(b"f") => Direction::Forwards,
        Some(b"b") => Direction::Backwards,
        Some(_) => return Err(Error::INVALID_DIR),
    };
    Ok(Expected { order_by, dir, from, limit, from_ts, until_ts, search_term })
}

/// The nearest `i64`.
fn clamped(number: &BigInt) -> i64 {
    number.try_into().unwrap_or(if *number < BigInt::ZERO { i64::MIN } else { i64::MAX })
}
