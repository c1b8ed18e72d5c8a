//! What a walk by `next_token` will ask for next: read together with one of its pages, and kept for
//! a minute.
//!
//! It belongs to one execution environment, which answers one request at a time. Its clock is Unix
//! time, because a monotonic clock can stand still while the environment is frozen.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    invocation::Invocation,
    page::{Budget, Page, UserMedia},
    query::MediaUsageQuery,
};

/// How much one answer may take, in bytes. Four walks, an answer that is being read, and
/// [`MOST_WALKS`] without any, stay below 16 MB.
const MOST_BYTES: usize = 3_100_000;

/// How many walks are known.
const MOST_WALKS: usize = 64;

/// Walks by a longer search term, in bytes, are not known. No user id and no displayname is longer.
const LONGEST_TERM: usize = 1024;

/// Knows walks, and keeps users for them.
pub struct ReadAhead {
    /// How old an answer may be, in ms; 0 keeps nothing.
    max_age_ms: i64,
    /// How many users a walk's first statement beyond its own page reads, and how many the others.
    steps: [i64; 2],
    /// The most recently used comes last.
    walks: Mutex<Vec<Walk>>,
}

/// Pages of one question that continue each other.
struct Walk {
    /// The query, without its page.
    question: MediaUsageQuery,
    /// Where its next page begins.
    next: i64,
    /// How many users to read then.
    step: i64,
    /// How long its latest page took.
    took: Duration,
    kept: Option<KeptAnswer>,
}

/// Users of one snapshot of the database, in the order of a question.
pub struct KeptAnswer {
    /// When its statement was sent, or earlier, as Unix time in ms.
    sent_ms: i64,
    /// How many users of the order come before.
    from: i64,
    /// How many users there are in all.
    total: i64,
    /// How many more users it has room for.
    pub room: i64,
    /// The users, each as a JSON array, which repeats no names of fields.
    json: String,
    /// Where each user begins in there, and the latest one ends.
    bounds: Vec<u32>,
}

impl ReadAhead {
    /// More than 1,000 users may take a statement of another shape, which costs more than a small
    /// page does. 60,000 users are more than most answers have bytes for.
    pub const STEPS: [i64; 2] = [1_000, 60_000];

    /// Keeps answers for so many seconds.
    pub fn new(seconds: u32, steps: [i64; 2]) -> Self {
        Self { max_age_ms: i64::from(seconds) * 1000, steps, walks: Mutex::default() }
    }

    /// How many users the statement for a page should read. `None` if the page continues no walk, or
    /// if the page before took a fifth of the time that is left.
    pub fn step(&self, query: &MediaUsageQuery, at: &Invocation) -> Option<i64> {
        let walks = self.walks(at);
        let question = self.question(query)?;
        let walk = walks.iter().find(|walk| walk.is_at(query.from, &question))?;
        (walk.took < at.time_left() / 5).then_some(walk.step)
    }

    /// An empty answer for so many users. The least recently used goes where memory runs out.
    pub fn room(&self, users: i64, query: &MediaUsageQuery, at: &Invocation) -> KeptAnswer {
        let mut walks = self.walks(at);
        for index in 0..walks.len() {
            let kept = walks.iter().filter_map(|walk| walk.kept.as_ref());
            if kept.map(KeptAnswer::bytes).sum::<usize>() > 4 * MOST_BYTES {
                walks[index].kept = None;
            }
        }
        let mut bounds = Vec::with_capacity(usize::try_from(users).unwrap_or(0) + 1);
        bounds.push(0);
        let json = String::with_capacity(MOST_BYTES.saturating_sub(4 * bounds.capacity()));
        let (sent_ms, from) = (at.now_ms(), query.from);
        KeptAnswer { sent_ms, from, total: 0, room: users, json, bounds }
    }

    /// A page that is kept as a whole, and the number of all users.
    pub fn page(
        &self,
        query: &MediaUsageQuery,
        budget: Budget,
        at: &Invocation,
    ) -> Option<(Page, i64)> {
        let mut walks = self.walks(at);
        let question = self.question(query).filter(|_| query.from > 0)?;
        let of_question = walks.iter().enumerate().filter(|(_, walk)| walk.question == question);
        let kept = of_question.filter_map(|(index, walk)| {
            let kept = walk.kept.as_ref()?;
            Some((kept.sent_ms, index, kept.page(query, budget)?, kept.total, self.next_step(kept)))
        });
        let (_, index, page, total, step) = kept.max_by_key(|(sent_ms, ..)| *sent_ms)?;
        // It is now the most recently used.
        walks[index..].rotate_left(1);
        let next = page.next_token(total).unwrap_or(query.from);
        Walk { question, next, step, took: at.elapsed(), kept: None }.go_on(&mut walks, query.from);
        Some((page, total))
    }

