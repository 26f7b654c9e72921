//! The answers to all requests, summarised.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Timeline;
use super::check::{Checked, Fault, Gap};

/// A pause that is reported: longer than a busy machine makes by itself.
const LONG: Duration = Duration::from_millis(500);
/// Number of faults that are printed in full.
const SHOWN: usize = 10;
/// What was broken this long before a pause may be its cause.
const CAUSE: Duration = Duration::from_secs(1);

/// Numbers of answers, and the faults in them.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of correct streams.
    pub streams: usize,
    /// Number of correct whole answers.
    pub whole: usize,
    /// Number of clients that disconnected before their answer's end.
    pub disconnected: usize,
    /// Number of refused requests that were tried again.
    pub retried: usize,
    /// Number of tokens in all answers.
    pub tokens: u64,
    /// Each fault with the name of its request.
    pub faults: Vec<(&'static str, Fault)>,
    slowest_refusal: Duration,
    slowest_first: Duration,
    slowest_whole: Duration,
    gaps: Vec<(&'static str, Gap)>,
}

impl Report {
    /// Adds one answer.
    pub fn add(&mut self, name: &'static str, streamed: bool, checked: Result<Checked, Fault>) {
        let checked = match checked {
            Ok(checked) => checked,
            Err(fault) => return self.faults.push((name, fault)),
        };
        self.tokens += checked.answer.usage.map_or(0, |(_, completion)| completion);
        if streamed {
            self.streams += 1;
            self.slowest_first = self.slowest_first.max(checked.first);
        } else {
            self.whole += 1;
            self.slowest_whole = self.slowest_whole.max(checked.first);
        }
        self.gaps.extend(checked.gap.map(|gap| (name, gap)));
    }

    /// Adds a request that was refused after a time, and tried again.
    pub fn retried(&mut self, after: Duration) {
        self.retried += 1;
        self.slowest_refusal = self.slowest_refusal.max(after);
    }

    /// Adds another report.
    pub fn merge(&mut self, other: Self) {
        self.streams += other.streams;
        self.whole += other.whole;
        self.disconnected += other.disconnected;
        self.retried += other.retried;
        self.tokens += other.tokens;
        self.slowest_refusal = self.slowest_refusal.max(other.slowest_refusal);
        self.faults.extend(other.faults);
        self.slowest_first = self.slowest_first.max(other.slowest_first);
        self.slowest_whole = self.slowest_whole.max(other.slowest_whole);
        self.gaps.extend(other.gaps);
    }

    /// The longest time between two pieces of one stream.
    pub fn longest_gap(&self) -> Duration {
        self.gaps.iter().map(|(_, gap)| gap.length()).max().unwrap_or_default()
    }

    /// How long after `then` the last stream that had a pause at that time went on.
    pub fn resumed_after(&self, then: Instant) -> Duration {
        let pauses = self.gaps.iter().map(|(_, gap)| gap).filter(|gap| (gap.from..gap.to).contains(&then));
        pauses.map(|gap| gap.to.duration_since(then)).max().unwrap_or_default()
    }

    /// Prints everything, and fails if there is a fault.
    pub fn conclude(&self, timeline: &Timeline) -> Result<()> {
        println!("{self}");
        if let Some((name, gap)) = self.gaps.iter().max_by_key(|(_, gap)| gap.length()) {
            println!("  the longest pause ({:.2} s) was in \"{name}\":", gap.length().as_secs_f64());
            let from = gap.from.checked_sub(CAUSE).unwrap_or(gap.from);
            for (after, what) in timeline.during(from, gap.to) {
                println!("    {:+.2} s: {what}", after - CAUSE.as_secs_f64());
            }
        }
        ensure!(self.streams + self.whole > 0, "nothing was answered");
        ensure!(self.faults.is_empty(), "{} answers are wrong", self.faults.len());
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, whole, disconnected, retried, tokens, faults, .. } = self;
        writeln!(f, "{streams} streams and {whole} whole answers are correct, with {tokens} tokens")?;
        writeln!(
            f,
            "  clients that disconnected: {disconnected}; requests tried again: {retried}, refused after {:.2} s at most",
            self.slowest_refusal.as_secs_f64()
        )?;
        let mut long: Vec<Duration> =
            self.gaps.iter().map(|(_, gap)| gap.length()).filter(|gap| *gap > LONG).collect();
        long.sort_unstable();
        let median = long.get(long.len() / 2).copied().unwrap_or_default();
        writeln!(
            f,
            "  streams with a pause over {LONG:?}: {}, median {:.2} s, at most {:.2} s",
            long.len(),
            median.as_secs_f64(),
            self.longest_gap().as_secs_f64(),
        )?;
        write!(
            f,
            "  first token after {:.2} s at most, whole answer after {:.2} s at most; faults: {}",
            self.slowest_first.as_secs_f64(),
            self.slowest_whole.as_secs_f64(),
            faults.len(),
        )?;
        for (name, fault) in faults.iter().take(SHOWN) {
            write!(f, "\n  \"{name}\": {fault}")?;
        }
        Ok(())
    }
}
