//! The question itself: binds and rows.

use futures_util::TryStreamExt;
use sqlx::{Row, postgres::PgRow};

use crate::{
    auth::Admin,
    error::Error,
    page::{Budget, Page, UserMedia},
    postgres::{Connection, failure},
    query::{Direction, MediaUsageQuery, SearchTerm},
    request_log::Progress,
    statement::Shape,
};

/// Reads the page that a query asks for, as the JSON body of its answer, and takes down how.
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
    progress: &mut Progress,
) -> Result<String, Error> {
    let shape = Shape::for_query(query, connection.one_pass);
    progress.shape = Some(shape);
    let mut rows = sqlx::query(connection.statements.page(shape))
        .persistent(connection.keeps_statements())
        // Rows that no page can hold need not be sent.
        .bind(query.limit.min(budget.most_users()))
        .bind(query.from)
        .bind(query.window.after)
        .bind(query.window.until)
        .bind(query.search_term.as_ref().map(SearchTerm::expose))
        .bind(query.order_by.as_str())
        .bind(query.dir == Direction::Backwards)
        .fetch(&mut connection.session);
    let mut page = Page::new(query.from, budget);
    let mut pushed = Ok(());
    let mut total = 0;
    while let Some(row) =
        rows.try_next().await.map_err(|error| failure("reading media statistics", &error))?
    {
        let column = |error: sqlx::Error| failure("reading a row of media statistics", &error);
        total = row.try_get("total").map_err(column)?;
        if let Some(user) = user_media(&row).map_err(column)? {
            pushed = pushed.and_then(|()| page.push(&user));
        }
    }
    pushed?;
    progress.rows = Some(page.rows());
    Ok(page.into_body(total))
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
