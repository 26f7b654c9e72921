//! How often workers may die before that is no accident any more.

use std::collections::VecDeque;
use std::time::Duration;

/// Counts deaths within a sliding window of time.
///
/// Time is what has passed since any fixed moment; it never goes back.
#[derive(Debug)]
pub(crate) struct RestartLimit {
    most: usize,
    window: Duration,
    deaths: VecDeque<Duration>,
}

/// What to do after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Restart,
    GiveUp,
}

impl RestartLimit {
    /// Gives up at the `most`-th death within `window`.
    pub(crate) fn new(most: usize, window: Duration) -> Self {
        Self { most, window, deaths: VecDeque::new() }
    }

    /// Records a death.
    pub(crate) fn death(&mut self, now: Duration) -> Verdict {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|&at| now.saturating_sub(at) >= self.window) {
            self.deaths.pop_front();
        }
        if self.deaths.len() >= self.most { Verdict::GiveUp } else { Verdict::Restart }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn verdicts(seconds: &[u64]) -> Vec<Verdict> {
        let mut limit = RestartLimit::new(3, MINUTE);
        seconds.iter().map(|&s| limit.death(Duration::from_secs(s))).collect()
    }

    #[test]
    fn the_third_death_within_a_minute_is_the_last() {
        use Verdict::{GiveUp, Restart};
        assert_eq!(verdicts(&[0, 1, 2]), [Restart, Restart, GiveUp]);
        assert_eq!(verdicts(&[0, 59, 59]), [Restart, Restart, GiveUp]);
        assert_eq!(verdicts(&[0, 30, 60, 90]), [Restart; 4]);
        assert_eq!(verdicts(&[0, 100, 110, 159]), [Restart, Restart, Restart, GiveUp]);
    }

    proptest! {
        #[test]
        fn it_gives_up_exactly_when_three_deaths_lie_within_a_minute(gaps in proptest::collection::vec(0..90_u64, 1..40)) {
            let times: Vec<u64> = gaps.iter().scan(0, |now, gap| { *now += gap; Some(*now) }).collect();
            for (i, verdict) in verdicts(&times).into_iter().enumerate() {
                let near = times[..=i].iter().filter(|&&t| times[i] - t < 60).count();
                prop_assert_eq!(verdict == Verdict::GiveUp, near >= 3);
            }
        }
    }
}
