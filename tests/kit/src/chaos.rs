//! Load while things are broken, and a checker of what the clients received.
//!
//! [`load::Load`] keeps a number of clients asking; each answer is recorded as it came
//! ([`recording`]), with times, and checked ([`check`]) against what the same request was answered
//! before anything was broken. The [`report::Report`] tells how many answers there were, what is
//! wrong with any of them, and the longest silence within one.

pub mod answer;
pub mod asks;
pub mod check;
pub mod load;
pub mod recording;
pub mod report;
pub mod witness;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was broken and when.
#[derive(Debug, Clone)]
pub struct Timeline {
    begin: Instant,
    notes: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { begin: Instant::now(), notes: Arc::default() }
    }
}

impl Timeline {
    /// Notes that something was done now.
    pub fn note(&self, what: impl fmt::Display) {
        let now = Instant::now();
        println!("{:7.2} s  {what}", now.duration_since(self.begin).as_secs_f64());
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((now, what.to_string()));
    }

    /// What was done in a span of time, with its distance from the beginning of that.
    fn during(&self, from: Instant, to: Instant) -> Vec<(f64, String)> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let within = notes.iter().filter(|(at, _)| (from..=to).contains(at));
        within.map(|(at, what)| (at.duration_since(from).as_secs_f64(), what.clone())).collect()
    }
}

/// Waits, in a test, for a time that has no event to wait for: that between two faults.
pub async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
