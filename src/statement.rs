//! The closed list of every SQL text that this program can send, and which one answers a query.
//!
//! A text is put together at compile time from a file in `sql/` and an order; values are only
//! ever bound. What reaches the database is therefore one of the constants here; through a pooler
//! [`BEGIN`] is followed by the session's settings, which are `postgres.rs`'s own.

use const_format::{concatcp, str_replace};
use serde::Serialize;

use crate::query::{Direction, MediaUsageQuery, OrderBy};

/// The user of an access token; one parameter, the token.
pub const ACCESS_TOKEN: &str = include_str!("sql/access_token.sql");

/// The same user by name; one parameter, the user id.
pub const USER: &str = include_str!("sql/user.sql");

/// When a user's account expires; one parameter, the user id.
pub const ACCOUNT_VALIDITY: &str = include_str!("sql/account_validity.sql");

/// Whether there are a user and a device; two parameters, the user id and the device id or null.
pub const DEVICE: &str = include_str!("sql/device.sql");

/// What is to be known of a session; no parameter.
pub const SESSION: &str = include_str!("sql/session.sql");

/// Has the server notice that nobody waits for a statement any more; no parameter.
pub const CHECK_CLIENT: &str = include_str!("sql/check_client.sql");

/// Cancels a statement; one parameter, the process id of its backend.
pub const CANCEL: &str = "SELECT pg_cancel_backend($1)";

/// Begins a request's transaction, through a pooler.
pub const BEGIN: &str = "BEGIN READ ONLY";

/// Ends it.
pub const COMMIT: &str = "COMMIT";

/// What the role lacks, or the database; one parameter, the server's message.
pub const MISSING_GRANTS: &str = include_str!("sql/missing_grants.sql");

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
    /// Whether it searches.
    pub searches: bool,
    /// The text.
    pub sql: &'static str,
}

/// A way to find the answer: a file in `sql/`, whose header says what it is good for. The numbers
/// are in `sql/README.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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
    /// Up to this many users, going to each user of a page by the index is cheaper than one pass.
    /// Admin UIs ask for 1000 at most.
    const SMALL_PAGE: i64 = 1000;

    /// The rule. `small` is what [`SESSION`] says. It depends on nothing that differs between the
    /// pages of one walk; and as every shape gives the same answer, pages would fit together even
    /// if it did.
    #[must_use]
    pub fn for_query(query: &MediaUsageQuery, small: bool) -> Self {
        if small {
            return Self::OnePass;
        }
        let bounded = query.window.is_bounded();
        let searches = query.search_term.is_some();
        // Whether the page's users can be known, and be few, before anything is summed up. Counts
        // are in the index, lengths are not; and the users with the most files have nearly all of
        // the lengths there are to add up.
        let page_first = query.limit <= Self::SMALL_PAGE
            && match (query.order_by, query.dir) {
                (OrderBy::UserId | OrderBy::Displayname, _) => true,
                (OrderBy::MediaCount, Direction::Forwards) => bounded || !searches,
                (OrderBy::MediaCount, Direction::Backwards) | (OrderBy::MediaLength, _) => false,
            };
        match (page_first, query.order_by) {
            // In a time window even the list of users is a matter of all entries of the index.
            (true, OrderBy::UserId | OrderBy::Displayname) if !bounded => Self::Walk,
            (true, _) => Self::Counts,
            // A term can be selective, and then only those who match need to be summed up.
            (false, _) if searches && !bounded => Self::Search,
            (false, _) => Self::OnePass,
        }
    }
}

/// Splices orders, and a search or none, into a shape.
macro_rules! statements {
    ($($shape:ident $file:literal $search:ident: $(($order_by:ident $dir:ident))+;)+) => {
        &[$($(Statement {
            shape: Shape::$shape,
            order_by: OrderBy::$order_by,
            dir: Direction::$dir,
            searches: searches!($search),
            sql: {
                const SHAPE: &str = include_str!(concat!("sql/", $file));
                const ORDERED: &str = str_replace!(SHAPE, "{order}", order!($order_by $dir));
                const NAMED: &str = str_replace!(ORDERED, "{displayname}", displayname!($order_by));
                const MATCHED: &str = str_replace!(NAMED, "{localpart_matches}", localpart_matches!($order_by $search));
                const JOINED: &str = str_replace!(MATCHED, "{join}", join!($order_by $search));
                const COUNTED: &str = str_replace!(JOINED, "{total}", total!($search));
                str_replace!(COUNTED, "{filter}", filter!($order_by $search))
            },
        },)+)+]
    };
}

macro_rules! searches {
    (All) => {
        false
    };
    (Matching) => {
        true
    };
}

/// Texts are ordered by their bytes whatever the database's own collation. Equal keys follow each
/// other by `user_id`, ascending, null last, in both directions (D9).
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

/// The displayname where the order needs it for all users; the page looks up its own.
macro_rules! displayname {
    (Displayname) => {
        "profile.displayname"
    };
    ($order_by:ident) => {
        "NULL::text"
    };
}

