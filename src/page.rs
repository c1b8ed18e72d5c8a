//! One page of users: the `next_token` rule, the JSON body and its size budget.

use std::mem::take;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A user and the media they own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserMedia {
    /// Matrix user id, as the database has it; null for media without an owner.
    pub user_id: Option<String>,
    /// The profile's name; null where there is no profile or it has none.
    pub displayname: Option<String>,
    /// Number of files.
    pub media_count: i64,
    /// Sum of the files' lengths in bytes; a file of unknown length counts as 0 (D6).
    pub media_length: i64,
}

/// How large a response body may be, in bytes as they travel inside the invocation's response.
///
/// There the body is a JSON string, so that each `"` and `\` of it takes two bytes. Counting
/// those makes the budget hold for the body and for the response alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(usize);

impl Budget {
    /// For API Gateway and Function URLs: the response of a synchronous invocation is limited to
    /// 6 MB (AWS Lambda Developer Guide, "Lambda quotas").
    pub const INVOCATION: Self = Self(5_500_000);
    /// For a load balancer, which accepts a response of 1 MB (Elastic Load Balancing, "Lambda
    /// functions as targets"). The rest is for headers.
    pub const LOAD_BALANCER: Self = Self(980_000);

    /// What follows the users: two keys, two integers, brackets.
    const TAIL: usize = 80;
    /// No user takes less than this: `{"user_id":"","displayname":null,"media_count":0,"media_length":0}`
    /// with its quotes doubled and a comma.
    const SMALLEST_USER: usize = 75;

    /// No page holds more users than this, whatever its limit.
    pub fn most_users(self) -> i64 {
        i64::try_from(self.0 / Self::SMALLEST_USER).unwrap_or(i64::MAX)
    }
}

/// A page that is being filled, user by user in the order of the page.
pub struct Page {
    from: i64,
    /// How many users it may hold; no more than it does once its budget is used up.
    limit: i64,
    budget: Budget,
    /// The body so far: it ends with the latest user.
    body: String,
    /// The size of `body` as [`Budget`] counts it.
    size: usize,
    /// How many users it holds.
    pub rows: i64,
    /// How many users the query finds in all; 0 until that is known.
    pub total: i64,
}

impl Page {
    /// An empty page for `limit` users, which starts behind `from` users of the order.
    pub fn new(from: i64, limit: i64, budget: Budget) -> Self {
        let body = String::from("{\"users\":[");
        Self { from, limit, budget, size: size(&body), body, rows: 0, total: 0 }
    }

    /// Whether no user is missing, however many follow.
    pub fn is_full(&self) -> bool {
        self.rows >= self.limit
    }

    /// Appends a user, unless the page is full or its budget is used up: then this user and all
    /// later ones are left to the next page.
    ///
    /// # Errors
    ///
    /// [`Error::UserTooLarge`] if this is the page's first user and does not fit: leaving it out
    /// would make a walk by `next_token` stop there without a word.
    pub fn push(&mut self, user: &UserMedia) -> Result<(), Error> {
        if self.is_full() {
            return Ok(());
        }
        // Texts and integers can always be written.
        let json = serde_json::to_string(user).unwrap_or_default();
        let comma = usize::from(self.rows > 0);
        let size = self.size + comma + size(&json);
        if size > self.budget.0 - Budget::TAIL {
            self.limit = self.rows;
            return if self.rows > 0 { Ok(()) } else { Err(Error::UserTooLarge(self.from)) };
        }
        self.body.extend([",", &json].into_iter().skip(1 - comma));
        self.size = size;
        self.rows += 1;
        Ok(())
    }

    /// Where the next page begins: exactly when this one holds at least one user and more follow (D5).
    pub fn next_token(&self) -> Option<i64> {
        let next_token = self.from.saturating_add(self.rows);
        (self.rows > 0 && next_token < self.total).then_some(next_token)
    }

