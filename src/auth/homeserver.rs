//! Tokens, users and devices that the replica does not know: whether the homeserver does.

use hyper::{Request, StatusCode, header::AUTHORIZATION};
use parking_lot::Mutex;
use serde::Deserialize;
use url::Url;

use super::{AccessToken, LONGEST_TOKEN, object};
use crate::{
    client::{Client, bearer},
    error::{Error, Refusal},
    grammar::matches,
};

/// How many questions may be asked at once.
const MOST_QUESTIONS: i64 = 10;

/// After how long another question may be asked, in ms.
const MS_A_QUESTION: i64 = 1000;

/// Errcodes that speak of a token or its user, and that callers get (spec: client-server API,
/// "Common error codes"; `synapse/api/errors.py`). Clients delete a token that is refused by any
/// other errcode too, so a refusal that does not speak of it must not reach them.
const REFUSALS: [&str; 6] = [
    "M_UNKNOWN_TOKEN",
    "M_USER_LOCKED",
    "M_USER_DEACTIVATED",
    "M_GUEST_ACCESS_FORBIDDEN",
    "ORG_MATRIX_EXPIRED_ACCOUNT",
    "M_CONSENT_NOT_GIVEN",
];

/// How much of its text is passed on, in characters.
const LONGEST_MESSAGE: usize = 1000;

/// The homeserver itself.
pub struct Homeserver {
    client: Client,
    /// The Unix time, in ms, at which no question that was asked counts any more.
    free_ms: Mutex<i64>,
}

/// Whose token it is (spec: client-server API, `GET /_matrix/client/v3/account/whoami`).
#[derive(Deserialize)]
pub struct Owner {
    /// The user.
    pub user_id: String,
    /// The device; the sender of an application service has none.
    pub device_id: Option<String>,
    /// Whether the user is a guest.
    #[serde(default)]
    pub is_guest: bool,
}

/// The spec's standard error response.
#[derive(Deserialize)]
struct RefusalBody {
    errcode: String,
    error: String,
    soft_logout: Option<bool>,
}

impl Homeserver {
    /// A homeserver by its base URL.
    pub fn new(url: &Url) -> Self {
        let client = Client::new(url, "/_matrix/client/v3/account/whoami");
        Self { client, free_ms: Mutex::default() }
    }

    /// Whose token it is, at the Unix time `now_ms`, in ms; `None` for a question of our own, which
    /// counts with nobody's guesses.
    ///
    /// # Errors
    ///
    /// [`Error::Refusal`] with the homeserver's own words about the token or its user;
    /// [`Error::GUEST_ACCESS_FORBIDDEN`] for a guest's;
    /// [`Error::HomeserverUnavailable`] for any other answer; [`Error::TOO_MANY_UNKNOWN_TOKENS`] if
    /// more than ten tokens at once, and one a second since, turned out to be bad;
    /// [`Error::UNKNOWN_TOKEN`] for one that no header can carry.
    pub async fn whoami(&self, token: &AccessToken, now_ms: Option<i64>) -> Result<Owner, Error> {
        // Synapse makes no such token, and a header with one could say more than was meant.
        let text = Some(token.expose()).filter(|it| (1..=LONGEST_TOKEN).contains(&it.len()));
        let text = text.filter(|it| it.bytes().all(|byte| byte.is_ascii_graphic()));
        let bearer = text.and_then(bearer).ok_or(Error::UNKNOWN_TOKEN)?;
        if now_ms.is_some_and(|now_ms| !self.take_question(now_ms)) {
            return Err(Error::TOO_MANY_UNKNOWN_TOKENS);
        }
        let request = Request::builder().header(AUTHORIZATION, bearer);
        let answer = self.client.send(request, String::new()).await;
        let (status, body) = answer.map_err(Error::HomeserverUnavailable)?;
        let rubbish = format!("its answer, status {status}, cannot be understood");
        let rubbish = Error::HomeserverUnavailable(rubbish);
        match status {
            StatusCode::OK => {
                // No text in PostgreSQL can have a NUL.
                let owner = object(&body).filter(|it: &Owner| !it.user_id.contains('\0'));
                let owner = owner.ok_or(rubbish)?;
                // Whoever has a good token may go on.
                *self.free_ms.lock() -= MS_A_QUESTION;
                if owner.is_guest { Err(Error::GUEST_ACCESS_FORBIDDEN) } else { Ok(owner) }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let RefusalBody { errcode, error, soft_logout } = object(&body).ok_or(rubbish)?;
                let of_token = REFUSALS.into_iter().find(|it| *it == errcode);
                let errcode = of_token.ok_or_else(|| not_about_the_token(status, &errcode))?;
                let text = error.chars().take(LONGEST_MESSAGE).collect::<String>().into();
                Err(Error::Refusal(Refusal { status: status.as_u16(), errcode, soft_logout, text }))
            }
            _ => Err(rubbish),
        }
    }

    /// Counts another question, and says whether it may be asked. Without a bound a flood of bad tokens
    /// here would be one there.
    fn take_question(&self, now_ms: i64) -> bool {
        let mut free_ms = self.free_ms.lock();
        // Never further ahead than all questions reach, because the clock may have been set back.
        let latest = now_ms.saturating_add(MOST_QUESTIONS * MS_A_QUESTION);
        *free_ms = free_ms.clamp(now_ms, latest);
        let may_ask = *free_ms <= latest - MS_A_QUESTION;
        if may_ask {
            *free_ms += MS_A_QUESTION;
        }
        may_ask
    }
}

/// A refusal that does not speak of the token: of a homeserver that never got it, or of what stands
/// before the homeserver.
fn not_about_the_token(status: StatusCode, errcode: &str) -> Error {
    // Unlike the text it is logged, if it is formed as an errcode is.
    let is_errcode = |it: &&str| it.len() <= 100 && matches("[A-Z0-9.]*_[A-Z0-9_.]*", it);
    let errcode = Some(errcode).filter(is_errcode).unwrap_or("no errcode");
    let look = match errcode {
        "M_MISSING_TOKEN" => "a proxy on the way drops the Authorization header",
        _ => "look at what stands between the function and HOMESERVER_URL",
    };
    let cause =
        format!("its answer, status {status}, {errcode}, does not speak of the token: {look}");
    Error::HomeserverUnavailable(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_quotes_an_errcode_and_nothing_else() {
        let long = format!("X_{}", "X".repeat(99));
        for (errcode, shown) in [
            ("X_UNRECOGNIZED", "X_UNRECOGNIZED"),
            ("ORG.EXAMPLE_V1.2", "ORG.EXAMPLE_V1.2"),
            (&long[..100], &long[..100]),
            (&long, "no errcode"),
            ("HUNTER2", "no errcode"),
            ("X_hunter2", "no errcode"),
            ("X_X\n", "no errcode"),
            ("", "no errcode"),
        ] {
            let error = not_about_the_token(StatusCode::FORBIDDEN, errcode);
            let expected = format!(
                "its answer, status 403 Forbidden, {shown}, does not speak of the token: \
                 look at what stands between the function and HOMESERVER_URL"
            );
            assert_eq!(error, Error::HomeserverUnavailable(expected));
        }
    }

    #[test]
    fn ten_questions_at_once_and_one_a_second() {
        let homeserver = Homeserver::new(&Url::parse("https://example.org").unwrap());
        let granted =
            |now_ms, tries| (0..tries).filter(|_| homeserver.take_question(now_ms)).count();
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
