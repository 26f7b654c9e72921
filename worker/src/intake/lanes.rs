//! Decides which lanes of a model's queue to request jobs from, and how many; knows no NATS.
//!
//! Free slots are filled in rounds. Each free slot takes its turn's lane ([`Turns`]), and each lane is
//! asked for as many waiting jobs as turns fell to it. nats-server answers at once if a lane has fewer,
//! and the slots that are left go to the other lanes in the next round. Once all lanes are known to be
//! empty, a request for the next job stands on each of them, so that an idle worker receives a new job
//! within milliseconds; jobs behind that one are requested in rounds as before.
//!
//! A pull request can't be withdrawn, and abandoning its inbox would delay a job in flight until it is
//! redelivered. So standing requests are for one job and expire soon, and a job that arrives while no
//! slot is free is requeued at once.

use std::time::Duration;

use emberline_protocol::lane::{Lane, Turns};
use tokio::time::Instant;

/// When a standing request expires.
pub(super) const STANDS: Duration = Duration::from_secs(1);
/// How long an answer may be overdue before the requests count as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is known of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneState {
    /// Nothing.
    Unknown,
    /// It had no more jobs when it last answered.
    Empty,
    /// A request for waiting jobs is open: how many are still to come, and since when.
    Asked(u32, Instant),
    /// A request for its next job is open, since this time.
    Standing(Instant),
}

/// A pull request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullRequest {
    /// For this many of the jobs that wait now.
    Waiting(u32),
    /// For the next job, if it arrives within [`STANDS`].
    Next,
}

/// What one worker knows of a model's lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    states: [LaneState; 4],
    turns: Turns,
    /// Slots that the current rounds are to fill. Slots that become free meanwhile are left for later
    /// rounds, so that knowledge of empty lanes does not get old.
    wanted: u32,
}

impl Lanes {
    /// Nothing is known and nothing is requested.
    pub(super) fn new() -> Self {
        Self { states: [LaneState::Unknown; 4], turns: Turns::default(), wanted: 0 }
    }

    /// The requests to make while this many slots are free.
    pub(super) fn ask(&mut self, free: u32, now: Instant) -> Vec<(Lane, PullRequest)> {
        if free == 0 {
            self.forget();
            return Vec::new();
        }
        if self.states.iter().any(|state| matches!(state, LaneState::Asked(..))) {
            return Vec::new();
        }
        self.wanted = if self.wanted == 0 { free } else { self.wanted.min(free) };
        let mut shares = [0; 4];
        for _ in 0..self.wanted {
            let states = &self.states;
            let lane = self.turns.next(|lane| states[lane.index()] == LaneState::Unknown);
            let Some(lane) = lane else { break };
            shares[lane.index()] += 1;
        }
        let mut asks = Vec::new();
        for (lane, share) in Lane::ALL.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
            self.states[lane.index()] = LaneState::Asked(share, now);
            asks.push((lane, PullRequest::Waiting(share)));
        }
        if asks.is_empty() { self.stand(now) } else { asks }
    }

    /// All lanes are empty: requests the next job of each.
    fn stand(&mut self, now: Instant) -> Vec<(Lane, PullRequest)> {
        self.wanted = 0;
        let mut asks = Vec::new();
        for (lane, state) in Lane::ALL.into_iter().zip(&mut self.states) {
            if *state == LaneState::Empty {
                *state = LaneState::Standing(now);
                asks.push((lane, PullRequest::Next));
            }
        }
        asks
    }

    /// Notes that a job has arrived.
    pub(super) fn delivered(&mut self, lane: Lane) {
        let state = &mut self.states[lane.index()];
        match *state {
            LaneState::Asked(left, since) => {
                *state = if left > 1 { LaneState::Asked(left - 1, since) } else { LaneState::Unknown };
                self.wanted = self.wanted.saturating_sub(1);
                if self.wanted == 0 {
                    self.forget();
                }
            }
            LaneState::Standing(_) => *state = LaneState::Unknown,
            LaneState::Unknown | LaneState::Empty => {}
        }
    }

    /// Notes that a request has ended because there were no more jobs.
    pub(super) fn ended(&mut self, lane: Lane) {
        self.states[lane.index()] = LaneState::Empty;
    }

    /// Forgets which lanes were empty.
    fn forget(&mut self) {
        self.wanted = 0;
        for state in &mut self.states {
            if *state == LaneState::Empty {
                *state = LaneState::Unknown;
            }
        }
    }

    /// When an answer of nats-server is overdue; `None` while no request is open.
    pub(super) fn overdue(&self) -> Option<Instant> {
        let due = self.states.iter().filter_map(|state| match state {
            LaneState::Asked(_, since) => Some(*since + ANSWER_TIMEOUT),
            LaneState::Standing(since) => Some(*since + STANDS + ANSWER_TIMEOUT),
            LaneState::Unknown | LaneState::Empty => None,
        });
        due.min()
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
