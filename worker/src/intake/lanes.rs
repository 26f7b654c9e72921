//! Which lanes of a model's queue to ask for jobs, and for how many: the decisions, without NATS.
//!
//! Free slots are filled in rounds. Each slot takes its [`Turns`] lane, and each lane is asked for as
//! many jobs as turns fell to it, of those that wait now; nats-server answers at once that there are
//! no more, and the slots that are left go to the other lanes in a next round. Once all lanes are
//! known to be empty, a request for its next job is left standing on each, which is how a worker
//! that has nothing to do hears of a new job within a moment; what else waits behind that is asked
//! for as before.
//!
//! nats-server has no way to take a request back. (To leave its inbox would lose a job that is on its
//! way there, until nats-server delivers it again.) So standing requests are for one job and end
//! soon, and a job that comes though no slot is free is given back at once.

use std::time::Duration;

use emberline_protocol::lane::{Lane, Turns};
use tokio::time::Instant;

/// How long a standing request stands.
pub(super) const STANDS: Duration = Duration::from_secs(1);
/// How much later than expected an answer may be before the requests are taken for lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing.
    Unknown,
    /// There was no more in it a moment ago.
    Empty,
    /// So many jobs are still to come, or the word that there are no more; since when.
    Asked(u32, Instant),
    /// A request for its next job stands; since when.
    Standing(Instant),
}

/// A request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// For so many of the jobs that wait now.
    Waiting(u32),
    /// For the next job, whenever it comes within [`STANDS`].
    Next,
}

/// A model's lanes, as one worker knows them.
#[derive(Debug)]
pub(super) struct Lanes {
    states: [State; 4],
    turns: Turns,
    /// Slots that the rounds under way are to fill. It does not grow with the slots that become free
    /// meanwhile, so that what is known of an empty lane is soon forgotten.
    wanted: u32,
}

impl Lanes {
    /// Nothing is known and nothing asked for.
    pub(super) fn new() -> Self {
        Self { states: [State::Unknown; 4], turns: Turns::default(), wanted: 0 }
    }

    /// What to ask for now that so many slots are free.
    pub(super) fn ask(&mut self, free: u32, now: Instant) -> Vec<(Lane, Ask)> {
        if free == 0 {
            self.forget();
            return Vec::new();
        }
        if self.states.iter().any(|state| matches!(state, State::Asked(..))) {
            return Vec::new();
        }
        self.wanted = if self.wanted == 0 { free } else { self.wanted.min(free) };
        let mut shares = [0; 4];
        for _ in 0..self.wanted {
            let states = &self.states;
            let lane = self.turns.next(|lane| states[lane.index()] == State::Unknown);
            let Some(lane) = lane else { break };
            shares[lane.index()] += 1;
        }
        let mut asks = Vec::new();
        for (lane, share) in Lane::ALL.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
            self.states[lane.index()] = State::Asked(share, now);
            asks.push((lane, Ask::Waiting(share)));
        }
        if asks.is_empty() { self.stand(now) } else { asks }
    }

    /// All lanes are empty: waits for whatever comes next.
    fn stand(&mut self, now: Instant) -> Vec<(Lane, Ask)> {
        self.wanted = 0;
        let mut asks = Vec::new();
        for (lane, state) in Lane::ALL.into_iter().zip(&mut self.states) {
            if *state == State::Empty {
                *state = State::Standing(now);
                asks.push((lane, Ask::Next));
            }
        }
        asks
    }

    /// A job has come.
    pub(super) fn delivered(&mut self, lane: Lane) {
        let state = &mut self.states[lane.index()];
        match *state {
            State::Asked(left, since) => {
                *state = if left > 1 { State::Asked(left - 1, since) } else { State::Unknown };
                self.wanted = self.wanted.saturating_sub(1);
                if self.wanted == 0 {
                    self.forget();
                }
            }
            State::Standing(_) => *state = State::Unknown,
            State::Unknown | State::Empty => {}
        }
    }

    /// A request has ended, and there was no more.
    pub(super) fn ended(&mut self, lane: Lane) {
        self.states[lane.index()] = State::Empty;
    }

    /// What was known of empty lanes is old.
    fn forget(&mut self) {
        self.wanted = 0;
        for state in &mut self.states {
            if *state == State::Empty {
                *state = State::Unknown;
            }
        }
    }

    /// When a word of nats-server is overdue; nothing while nothing is asked for.
    pub(super) fn overdue(&self) -> Option<Instant> {
        let due = self.states.iter().filter_map(|state| match state {
            State::Asked(_, since) => Some(*since + PATIENCE),
            State::Standing(since) => Some(*since + STANDS + PATIENCE),
            State::Unknown | State::Empty => None,
        });
        due.min()
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