/// What all users have to be joined with: for an order by displayname their profiles, with a search
/// those that can make a user match; else for a search those whose displayname matches, but only for
/// users whose localpart does not, because a null is not looked for; else nothing. `OFFSET 0` keeps
/// the planner, which cannot know how many users there will be, from looking up profiles one by one.
macro_rules! join {
    (Displayname All) => {
        "LEFT JOIN (SELECT full_user_id, displayname FROM profiles OFFSET 0) AS profile \
         ON profile.full_user_id = users.user_id"
    };
    (Displayname Matching) => {
        "LEFT JOIN (SELECT full_user_id, displayname FROM profiles \
                     WHERE strpos(displayname, $5) > 0 OR strpos(full_user_id, $5) > 0 OFFSET 0) AS profile \
         ON profile.full_user_id = users.user_id"
    };
    ($order_by:ident Matching) => {
        "LEFT JOIN (SELECT full_user_id FROM profiles WHERE strpos(displayname, $5) > 0 OFFSET 0) AS named \
         ON named.full_user_id = CASE WHEN users.localpart_matches THEN NULL ELSE users.user_id END"
    };
    ($order_by:ident All) => { "" };
}

/// How many users there are, in a walk: all that were met, or all of those that were found.
macro_rules! total {
    (All) => {
        "(SELECT sum(cardinality(user_ids)) FROM walk) + (SELECT count(*) FROM nobody)"
    };
    (Matching) => {
        "(SELECT count(*) FROM found)"
    };
}

/// Which users count (D1).
macro_rules! filter {
    ($order_by:ident All) => {
        "true"
    };
    (Displayname Matching) => {
        concatcp!("strpos(profile.displayname, $5) > 0 OR ", localpart_of!("users.user_id"))
    };
    ($order_by:ident Matching) => {
        "users.localpart_matches OR named.full_user_id IS NOT NULL"
    };
}

/// Whether a user's localpart matches, where join and filter both ask, so that it is found out only
/// once. In an order by displayname only the filter does, and only of users whose displayname does
/// not match.
macro_rules! localpart_matches {
    (Displayname Matching) => {
        "NULL::boolean"
    };
    ($order_by:ident Matching) => {
        localpart_of!("user_id")
    };
    ($order_by:ident All) => {
        "NULL::boolean"
    };
}

/// The localpart is what follows a leading `@`, up to the first colon. Only an id that contains the
/// term at all is worth a closer look. The first occurrence counts, because behind one that does not
/// end before the colon no other does; only a term that begins with `@` itself can be found before
/// the localpart, and has the id taken apart for it, which takes longer.
macro_rules! localpart_of {
    ($user_id:literal) => {
        str_replace!(
            "(strpos({id}, $5) > 0 AND left({id}, 1) = '@' AND CASE WHEN left($5, 1) = '@' \
             THEN strpos(split_part(substr({id}, 2), ':', 1), $5) > 0 \
             ELSE strpos({id}, $5) + length($5) <= strpos({id} || ':', ':') END)",
            "{id}",
            $user_id
        )
    };
}

/// Every page statement.
pub static STATEMENTS: &[Statement] = statements! {
    OnePass "one_pass.sql" All:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards)
        (MediaLength Forwards) (MediaLength Backwards) (MediaCount Forwards) (MediaCount Backwards);
    OnePass "one_pass.sql" Matching:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards)
        (MediaLength Forwards) (MediaLength Backwards) (MediaCount Forwards) (MediaCount Backwards);
    Counts "counts.sql" All:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards)
        (MediaCount Forwards);
    Counts "counts.sql" Matching:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards)
        (MediaCount Forwards);
    Walk "walk.sql" All:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards);
    Walk "walk.sql" Matching:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards);
    Search "search.sql" Matching:
        (UserId Forwards) (UserId Backwards) (Displayname Forwards) (Displayname Backwards)
        (MediaLength Forwards) (MediaLength Backwards) (MediaCount Forwards) (MediaCount Backwards);
};

impl Statement {
    /// The statement that answers a query. There is one for each: a test asks for every shape
    /// and order that [`Shape::for_query`] can name.
    #[must_use]
    pub fn for_query(query: &MediaUsageQuery, small: bool) -> Option<&'static Self> {
        let wanted = (
            Shape::for_query(query, small),
            query.order_by,
            query.dir,
            query.search_term.is_some(),
        );
        STATEMENTS.iter().find(|it| (it.shape, it.order_by, it.dir, it.searches) == wanted)
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
                    for limit in [1000, 1001] {
                        let text = format!("order_by={order_by}&dir={dir}&limit={limit}{filters}");
                        let query = MediaUsageQuery::parse(&Args::parse(&text)).unwrap();
                        for small in [true, false] {
                            let statement = Statement::for_query(&query, small).unwrap();
                            let spliced = statement.sql.replace("'{}'", "");
                            assert!(!spliced.contains('{'), "{text}: {spliced}");
                            answering.push(statement);
                        }
                    }
                }
            }
        }
        for statement in STATEMENTS {
            assert!(answering.contains(&statement), "nothing asks for {statement:?}");
        }
    }
}
