//! Limits how often workers are restarted.

use std::collections::VecDeque;
use std::time::Duration;

/// Counts deaths within a sliding window of time.
///
/// Times are durations since any fixed moment; they never decrease.
#[derive(Debug)]
pub(crate) struct RestartLimit {
    max_deaths: usize,
    window: Duration,
    deaths: VecDeque<Duration>,
}

/// What to do after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartDecision {
    Restart,
    GiveUp,
}

impl RestartLimit {
    /// Gives up at the death that makes `max_deaths` within `window`.
    pub(crate) fn new(max_deaths: usize, window: Duration) -> Self {
        Self { max_deaths, window, deaths: VecDeque::new() }
    }

    /// Records a death at time `now`.
    pub(crate) fn record_death(&mut self, now: Duration) -> RestartDecision {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|&at| now.saturating_sub(at) >= self.window) {
            self.deaths.pop_front();
        }
        if self.deaths.len() >= self.max_deaths { RestartDecision::GiveUp } else { RestartDecision::Restart }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn decisions(seconds: &[u64]) -> Vec<RestartDecision> {
        let mut limit = RestartLimit::new(3, MINUTE);
        seconds.iter().map(|&s| limit.record_death(Duration::from_secs(s))).collect()
    }

    #[test]
    fn the_third_death_within_a_minute_is_the_last() {
        use RestartDecision::{GiveUp, Restart};
        assert_eq!(decisions(&[0, 1, 2]), [Restart, Restart, GiveUp]);
        assert_eq!(decisions(&[0, 59, 59]), [Restart, Restart, GiveUp]);
        assert_eq!(decisions(&[0, 30, 60, 90]), [Restart; 4]);
        assert_eq!(decisions(&[0, 100, 110, 159]), [Restart, Restart, Restart, GiveUp]);
    }

    proptest! {
        #[test]
        fn it_gives_up_exactly_when_three_deaths_lie_within_a_minute(gaps in proptest::collection::vec(0..90_u64, 1..40)) {
            let times: Vec<u64> = gaps.iter().scan(0, |now, gap| { *now += gap; Some(*now) }).collect();
            for (i, decision) in decisions(&times).into_iter().enumerate() {
                let near = times[..=i].iter().filter(|&&t| times[i] - t < 60).count();
                prop_assert_eq!(decision == RestartDecision::GiveUp, near >= 3);
            }
        }
    }
}
