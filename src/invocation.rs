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
    /// When Lambda ends it, and the process with it.
    pub ends: Instant,
}

impl Invocation {
    /// An invocation that began at the Unix time `unix_ms`, in ms, and has `time_left` from now on.
    pub fn new(unix_ms: i64, time_left: Duration) -> Self {
        Self { unix_ms, ends: Instant::now() + time_left }
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
