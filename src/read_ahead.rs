//! What a walk by `next_token` will ask for next: read together with one of its pages, and kept for
//! a minute.
//!
//! It belongs to one execution environment, which answers one request at a time. Its clock is Unix
//! time, because a monotonic clock can stand still while the environment is frozen.

use std::{mem::replace, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    invocation::Invocation,
    page::{Budget, Page, UserMedia},
    query::MediaUsageQuery,
};

/// How much one answer may take, in bytes. [`MOST_ANSWERS`], and one that is being read, stay below
/// 16 MB.
const MOST_BYTES: usize = 3_100_000;

/// How many answers are kept.
const MOST_ANSWERS: usize = 4;

/// How many walks are known.
const MOST_WALKS: usize = 16;

/// Knows walks, and keeps users for them.
pub struct ReadAhead {
    /// How old an answer may be, in ms; 0 keeps nothing.
    max_age_ms: i64,
    /// How many users a walk's first statement beyond its own page reads, and how many the others.
    steps: [i64; 2],
    /// The most recently used comes first.
    walks: Mutex<Vec<Walk>>,
}

/// Pages of one question that continue each other.
struct Walk {
    /// The query, without its page.
    question: MediaUsageQuery,
    /// Where its next page begins.
    next: i64,
    /// How long its latest page took.
    took: Duration,
    /// What was read ahead last.
    kept: Option<KeptAnswer>,
}

/// Users of one snapshot of the database, in the order of a question.
pub struct KeptAnswer {
    /// When its statement was sent, or earlier, as Unix time in ms.
    sent_ms: i64,
    /// When it was last looked at.
    seen_ms: i64,
    /// How many users of the order come before.
    from: i64,
    /// How many users there are in all; 0 until that is known.
    total: i64,
    /// How many more users it has room for.
    room: i64,
    /// The users, each as a line with a JSON array, which repeats no names of fields.
    lines: String,
    /// Where each line begins.
    starts: Vec<usize>,
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
        let question = question(query);
        let walks = self.walks(at);
        let walk = walks.iter().find(|it| it.next == query.from && it.question == question)?;
        let mut of_question = walks.iter().filter(|walk| walk.question == question);
        let kept = of_question.find_map(|walk| walk.kept.as_ref());
        let step = kept.map_or(self.steps[0], |kept| self.next_step(kept));
        (walk.took < at.time_left() / 5).then_some(step)
    }

    /// An empty answer for so many users.
    pub fn room(&self, users: i64, query: &MediaUsageQuery, at: &Invocation) -> KeptAnswer {
        let sent_ms = at.now_ms();
        let starts: Vec<usize> = Vec::with_capacity(users.try_into().unwrap_or(0));
        let lines = String::with_capacity(MOST_BYTES.saturating_sub(8 * starts.capacity()));
        let from = query.from;
        KeptAnswer { sent_ms, seen_ms: sent_ms, from, total: 0, room: users, lines, starts }
    }

    /// A page that is kept as a whole.
    pub fn page(&self, query: &MediaUsageQuery, budget: Budget, at: &Invocation) -> Option<Page> {
        let question = question(query);
        let mut walks = self.walks(at);
        // None holds a first page, because no walk comes to one.
        let of_question = walks.iter().enumerate().filter(|(_, walk)| walk.question == question);
        // From the least recently used on, because of two as new the last one counts.
        let kept = of_question.rev().filter_map(|(index, walk)| {
            let kept = walk.kept.as_ref()?;
            Some((kept.sent_ms, index, kept.page(query, budget)?))
        });
        let (_, index, page) = kept.max_by_key(|(sent_ms, ..)| *sent_ms)?;
        // It is now the most recently used.
        walks[..=index].rotate_right(1);
        drop(walks);
        self.answered(query, page.next_token(), None, at);
        Some(page)
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
        let question = question(query);
        let mut walks = self.walks(at);
        if query.from == 0 {
            // No later page is to be older than the first.
            walks.iter_mut().filter(|it| it.question == question).for_each(|it| it.kept = None);
        }
        let next = next_token.unwrap_or(query.from);
        let place = |from| walks.iter().position(|it| it.next == from && it.question == question);
        // It continues the walk that came to this page, or else one that is where this one is.
        let before = place(query.from).or_else(|| place(next)).map(|index| walks.remove(index));
        // Where no page follows either, this is no walk.
        let is_walk = before.is_some() || next_token.is_some();
        if is_walk && self.max_age_ms > 0 {
            let kept = kept.or_else(|| before?.kept);
            walks.insert(0, Walk { question, next, took: at.began.elapsed(), kept });
            walks.truncate(MOST_WALKS);
        }
        let with_answers = walks.iter_mut().filter(|walk| walk.kept.is_some());
        with_answers.skip(MOST_ANSWERS).for_each(|walk| walk.kept = None);
    }

    /// The walks, without answers that are too old, or older than they seem because the clock was
    /// set back.
    fn walks(&self, at: &Invocation) -> MutexGuard<'_, Vec<Walk>> {
        let now_ms = at.now_ms();
        let mut walks = self.walks.lock();
        for walk in walks.iter_mut() {
            walk.kept.take_if(|kept| {
                let seen_ms = replace(&mut kept.seen_ms, now_ms);
                now_ms < seen_ms || now_ms > kept.sent_ms.saturating_add(self.max_age_ms)
            });
        }
        walks
    }

    /// How many users to read next: as many as there are bytes for, if they are like those before.
    fn next_step(&self, kept: &KeptAnswer) -> i64 {
        let bytes = kept.lines.len() + 8 * kept.users();
        let most = (MOST_BYTES * kept.users()).checked_div(bytes).unwrap_or(0);
        i64::try_from(most).map_or(self.steps[0], |most| most.clamp(self.steps[0], self.steps[1]))
    }
}