    /// Takes the response body out of the page.
    pub fn take_body(&mut self) -> String {
        let next_token = self.next_token().map(|it| format!(",\"next_token\":{it}"));
        take(&mut self.body)
            + &format!("],\"total\":{}{}}}", self.total, next_token.unwrap_or_default())
    }
}

/// What a piece of the body takes inside the invocation's response.
fn size(json: &str) -> usize {
    json.len() + json.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn user(user_id: &str) -> UserMedia {
        UserMedia {
            user_id: Some(user_id.to_owned()),
            displayname: None,
            media_count: 1,
            media_length: 2,
        }
    }

    fn page(from: i64, users: &[&str], total: i64) -> Value {
        let mut page = Page::new(from, 9, Budget::INVOCATION);
        for user_id in users {
            page.push(&user(user_id)).unwrap();
        }
        page.total = total;
        serde_json::from_str(&page.take_body()).unwrap()
    }

    #[test]
    fn next_token_is_there_exactly_when_more_users_follow() {
        assert_eq!(page(0, &["@a:b", "@b:b"], 3)["next_token"], json!(2));
        assert_eq!(page(0, &["@a:b", "@b:b"], 2).get("next_token"), None);
        assert_eq!(page(5, &[], 9).get("next_token"), None);
        assert_eq!(page(i64::MAX, &["@a:b"], i64::MAX).get("next_token"), None);
    }

    #[test]
    fn empty_page_keeps_total() {
        assert_eq!(page(9, &[], 3), json!({ "users": [], "total": 3 }));
    }

    #[test]
    fn the_body_is_the_documented_json() {
        assert_eq!(
            page(0, &["@a\"\\\u{1}:b"], 1),
            json!({
                "users": [{ "user_id": "@a\"\\\u{1}:b", "displayname": null, "media_count": 1, "media_length": 2 }],
                "total": 1,
            })
        );
    }

    #[test]
    fn no_user_is_smaller_than_the_smallest() {
        for user_id in [None, Some(String::new())] {
            let user = UserMedia { user_id, displayname: None, media_count: 0, media_length: 0 };
            let json = serde_json::to_string(&user).unwrap();
            assert!(serde_json::to_string(&json).unwrap().len() - 2 >= Budget::SMALLEST_USER);
        }
    }

    #[test]
    fn a_page_ends_where_its_budget_does() {
        // Every size, so that one of them is the least that the last user needs.
        for budget in 500..800 {
            let mut page = Page::new(i64::MAX - 200, 100, Budget(budget));
            for _ in 0..100 {
                page.push(&user(&"\"".repeat(20))).unwrap();
            }
            page.total = i64::MAX;
            let body = page.take_body();
            let response = serde_json::to_string(&body).unwrap().len() - 2;
            assert!(response <= budget, "{response} {budget}");
            // Another user would not have fitted.
            assert!(response + 200 > budget, "{response} {budget}");
            let answer: Value = serde_json::from_str(&body).unwrap();
            let returned = i64::try_from(answer["users"].as_array().unwrap().len()).unwrap();
            assert_eq!(answer["next_token"], json!(i64::MAX - 200 + returned));
        }
        assert!(Budget::INVOCATION.most_users() < 80_000);
    }

    #[test]
    fn no_later_user_takes_the_place_of_one_that_does_not_fit() {
        let mut page = Page::new(40, 9, Budget(1000));
        for user_id in ["@a:b", &"x".repeat(2000), "@b:b"] {
            page.push(&user(user_id)).unwrap();
        }
        assert!(page.is_full());
        page.total = 43;
        assert_eq!((page.rows, page.next_token()), (1, Some(41)));
    }

    #[test]
    fn a_user_larger_than_a_page_is_an_error_and_no_silent_end() {
        let mut page = Page::new(40, 1, Budget(1000));
        assert_eq!(page.push(&user(&"x".repeat(2000))), Err(Error::UserTooLarge(40)));
    }
}
