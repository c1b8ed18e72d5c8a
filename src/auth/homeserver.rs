//! Tokens, users and devices that the replica does not know: whether the homeserver does.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{AUTHORIZATION, HeaderValue},
};
use serde::Deserialize;
use url::Url;

use super::{AccessToken, object};
use crate::{client::Client, error::Error};

/// How many questions may be asked at once.
const MOST_QUESTIONS: i64 = 10;

/// After how long another question may be asked, in ms.
const MS_A_QUESTION: i64 = 1000;

/// How much of its text is passed on, in characters.
const LONGEST_MESSAGE: usize = 1000;

/// The homeserver itself.
#[derive(Debug)]
pub struct Homeserver {
    client: Client,
    whoami: String,
    questions: Mutex<Questions>,
    /// Whether an answer is waited for.
    is_asked: AtomicBool,
}

/// Whose token it is (spec: client-server API, `GET /_matrix/client/v3/account/whoami`).
#[derive(Debug, Deserialize)]
pub struct Owner {
    /// The user.
    pub user_id: String,
    /// The device; an application service has none.
    pub device_id: Option<String>,
}

/// The spec's standard error response.
#[derive(Deserialize)]
struct Refusal {
    errcode: String,
    error: String,
    soft_logout: Option<bool>,
}

impl Homeserver {
    /// A homeserver by its base URL.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn new(url: &Url) -> Result<Self, rustls::Error> {
        let base = url.as_str().trim_end_matches('/');
        Ok(Self {
            client: Client::new()?,
            whoami: format!("{base}/_matrix/client/v3/account/whoami"),
            questions: Mutex::new(Questions { left: MOST_QUESTIONS, at_ms: 0 }),
            is_asked: AtomicBool::new(false),
        })
    }

    /// Whether an answer was waited for when the request was given up. Asking this forgets it.
    pub fn take_asked(&self) -> bool {
        self.is_asked.swap(false, Ordering::Relaxed)
    }

    /// Whose token it is, at the Unix time `now_ms`, in ms.
    ///
    /// # Errors
    ///
    /// [`Error::HomeserverRefused`] with the homeserver's own words;
    /// [`Error::HomeserverUnavailable`] if it gives no answer that can be understood, or if more
    /// than ten questions were asked at once and one a second since; [`Error::UnknownToken`] for
    /// one that no header can carry.
    pub async fn whoami(&self, token: &AccessToken, now_ms: i64) -> Result<Owner, Error> {
        // Synapse makes no such token, and a header with one could say more than was meant.
        let is_plain = !token.0.is_empty() && token.0.bytes().all(|byte| byte.is_ascii_graphic());
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.0))
            .ok()
            .filter(|_| is_plain)
            .ok_or(Error::UnknownToken)?;
        bearer.set_sensitive(true);
        if !self.questions.lock().unwrap_or_else(PoisonError::into_inner).take(now_ms) {
            return Err(unavailable("too many unknown tokens".to_owned()));
        }
        let request = Request::get(&self.whoami)
            .header(AUTHORIZATION, bearer)
            .body(Full::default())
            .map_err(|error| unavailable(error.to_string()))?;
        self.is_asked.store(true, Ordering::Relaxed);
        let answer = self.client.send(request).await;
        self.is_asked.store(false, Ordering::Relaxed);
        let (status, body) = answer.map_err(unavailable)?;
        let rubbish = || unavailable(format!("its answer, status {status}, cannot be understood"));
        match status {
            StatusCode::OK => object(&body)
                // No text in PostgreSQL can have a NUL.
                .filter(|owner: &Owner| !owner.user_id.contains('\0'))
                .ok_or_else(rubbish),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let refusal: Refusal = object(&body).ok_or_else(rubbish)?;
                if !is_errcode(&refusal.errcode) {
                    return Err(rubbish());
                }
                Err(Error::HomeserverRefused {
                    status: status.as_u16(),
                    errcode: refusal.errcode,
                    message: refusal.error.chars().take(LONGEST_MESSAGE).collect(),
                    soft_logout: refusal.soft_logout,
                })
            }
            _ => Err(rubbish()),
        }
    }
}

/// Whether this is formed as an errcode is. Unlike the text it is logged.
fn is_errcode(text: &str) -> bool {
    let of_errcode =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_.".contains(&byte);
    (1..=100).contains(&text.len()) && text.contains('_') && text.bytes().all(of_errcode)
}

fn unavailable(cause: String) -> Error {
    Error::HomeserverUnavailable { cause }
}

/// How many questions are left. Without a bound a flood of bad tokens here would be one there.
#[derive(Debug)]
struct Questions {
    left: i64,
    /// The Unix time, in ms, up to which `left` has been counted.
    at_ms: i64,
}

impl Questions {
    fn take(&mut self, now_ms: i64) -> bool {
        let more = now_ms.saturating_sub(self.at_ms).max(0) / MS_A_QUESTION;
        self.left = self.left.saturating_add(more).min(MOST_QUESTIONS);
        if self.left == MOST_QUESTIONS || now_ms < self.at_ms {
            // Full, or the clock was set back.
            self.at_ms = now_ms;
        } else {
            self.at_ms += more * MS_A_QUESTION;
        }
        let is_left = self.left > 0;
        self.left -= i64::from(is_left);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_questions_at_once_and_one_a_second() {
        let mut questions = Questions { left: MOST_QUESTIONS, at_ms: 0 };
        let mut granted = |now_ms, tries| (0..tries).filter(|_| questions.take(now_ms)).count();
        assert_eq!(granted(1_000_000, 100), 10);
        assert_eq!(granted(1_000_999, 100), 0);
        assert_eq!(granted(1_001_500, 100), 1);
        assert_eq!(granted(1_002_000, 100), 1);
        assert_eq!(granted(1_004_999, 100), 2);
        assert_eq!(granted(9_000_000, 100), 10);
        // A clock that is set back takes nothing away for good.
        assert_eq!(granted(5_000_000, 100), 0);
        assert_eq!(granted(5_001_000, 100), 1);
    }
}