/// What the pages of a walk have in common.
fn question(query: &MediaUsageQuery) -> MediaUsageQuery {
    MediaUsageQuery { from: 0, limit: 0, ..query.clone() }
}

impl KeptAnswer {
    /// Appends one of so many users in all. The first one that there is no room for ends the answer.
    pub fn push(&mut self, user: &UserMedia, total: i64) {
        self.total = total;
        let fields = (&user.user_id, &user.displayname, user.media_count, user.media_length);
        // JSON escapes line breaks.
        let line = serde_json::to_string(&fields).unwrap_or_default() + "\n";
        if self.room > 0 && self.lines.len() + line.len() <= self.lines.capacity() {
            self.starts.push(self.lines.len());
            self.lines.push_str(&line);
            self.room -= 1;
        } else {
            self.room = 0;
        }
    }

    /// How many users it holds.
    pub fn users(&self) -> usize {
        self.starts.len()
    }

    /// The page of a query, if all of it is in here.
    fn page(&self, query: &MediaUsageQuery, budget: Budget) -> Option<Page> {
        let first = usize::try_from(query.from.checked_sub(self.from)?).ok()?;
        let start = *self.starts.get(first)?;
        let mut page = Page::new(query.from, query.limit, budget);
        page.total = self.total;
        for line in self.lines[start..].lines() {
            if page.is_full() {
                break;
            }
            page.push(&serde_json::from_str(line).ok()?).ok()?;
        }
        (page.is_full() || page.next_token().is_none()).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{Args, MediaUsageQuery};
    use std::time::Instant;

    /// An invocation at a Unix time that has all the time there is, and takes none.
    fn at(unix_ms: i64) -> Invocation {
        let began = Instant::now() + Duration::from_hours(1);
        Invocation { unix_ms, began, ends: began + Duration::from_hours(1) }
    }

    fn query(text: &str) -> MediaUsageQuery {
        MediaUsageQuery::parse(&Args::parse(text)).unwrap()
    }

    fn user(number: i64, padding: usize) -> UserMedia {
        UserMedia {
            user_id: Some(format!("@{number}\"{}:b", "x".repeat(padding))),
            displayname: (number % 2 == 0).then(|| "\n".repeat(padding / 10)),
            media_count: number,
            media_length: i64::MAX - number,
        }
    }

    /// How much memory an answer takes.
    fn bytes(kept: &KeptAnswer) -> usize {
        kept.lines.capacity() + 8 * kept.starts.capacity()
    }

    /// A database of so many users with ids of a length, behind a memory.
    struct Walker {
        read_ahead: ReadAhead,
        total: i64,
        padding: usize,
        /// How many statements it was sent.
        statements: usize,
    }

    impl Walker {
        fn new(seconds: u32, steps: [i64; 2], total: i64, padding: usize) -> Self {
            Self { read_ahead: ReadAhead::new(seconds, steps), total, padding, statements: 0 }
        }

        /// The body of a page, and where the next one begins; as the service asks for it.
        fn ask(&mut self, query: &MediaUsageQuery, at: &Invocation) -> (String, Option<i64>) {
            let budget = Budget::INVOCATION;
            let step = self.read_ahead.step(query, at);
            if let Some(mut page) = self.read_ahead.page(query, budget, at) {
                let next = page.next_token();
                return (page.take_body(), next);
            }
            self.statements += 1;
            let mut kept = step.map(|users| self.read_ahead.room(users, query, at));
            let limit = query.limit.max(kept.as_ref().map_or(0, |kept| kept.room));
            let mut page = Page::new(query.from, query.limit, budget);
            page.total = self.total;
            for number in query.from..self.total.min(query.from.saturating_add(limit)) {
                let user = user(number, self.padding);
                page.push(&user).unwrap();
                if let Some(kept) = &mut kept {
                    kept.push(&user, self.total);
                }
            }
            assert!(self.bytes() + kept.as_ref().map_or(0, bytes) <= 15_900_000);
            let next = page.next_token();
            self.read_ahead.answered(query, next, kept, at);
            (page.take_body(), next)
        }

        /// How much memory is in use.
        fn bytes(&self) -> usize {
            let walks = self.read_ahead.walks.lock();
            let term = |walk: &Walk| walk.question.search_term.as_ref().map_or(0, |it| it.0.len());
            let kept = |walk: &Walk| walk.kept.as_ref().map_or(0, bytes);
            let walk_bytes = walks.iter().map(|walk| size_of::<Walk>() + term(walk) + kept(walk));
            walk_bytes.sum()
        }

        /// How many statements a walk through all pages takes, each page checked.
        fn walk(&mut self, question: &str, limit: i64) -> usize {
            let (before, mut from) = (self.statements, Some(0));
            while let Some(token) = from {
                from = self.step_on(question, token, limit);
            }
            self.statements - before
        }

        fn step_on(&mut self, question: &str, from: i64, limit: i64) -> Option<i64> {
            let query = query(&format!("{question}&from={from}&limit={limit}"));
            let (body, next) = self.ask(&query, &at(0));
            let mut page = Page::new(from, limit, Budget::INVOCATION);
            page.total = self.total;
            for number in from..self.total.min(from + limit) {
                page.push(&user(number, self.padding)).unwrap();
            }
            assert_eq!(body, page.take_body());
            next
        }
    }

    #[test]
    fn a_walk_reads_in_growing_steps() {
        // Of 59,500 users a bit more than half fit.
        assert_eq!(Walker::new(60, ReadAhead::STEPS, 60_000, 40).walk("", 500), 2 + 2);
        assert_eq!(
            Walker::new(60, ReadAhead::STEPS, 5_000, 40).walk("order_by=media_length", 50),
            3
        );
        assert_eq!(Walker::new(60, [10, 40], 100, 1).walk("", 5), 2 + 3);
        assert_eq!(Walker::new(60, [10, 40], 100, 1).walk("", 7), 2 + 3);
        // The first page leaves less than a page.
        assert_eq!(Walker::new(60, [10, 40], 12, 1).walk("", 10), 2);
        assert_eq!(Walker::new(0, [10, 40], 100, 1).walk("", 5), 20);
    }

    #[test]
    fn four_walks_do_not_disturb_each_other() {
        let mut walker = Walker::new(60, [20, 60_000], 600, 12_000);
        let alone = walker.walk("", 10);
        walker.statements = 0;
        let question = |walk: i64| format!("from_ts={}", walk + 1);
        let mut walks: Vec<_> = (0..4).map(|walk| (question(walk), Some(0))).collect();
        // One asks for a page where the others ask for seven.
        for round in 0.. {
            for (walk, (question, from)) in walks.iter_mut().enumerate() {
                if let Some(token) = *from
                    && (walk > 0 || round % 7 == 0)
                {
                    *from = walker.step_on(question, token, 10);
                }
            }
            if walks.iter().all(|(_, from)| from.is_none()) {
                break;
            }
        }
        assert_eq!(walker.statements, 4 * alone);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut walker = Walker::new(60, [20, 60_000], 600, 12_000);
        let question = |walk: i64| format!("from_ts={}", walk + 1);
        for walk in 0..5 {
            for from in [0, 20, 40, 60] {
                if walk == 4 && from == 20 {
                    // Back to a page of the first, which then is the most recently used.
                    walker.step_on(&question(0), 61, 20);
                }
                walker.step_on(&question(walk), from, 20);
            }
        }
        let statements = [0, 2, 3, 4, 1].map(|walk| {
            let before = walker.statements;
            walker.step_on(&question(walk), 80, 20);
            walker.statements - before
        });
        assert_eq!(statements, [0, 0, 0, 0, 1]);
    }

    #[test]
    fn memory_is_bounded_whatever_names_and_terms_are() {
        // Of the longest, one fits, or none.
        for (padding, total, walks) in
            [(0, 60, 80), (250, 60, 80), (50_000, 60, 7), (1_600_000, 3, 7), (3_200_000, 3, 2)]
        {
            let mut walker = Walker::new(60, [20, 60_000], total, padding);
            for number in 0..walks {
                let term = "x".repeat(if number % 2 == 0 { 1024 } else { 1 + number });
                let question = format!("search_term={term}&from_ts={}", number + 1);
                for from in 0..3 {
                    walker.step_on(&question, from, 1);
                }
                assert!(walker.bytes() < 13_000_000, "{padding}: {}", walker.bytes());
            }
            assert_eq!(walker.read_ahead.walks.lock().len(), walks.min(MOST_WALKS));
        }
    }

    #[test]
    fn an_answer_is_kept_for_as_long_as_it_may_be() {
        for (seconds, asked_ms, statements) in
            [(60, 59_000, 2), (60, 61_000, 3), (300, 299_000, 2), (60, -1, 3), (60, i64::MAX, 3)]
        {
            let mut walker = Walker::new(seconds, [10, 40], 100, 1);
            for (from, ms) in [(0, 0), (5, 0), (10, asked_ms)] {
                walker.ask(&query(&format!("from={from}&limit=5")), &at(ms));
            }
            assert_eq!(walker.statements, statements, "{asked_ms}");
        }
        // Set back by less than the answer's age, which is then not known any more.
        let mut walker = Walker::new(60, [10, 40], 100, 1);
        for (from, ms) in [(0, 0), (5, 0), (10, 50_000), (10, 20_000)] {
            walker.ask(&query(&format!("from={from}&limit=5")), &at(ms));
        }
        assert_eq!(walker.statements, 3);
    }

    #[test]
    fn a_page_of_another_question_is_not_from_memory() {
        for other in ["dir=b", "order_by=media_count", "from_ts=1", "until_ts=5", "search_term=x"] {
            for (kept, asked) in [("", other), (other, "")] {
                let mut walker = Walker::new(60, [10, 40], 100, 1);
                for from in [0, 5] {
                    walker.step_on(kept, from, 5);
                }
                walker.step_on(asked, 10, 5);
                assert_eq!(walker.statements, 3, "{kept:?} {asked:?}");
                walker.step_on(kept, 10, 5);
                assert_eq!(walker.statements, 3, "{kept:?} {asked:?}");
            }
        }
    }

    #[test]
    fn the_newest_snapshot_counts_and_a_first_page_is_newer_than_all_before() {
        let mut walker = Walker::new(60, [10, 40], 30, 1);
        let mut ms = 0;
        let mut total = |total: i64, from: i64, limit: i64| {
            walker.total = total;
            ms += 1;
            let (body, _) = walker.ask(&query(&format!("from={from}&limit={limit}")), &at(ms));
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            body["total"].as_i64().unwrap()
        };
        assert_eq!((total(30, 0, 5), total(30, 5, 5)), (30, 30));
        // The second has read 5 to 15, and this one reads all from 11 on.
        assert_eq!((total(31, 6, 5), total(31, 11, 5)), (30, 31));
        assert_eq!((total(32, 10, 4), total(32, 11, 4)), (30, 31));
        assert_eq!((total(33, 0, 5), total(34, 11, 4)), (33, 34));
        assert_eq!((total(35, 5, 5), total(36, 10, 5)), (35, 35));
        assert_eq!((total(37, 0, 5), total(38, 10, 5)), (37, 38));
    }

    #[test]
    fn a_page_that_took_a_fifth_of_the_time_left_is_followed_by_a_page_alone() {
        let second = |seconds: u64| Duration::from_secs(seconds);
        for (took, left, reads_ahead) in
            [(4, 25, true), (4, 20, false), (1, 28, true), (6, 28, false)]
        {
            let mut walker = Walker::new(60, [10, 40], 100, 1);
            let began = Instant::now().checked_sub(second(took)).unwrap();
            walker.ask(&query("limit=5"), &Invocation { began, ..at(0) });
            let second = Invocation::new(9_000, second(left));
            let step = walker.read_ahead.step(&query("from=5&limit=5"), &second);
            assert_eq!(step, reads_ahead.then_some(10), "{took} {left}");
        }
    }
}
