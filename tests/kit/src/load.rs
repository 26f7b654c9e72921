//! Load while a test breaks something, and a checker of what the clients received.
//!
//! [`clients::Load`] keeps a number of clients asking. Each answer is recorded as it came, with times
//! ([`recording`]), and checked ([`check`]) against the answer that the same request had before anything
//! was broken. The [`report::Report`] has the number of answers, the faults in them, and the longest pause
//! within one.

pub mod answer;
pub mod check;
pub mod clients;
pub mod recording;
pub mod report;
pub mod requests;

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
    /// Records and prints that something was done now.
    pub fn note(&self, what: impl fmt::Display) {
        let now = Instant::now();
        println!("{:7.2} s  {what}", now.duration_since(self.begin).as_secs_f64());
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((now, what.to_string()));
    }

    /// What was done between two times, with the seconds since the first.
    fn during(&self, from: Instant, to: Instant) -> Vec<(f64, String)> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let within = notes.iter().filter(|(at, _)| (from..=to).contains(at));
        within.map(|(at, what)| (at.duration_since(from).as_secs_f64(), what.clone())).collect()
    }
}

/// Waits between two faults, where there is no event to wait for.
pub async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
