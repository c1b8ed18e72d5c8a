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
    /// The shape it is made of.
    pub shape: Shape,
    /// The order it answers.
    pub order_by: OrderBy,
    /// The direction it answers.
    pub dir: Direction,
    /// The text.
    pub sql: &'static str,
}

/// A way to find the answer: a file in `sql/`, whose header says what it is good for. The numbers
/// are in `sql/README.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `one_pass.sql`
    OnePass,
    /// `counts.sql`
    Counts,
    /// `walk.sql`
    Walk,
    /// `search.sql`
    Search,
}

impl Shape {
    /// The rule. It depends on nothing that differs between the pages of one walk; and as every
    /// shape gives the same answer, pages would fit together even if it did.
    #[must_use]
    pub fn for_query(query: &MediaUsageQuery) -> Self {
        let bounded = query.window.is_bounded();
        let searched = query.search_term.is_some();
        match (query.order_by, query.dir) {
            // An order that knows nothing of media: the page can be cut before anything is summed
            // up. A window makes even the list of users a matter of all media.
            (OrderBy::UserId | OrderBy::Displayname, _) if bounded => Self::Counts,
            (OrderBy::UserId | OrderBy::Displayname, _) => Self::Walk,
            // An order by what users own needs the sums of all that match: of few, if a term is
            // selective.
            (OrderBy::MediaLength | OrderBy::MediaCount, _) if searched && !bounded => Self::Search,
            // Counts are in the index, lengths are not. The users with the fewest files have few
            // lengths to add up; those with the most have nearly all.
            (OrderBy::MediaCount, Direction::Forwards) => Self::Counts,
            (OrderBy::MediaCount, Direction::Backwards) | (OrderBy::MediaLength, _) => {
                Self::OnePass
            }
        }
    }
}

/// Splices an order into a shape. Texts are ordered by their bytes whatever the database's own
/// collation. Equal keys follow each other by `user_id`, ascending, null last, in both directions
/// (D9).
macro_rules! statements {
    ($($shape:ident $file:literal: $(($order_by:ident $dir:ident))+;)+) => {
        &[$($(Statement {
            shape: Shape::$shape,
            order_by: OrderBy::$order_by,
            dir: Direction::$dir,
            sql: str_replace!(
                str_replace!(include_str!(concat!("sql/", $file)), "{order}", order!($order_by $dir)),
                "{displayname}",
                displayname!($order_by)
            ),
        },)+)+]
    };
}

macro_rules! order {
    (UserId Forwards) => {
        "user_id COLLATE \"C\" ASC NULLS LAST"
    };
    (UserId Backwards) => {
        "user_id COLLATE \"C\" DESC NULLS FIRST"
    };
    (Displayname $dir:ident) => {
        concat!("displayname COLLATE \"C\" ", direction!($dir))
    };
    (MediaLength $dir:ident) => {
        concat!("media_length ", direction!($dir))
    };
    (MediaCount $dir:ident) => {
        concat!("media_count ", direction!($dir))
    };
}

macro_rules! direction {
    (Forwards) => {
        "ASC NULLS LAST, user_id COLLATE \"C\" ASC NULLS LAST"
    };
    (Backwards) => {
        "DESC NULLS FIRST, user_id COLLATE \"C\" ASC NULLS LAST"
    };
}

/// What a shape that can order by displayname reads for it before the page is cut. Without the
/// need for it the planner drops the join with profiles.
macro_rules! displayname {
    (Displayname) => {
        "profiles.displayname"
    };
    ($order_by:ident) => {
        "NULL::text"
    };
}

/// Every page statement.
pub static STATEMENTS: &[Statement] = statements! {
    OnePass "one_pass.sql": (MediaLength Forwards) (MediaLength Backwards) (MediaCount Backwards);
    Counts "counts.sql":
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards)
        (MediaCount Forwards);
    Walk "walk.sql":
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards);
    Search "search.sql":
        (MediaLength Forwards) (MediaLength Backwards) (MediaCount Forwards) (MediaCount Backwards);
};

impl Statement {
    /// The statement that answers a query. There is one for each: a test asks for every shape
    /// and order that [`Shape::for_query`] can name.
    #[must_use]
    pub fn for_query(query: &MediaUsageQuery) -> Option<&'static Self> {
        let wanted = (Shape::for_query(query), query.order_by, query.dir);
        STATEMENTS.iter().find(|it| (it.shape, it.order_by, it.dir) == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Args;

    #[test]
    fn every_query_has_its_statement_and_every_statement_its_query() {
        let mut answering = Vec::new();
        for order_by in ["user_id", "displayname", "media_length", "media_count"] {
            for dir in ["f", "b"] {
                for filters in
                    ["", "&from_ts=1", "&until_ts=1", "&search_term=a", "&search_term=a&from_ts=1"]
                {
                    let args = Args::parse(&format!("order_by={order_by}&dir={dir}{filters}"));
                    let query = MediaUsageQuery::parse(&args).unwrap();
                    let statement = Statement::for_query(&query).unwrap();
                    assert!(
                        !statement.sql.contains("{order}")
                            && !statement.sql.contains("{displayname}")
                    );
                    answering.push(statement);
                }
            }
        }
        assert!(STATEMENTS.iter().all(|statement| answering.contains(&statement)));
    }
}
