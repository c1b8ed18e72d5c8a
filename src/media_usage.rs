//! The question itself: binds and rows.

use futures_util::TryStreamExt;
use sqlx::{Row, postgres::PgRow};

use crate::{
    auth::Admin,
    error::Error,
    hidden::Hidden,
    invocation::Invocation,
    page::{Budget, Page, UserMedia},
    postgres::{Connection, failure, or_nothing},
    query::{Direction, MediaUsageQuery},
    read_ahead::{KeptAnswer, ReadAhead},
    statement::Shape,
};

/// A page, and how it was found.
#[derive(Debug)]
pub struct MediaUsage {
    /// The JSON body of the answer.
    pub body: String,
    /// How many users it holds.
    pub rows: i64,
    /// Where the next page begins, if there is one.
    pub next_token: Option<i64>,
    /// The shape of the statement that answered; `None` for a page from memory.
    pub shape: Option<Shape>,
    /// How many users are kept for later pages; `None` if nothing was read ahead.
    pub read_ahead: Option<usize>,
}

impl MediaUsage {
    fn new(page: Page, total: i64, shape: Option<Shape>, read_ahead: Option<usize>) -> Self {
        let (rows, next_token) = (page.rows(), page.next_token(total));
        Self { body: page.into_body(total), rows, next_token, shape, read_ahead }
    }
}

/// The page that a query asks for, if an earlier statement read all of it.
pub fn kept_media_usage(
    read_ahead: &ReadAhead,
    _admin: &Admin,
    query: &MediaUsageQuery,
    budget: Budget,
    at: &Invocation,
) -> Option<MediaUsage> {
    let (page, total) = read_ahead.page(query, budget, at)?;
    Some(MediaUsage::new(page, total, None, None))
}

/// Reads the page that a query asks for, and fills `kept` with its users and those behind.
///
/// Page and total are of one snapshot, because one statement reads both. All rows are taken off
/// the connection even where the budget ends the page earlier: the next request finds it idle,
/// and no statement keeps running on the replica while the execution environment is frozen.
///
/// # Errors
///
/// The `Database` errors of [`Error`], and [`Error::UserTooLarge`].
pub async fn media_usage(
    connection: &mut Connection,
    _admin: &Admin,
    query: &MediaUsageQuery,
    budget: Budget,
    mut kept: Option<KeptAnswer>,
) -> Result<(MediaUsage, Option<KeptAnswer>), Error> {
    // Rows that no page can hold need not be sent.
    let limit = query.limit.min(budget.most_users());
    let limit = limit.max(kept.as_ref().map_or(0, |kept| kept.room));
    let shape = Shape::for_query(&MediaUsageQuery { limit, ..query.clone() }, connection.one_pass);
    let mut rows = sqlx::query(connection.statements.page(shape))
        .persistent(connection.keeps_statements())
        .bind(limit)
        .bind(query.from)
        .bind(query.window.after)
        .bind(query.window.until)
        .bind(query.search_term.as_ref().map(Hidden::expose))
        .bind(query.order_by.as_str())
        .bind(query.dir == Direction::Backwards)
        .try_map(|row: PgRow| Ok((row.try_get("total")?, user_media(&row)?)))
        .fetch(&mut connection.session);
    let mut page = Page::new(query.from, query.limit, budget);
    let mut pushed = Ok(());
    let mut total = 0;
    while let Some((of_all, user)) = or_nothing(rows.try_next().await)
        .map_err(|error| failure("reading media statistics", &error))?
    {
        total = of_all;
        if let Some(user) = user {
            pushed = pushed.and_then(|()| page.push(&user));
            if let Some(kept) = &mut kept {
                kept.push(&user);
            }
        }
    }
    pushed?;
    let kept = kept.map(|kept| kept.complete(total));
    let read_ahead = kept.as_ref().map(KeptAnswer::users);
    Ok((MediaUsage::new(page, total, Some(shape), read_ahead), kept))
}

/// The user of a row; `None` in the only row of an empty page.
fn user_media(row: &PgRow) -> Result<Option<UserMedia>, sqlx::Error> {
    if row.try_get::<Option<bool>, _>("on_page")?.is_none() {
        return Ok(None);
    }
    Ok(Some(UserMedia {
        user_id: row.try_get("user_id")?,
        displayname: row.try_get("displayname")?,
        media_count: row.try_get("media_count")?,
        media_length: row.try_get("media_length")?,
    }))
}
