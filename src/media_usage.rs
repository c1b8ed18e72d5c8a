//! The question itself: from memory, or by binds and rows.

use crate::{
    auth::Admin,
    error::Error,
    invocation::Invocation,
    page::{Budget, Page, UserMedia},
    postgres::{Connection, failure, is_in_no_row},
    query::{Direction, MediaUsageQuery},
    read_ahead::{KeptAnswer, ReadAhead},
    statement::{Shape, Statement},
};
use futures_util::{TryStreamExt, future::ready};

/// A page, and how it was found.
pub struct MediaUsage {
    /// The page itself.
    pub page: Page,
    /// The shape of the statement that answered; `None` for a page from memory.
    pub shape: Option<Shape>,
    /// How many users are kept for later pages; `None` if nothing was read ahead.
    pub read_ahead: Option<usize>,
}

/// A row of a page statement, as [`Statement::page`] has its columns. All but the total are null in the
/// only row of an empty page.
type Row = (i64, Option<bool>, Option<String>, Option<String>, Option<i64>, Option<i64>);

/// The only row of a page that no user can be on.
const NOBODY: Row = (0, None, None, None, None, None);

/// The page that a query asks for, from memory if an earlier statement read all of it. Else a statement
/// reads it, or with a `step` as many users from the page's first on, which are kept for later pages.
///
/// Page and total are of one snapshot, because one statement reads both. All rows are taken off
/// the connection even where the budget ends the page earlier: the next request finds it idle,
/// and no statement keeps running on the replica while the execution environment is frozen.
///
/// The rows say how many of them there have to be, so that an answer that ends early is no shorter page.
/// They repeat no number of the question, as [`Connection::lookup`]'s do: that lookup's answer has just
/// come over the same connection, and answers come in order.
///
/// # Errors
///
/// The `Database` errors of [`Error`], and [`Error::UserTooLarge`].
pub async fn media_usage(
    connection: &mut Connection,
    _admin: &Admin,
    query: &MediaUsageQuery,
    budget: Budget,
    read_ahead: &ReadAhead,
    step: Option<i64>,
    at: &Invocation,
) -> Result<MediaUsage, Error> {
    if let Some(page) = read_ahead.page(query, budget, at) {
        return Ok(MediaUsage { page, shape: None, read_ahead: None });
    }
    let mut kept = step.map(|users| read_ahead.room(users, query, at));
    // Rows that no page can hold need not be sent.
    let limit = query.limit.min(budget.most_users()).max(step.unwrap_or(0));
    let shape = Shape::for_query(&MediaUsageQuery { limit, ..query.clone() }, connection.one_pass);
    let failed = |error| failure("reading media statistics", &error);
    let text = Statement::page(shape).in_schema(&connection.schema);
    let mut rows = sqlx::query_as(&text)
        .persistent(connection.keeps_statements)
        .bind(limit)
        .bind(query.from)
        .bind(query.after)
        .bind(query.until)
        .bind(query.search_term.as_ref().map(|term| &term.0))
        .bind(query.order_by.as_str())
        .bind(query.dir == Direction::Backwards)
        .fetch(&mut connection.session)
        .or_else(|error| ready(if is_in_no_row(&error) { Ok(NOBODY) } else { Err(failed(error)) }));
    let mut page = Page::new(query.from, query.limit, budget);
    let mut pushed = Ok(());
    let (mut total, mut users) = (None, 0);
    while let Some(row) = rows.try_next().await? {
        let (of_all, on_page, user_id, displayname, media_count, media_length) = row;
        total = Some(of_all);
        let sums = media_count.zip(media_length).filter(|_| on_page == Some(true));
        if let Some((media_count, media_length)) = sums {
            let user = UserMedia { user_id, displayname, media_count, media_length };
            users += 1;
            pushed = pushed.and_then(|()| page.push(&user));
            if let Some(kept) = &mut kept {
                kept.push(&user, of_all);
            }
        }
    }
    // More, where `profiles` has several rows of a user and the total does not.
    let is_whole = |total: &i64| users >= total.saturating_sub(query.from).min(limit);
    page.total = total.filter(is_whole).ok_or(sqlx::Error::RowNotFound).map_err(failed)?;
    pushed?;
    let users_kept = kept.as_ref().map(KeptAnswer::users);
    read_ahead.answered(query, page.next_token(), kept, at);
    Ok(MediaUsage { page, shape: Some(shape), read_ahead: users_kept })
}
