//! The closed list of every SQL text that this program can send, and which one answers a query.
//!
//! A text is put together at compile time from a file in `sql/` and an order; values are only
//! ever bound. What reaches the database is therefore one of the constants here.

use const_format::str_replace;

use crate::query::{Direction, MediaUsageQuery, OrderBy};

/// The user of an access token; one parameter, the token.
pub const ACCESS_TOKEN: &str = include_str!("sql/access_token.sql");

/// A statement that answers a [`MediaUsageQuery`] with the page and the total.
///
/// Its parameters are limit, offset, [`TimeWindow::after`](crate::query::TimeWindow::after),
/// [`TimeWindow::until`](crate::query::TimeWindow::until) and the search term. Its columns are
/// `total`, `on_page` (null if the page is empty), `user_id`, `displayname`, `media_count` and
/// `media_length`.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// The order it answers.
    pub order_by: OrderBy,
    /// The direction it answers.
    pub dir: Direction,
    /// The text.
    pub sql: &'static str,
}

/// Splices an order into a shape. Equal keys follow each other by `user_id`, ascending, null
/// last, in both directions (D9).
macro_rules! statement {
    ($order_by:ident, $dir:ident, $order:literal) => {
        Statement {
            order_by: OrderBy::$order_by,
            dir: Direction::$dir,
            sql: str_replace!(include_str!("sql/one_pass.sql"), "{order}", $order),
        }
    };
}

/// Every page statement.
pub static STATEMENTS: [Statement; 8] = [
    statement!(UserId, Forwards, "user_id ASC NULLS LAST"),
    statement!(UserId, Backwards, "user_id DESC NULLS FIRST"),
    statement!(Displayname, Forwards, "displayname ASC NULLS LAST, user_id ASC NULLS LAST"),
    statement!(Displayname, Backwards, "displayname DESC NULLS FIRST, user_id ASC NULLS LAST"),
    statement!(MediaLength, Forwards, "media_length ASC NULLS LAST, user_id ASC NULLS LAST"),
    statement!(MediaLength, Backwards, "media_length DESC NULLS FIRST, user_id ASC NULLS LAST"),
    statement!(MediaCount, Forwards, "media_count ASC NULLS LAST, user_id ASC NULLS LAST"),
    statement!(MediaCount, Backwards, "media_count DESC NULLS FIRST, user_id ASC NULLS LAST"),
];

impl Statement {
    /// The statement that answers a query. It depends on nothing that differs between the pages
    /// of one walk, so that the pages fit together.
    #[must_use]
    pub fn for_query(query: &MediaUsageQuery) -> &'static Self {
        let answers =
            |statement: &&Self| statement.order_by == query.order_by && statement.dir == query.dir;
        STATEMENTS.iter().find(answers).unwrap_or(&STATEMENTS[0])
    }
}