    /// Takes note of a page that the database answered and of where the next one begins, and keeps
    /// what was read ahead.
    pub fn answered(
        &self,
        query: &MediaUsageQuery,
        next_token: Option<i64>,
        kept: Option<KeptAnswer>,
        at: &Invocation,
    ) {
        let Some(question) = self.question(query) else { return };
        let mut walks = self.walks(at);
        if query.from == 0 {
            // No later page is to be older than the first.
            walks.iter_mut().filter(|it| it.question == question).for_each(|it| it.kept = None);
        }
        let next = next_token.unwrap_or(query.from);
        let step = kept.as_ref().map_or(self.steps[0], |kept| self.next_step(kept));
        Walk { question, next, step, took: at.elapsed(), kept }.go_on(&mut walks, query.from);
    }

    /// What the pages of a walk have in common; `None` if nothing is to be kept.
    fn question(&self, query: &MediaUsageQuery) -> Option<MediaUsageQuery> {
        let length = query.search_term.as_ref().map_or(0, |term| term.expose().len());
        let is_kept = self.max_age_ms > 0 && length <= LONGEST_TERM;
        is_kept.then(|| MediaUsageQuery { from: 0, limit: 0, ..query.clone() })
    }

    /// The walks, without answers that are too old, or of the future because the clock was set back.
    fn walks(&self, at: &Invocation) -> MutexGuard<'_, Vec<Walk>> {
        let is_over = |kept: &KeptAnswer| {
            !(0..=self.max_age_ms).contains(&at.now_ms().saturating_sub(kept.sent_ms))
        };
        // Nothing in here panics while it holds the lock.
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        walks.iter_mut().for_each(|walk| drop(walk.kept.take_if(|kept| is_over(kept))));
        walks
    }

    /// How many users to read next: as many as there are bytes for, if they are like those before.
    fn next_step(&self, kept: &KeptAnswer) -> i64 {
        let most = (MOST_BYTES * kept.users()).checked_div(kept.bytes()).unwrap_or(0);
        i64::try_from(most).map_or(self.steps[0], |most| most.clamp(self.steps[0], self.steps[1]))
    }
}

impl Walk {
    fn is_at(&self, from: i64, question: &MediaUsageQuery) -> bool {
        self.next == from && self.question == *question
    }

    /// Takes the place of the walk that came to `from`, or else of one that is where this one is.
    fn go_on(mut self, walks: &mut Vec<Self>, from: i64) {
        let at = |place| walks.iter().position(|walk| walk.is_at(place, &self.question));
        match at(from).or_else(|| at(self.next)).map(|before| walks.remove(before)) {
            Some(before) => self.kept = self.kept.or(before.kept),
            // No page follows, so that this is no walk.
            None if self.next == from => return,
            None => (),
        }
        walks.push(self);
        if walks.len() > MOST_WALKS {
            walks.remove(0);
        }
    }
}

impl KeptAnswer {
    /// Appends a user. The first one that there is no room for ends the answer.
    pub fn push(&mut self, user: &UserMedia) {
        let fields = (&user.user_id, &user.displayname, user.media_count, user.media_length);
        let json = serde_json::to_string(&fields).unwrap_or_default();
        let end = self.json.len() + json.len();
        match u32::try_from(end) {
            Ok(bound) if self.room > 0 && end <= self.json.capacity() => {
                self.json.push_str(&json);
                self.bounds.push(bound);
                self.room -= 1;
            }
            _ => self.room = 0,
        }
    }

    /// The answer as it is kept, given the number of all users.
    #[must_use]
    pub fn complete(mut self, total: i64) -> Self {
        self.json.shrink_to_fit();
        self.bounds.shrink_to_fit();
        Self { total, room: 0, ..self }
    }

    /// How many users it holds.
    pub fn users(&self) -> usize {
        self.bounds.len() - 1
    }

    /// How much memory it takes.
    fn bytes(&self) -> usize {
        self.json.capacity() + 4 * self.bounds.capacity()
    }

    /// The page of a query, if all of it is in here.
    fn page(&self, query: &MediaUsageQuery, budget: Budget) -> Option<Page> {
        let first = usize::try_from(query.from.checked_sub(self.from)?).ok()?;
        let mut page = Page::new(query.from, query.limit, budget);
        for bounds in self.bounds.windows(2).skip(first) {
            if page.is_full() {
                break;
            }
            let user = &self.json[bounds[0] as usize..bounds[1] as usize];
            page.push(&serde_json::from_str(user).ok()?).ok()?;
        }
        let end = self.from.saturating_add(i64::try_from(self.users()).ok()?);
        (page.is_full() || end >= self.total).then_some(page)
    }
}
