//! When an invocation began, and by when it has to end.

use std::time::{Duration, Instant};

/// How long before the end of an invocation a request is given up, so that its statement can be
/// cancelled and the answer still arrives.
const MARGIN: Duration = Duration::from_millis(1500);

/// An invocation's times. Everything that depends on time gets them as an argument.
#[derive(Debug, Clone, Copy)]
pub struct Invocation {
    /// When it began, as Unix time in ms.
    pub unix_ms: i64,
    /// The same by the clock that nobody sets.
    pub began: Instant,
    /// When Lambda ends it, and the process with it.
    pub ends: Instant,
}

impl Invocation {
    /// An invocation that began at the Unix time `unix_ms`, in ms, and has `time_left` from now on.
    pub fn new(unix_ms: i64, time_left: Duration) -> Self {
        let began = Instant::now();
        Self { unix_ms, began, ends: began + time_left }
    }

    /// The Unix time now, in ms.
    pub fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.began.elapsed().as_millis());
        self.unix_ms.saturating_add(elapsed.unwrap_or(i64::MAX))
    }

    /// The same, with half of the time that is left. The other half is for another try.
    #[must_use]
    pub fn first_half(&self) -> Self {
        Self { ends: Instant::now() + self.time_left() / 2, ..*self }
    }

    /// How long it may still take.
    pub fn time_left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// How long a step of it may take: 1.5 s less than there is, or half of what there is.
    pub fn time_limit(&self) -> Duration {
        without_margin(self.time_left(), MARGIN)
    }

    /// How long cleaning up may take, after which only the answer has to be written: 0.25 s less
    /// than there is, or half of what there is.
    pub fn last_time_limit(&self) -> Duration {
        without_margin(self.time_left(), MARGIN / 6)
    }
}

fn without_margin(time_left: Duration, margin: Duration) -> Duration {
    time_left.saturating_sub(margin.min(time_left / 2))
}
