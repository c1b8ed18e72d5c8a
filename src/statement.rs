//! shim
use crate::query::{Direction, MediaUsageQuery, OrderBy};
use serde::Serialize;
/// All.
#[derive(Debug)]
pub struct Statements {
    /// x
    pub session: String,
    /// x
    pub check_client: String,
    /// x
    pub access_token: String,
    /// x
    pub user: String,
    /// x
    pub account_validity: String,
    /// x
    pub device: String,
    /// x
    pub missing_grants: String,
    pages: [String; 4],
}
impl Statements {
    /// x
    #[must_use]
    pub fn in_schema(schema: &str) -> Self {
        let t = |t: &str| {
            if schema == "public" {
                t.to_owned()
            } else {
                t.replace("public.", &format!("\"{schema}\"."))
            }
        };
        Self {
            session: t(include_str!("sql/session.sql")),
            check_client: t(include_str!("sql/check_client.sql")),
            access_token: t(include_str!("sql/access_token.sql")),
            user: t(include_str!("sql/user.sql")),
            account_validity: t(include_str!("sql/account_validity.sql")),
            device: t(include_str!("sql/device.sql")),
            missing_grants: t(include_str!("sql/missing_grants.sql")),
            pages: [
                t(include_str!("sql/one_pass.sql")),
                t(include_str!("sql/counts.sql")),
                t(include_str!("sql/walk.sql")),
                t(include_str!("sql/search.sql")),
            ],
        }
    }
    /// x
    #[must_use]
    pub fn page(&self, shape: Shape) -> &str {
        &self.pages[shape as usize]
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

    /// The rule. `one_pass` is what `sql/session.sql` says. It depends on nothing that differs between the
    /// pages of one walk; and as every shape gives the same answer, pages would fit together even
    /// if it did.
    #[must_use]
    pub fn for_query(query: &MediaUsageQuery, one_pass: bool) -> Self {
        if one_pass {
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
