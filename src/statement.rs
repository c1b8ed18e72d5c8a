//! The closed list of every SQL text that this program can send, and which one answers a query.
//!
//! A text is a file in `sql/`, which psql runs as it stands. Values are only ever bound, the order
//! too. Through a pooler `postgres.rs` adds its own words for transactions and settings.

use serde::Serialize;

use crate::query::{Direction, MediaUsageQuery, OrderBy};

/// A text, as its file in `sql/` has it, whose header has its parameters and columns.
#[derive(Clone, Copy)]
pub struct Statement(&'static str);

impl Statement {
    /// The session's first question, together with the next one or behind a `BEGIN`; no parameter.
    pub const SESSION: Self = Self(include_str!("sql/session.sql"));
    /// Has the server notice that nobody waits for a statement any more; no parameter.
    pub const CHECK_CLIENT: Self = Self(include_str!("sql/check_client.sql"));
    /// Which indexes are missing; together with the session's first question; no parameter.
    pub const MISSING_INDEXES: Self = Self(include_str!("sql/missing_indexes.sql"));
    /// Whether the indexes were built by another collation library, likewise; PostgreSQL 15 and later.
    pub const COLLATION: Self = Self(include_str!("sql/collation.sql"));
    /// The user of an access token; two parameters, the token and a number.
    pub const ACCESS_TOKEN: Self = Self(include_str!("sql/access_token.sql"));
    /// The same user by name; two parameters, the user id and a number.
    pub const USER: Self = Self(include_str!("sql/user.sql"));
    /// When a user's account expires; two parameters, the user id and a number.
    pub const ACCOUNT_VALIDITY: Self = Self(include_str!("sql/account_validity.sql"));
    /// Whether there are a user and a device; three parameters, the user id, the device id or null, and a
    /// number.
    pub const DEVICE: Self = Self(include_str!("sql/device.sql"));
    /// What the role or the database lacks, and row-level security; one parameter, the server's
    /// message or names of tables.
    pub const MISSING_GRANTS: Self = Self(include_str!("sql/missing_grants.sql"));
    /// How far a standby is behind; no parameter.
    pub const REPLICATION_LAG: Self = Self(include_str!("sql/replication_lag.sql"));
    /// The same of a reader of Aurora; no parameter.
    pub const AURORA_LAG: Self = Self(include_str!("sql/aurora_lag.sql"));
    /// Cancels a statement; one parameter, the process id of its backend.
    pub const CANCEL: Self = Self(include_str!("sql/cancel.sql"));

    /// The statement that answers a [`MediaUsageQuery`] with the page and the total.
    ///
    /// Its parameters are limit, offset, [`MediaUsageQuery::after`], [`MediaUsageQuery::until`], the
    /// search term, [`OrderBy::as_str`] and whether the direction is backwards. Its columns are
    /// `total`, `on_page` (null if the page is empty), `user_id`, `displayname`, `media_count` and
    /// `media_length`.
    pub fn page(shape: Shape) -> Self {
        match shape {
            Shape::OnePass => Self(include_str!("sql/one_pass.sql")),
            Shape::Counts => Self(include_str!("sql/counts.sql")),
            Shape::Walk => Self(include_str!("sql/walk.sql")),
            Shape::Search => Self(include_str!("sql/search.sql")),
        }
    }

    /// What is sent for a schema: the statement, without the `PREPARE` before it, because the client
    /// says the types itself, and without the semicolon that psql wants. The files say `public.`, and
    /// nothing but that is ever replaced.
    pub fn in_schema(self, schema: &str) -> String {
        let quoted = format!("\"{schema}\".");
        let prefix = if schema == "public" { "public." } else { &quoted };
        let prepared = self.0.split_once("\nPREPARE ").and_then(|it| it.1.split_once('\n'));
        let statement = prepared.map_or(self.0, |(_, statement)| statement);
        statement.trim_end().trim_end_matches(';').replace("public.", prefix)
    }
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

    /// The rule. `one_pass` is what [`Statement::SESSION`] answers. It depends on nothing that
    /// differs between the pages of one walk; and as every shape gives the same answer, pages would
    /// fit together even if it did.
    pub fn for_query(query: &MediaUsageQuery, one_pass: bool) -> Self {
        let small_page = query.limit <= Self::SMALL_PAGE;
        let bounded = query.after.or(query.until).is_some();
        let searches = query.search_term.is_some();
        match (query.order_by, query.dir) {
            _ if one_pass => Self::OnePass,
            // The page's users can be known before anything is summed up.
            (OrderBy::UserId | OrderBy::Displayname, _) if small_page && !bounded => Self::Walk,
            // In a time window even the list of users is a matter of all entries of the index.
            (OrderBy::UserId | OrderBy::Displayname, _) if small_page => Self::Counts,
            // Counts are in the index, lengths are not. Backwards, the page's users have nearly all
            // of the lengths there are to add up.
            (OrderBy::MediaCount, Direction::Forwards) if small_page && (bounded || !searches) => {
                Self::Counts
            }
            // A term can be selective, and then only those who match need to be summed up.
            _ if searches && !bounded => Self::Search,
            _ => Self::OnePass,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Args;

    #[test]
    fn the_rule_picks_the_shape_that_is_good_for_a_query() {
        for (text, shape) in [
            ("", Shape::Walk),
            ("order_by=displayname&dir=b&limit=1000&search_term=a", Shape::Walk),
            ("limit=1001", Shape::OnePass),
            ("limit=1001&search_term=a", Shape::Search),
            ("from_ts=1", Shape::Counts),
            ("order_by=displayname&until_ts=1&search_term=a", Shape::Counts),
            ("limit=1001&from_ts=1", Shape::OnePass),
            ("limit=1001&from_ts=1&search_term=a", Shape::OnePass),
            ("order_by=media_count", Shape::Counts),
            ("order_by=media_count&from_ts=1", Shape::Counts),
            ("order_by=media_count&search_term=a", Shape::Search),
            ("order_by=media_count&until_ts=1&search_term=a", Shape::Counts),
            ("order_by=media_count&limit=1001", Shape::OnePass),
            ("order_by=media_count&dir=b", Shape::OnePass),
            ("order_by=media_count&dir=b&search_term=a", Shape::Search),
            ("order_by=media_length", Shape::OnePass),
            ("order_by=media_length&search_term=a", Shape::Search),
            ("order_by=media_length&from_ts=1&search_term=a", Shape::OnePass),
        ] {
            let query = MediaUsageQuery::parse(&Args::parse(text)).unwrap();
            assert_eq!(Shape::for_query(&query, false), shape, "{text}");
            assert_eq!(Shape::for_query(&query, true), Shape::OnePass, "{text}");
        }
    }

    #[test]
    fn what_is_sent_is_what_the_file_prepares() {
        let user = Statement::USER.in_schema("public");
        assert!(user.starts_with("SELECT users.name,"), "{user}");
        assert!(user.ends_with("ON users.name = $1"), "{user}");
        let file = include_str!("sql/walk.sql");
        let walk = Statement::page(Shape::Walk).in_schema("public");
        assert!(file.ends_with(&format!(" AS\n{walk};\n")));
        assert!(walk.starts_with("WITH RECURSIVE"));

        let elsewhere = Statement::page(Shape::Walk).in_schema("Synapse");
        assert_eq!(elsewhere.replace("\"Synapse\".", "public."), walk);
        assert!(!elsewhere.contains("public"));
    }
}
