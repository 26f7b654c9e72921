//! Time to fold a stored event log, as a worker does that takes a job over.

use std::hint::black_box;

use criterion::Criterion;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{Acceptance, Event, EventKind};
use emberline_protocol::log::EventLog;

/// Events with one token each in every log.
const TOKENS: u32 = 2000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("EventLog::read, 2000 token events");
    for (name, attempts) in [("one attempt", 1), ("four attempts", 4)] {
        let stored = stored_log(attempts);
        assert_eq!(fold(&stored).choices().first().map(|choice| choice.token_count()), Some(TOKENS));
        group.bench_function(name, |bencher| bencher.iter(|| fold(black_box(&stored))));
    }
    group.finish();
    criterion.final_summary();
}

fn fold(stored: &[Event]) -> EventLog {
    let mut log = EventLog::new(1, false);
    log.read(stored, |_, _| {});
    log
}

/// A log of one choice in which `attempts` workers write equally many tokens, one after the other.
fn stored_log(attempts: u32) -> Vec<Event> {
    let per_attempt = TOKENS / attempts;
    let attempt_log = |attempt: u32| {
        let first = (attempt - 1) * per_attempt;
        let taken = EventKind::Taken { worker: format!("worker {attempt}") };
        let begin = [taken, EventKind::Accepted(Acceptance::default())];
        let tokens = (first..first + per_attempt).map(|position| EventKind::Tokens {
            choice: 0,
            position,
            ids: vec![position],
            text: " word".to_owned(),
            logprobs: Vec::new(),
        });
        let kinds = begin.into_iter().chain(tokens);
        kinds.zip(0..).map(move |(kind, index)| Event { v: PROTOCOL_VERSION, attempt, index, kind })
    };
    (1..=attempts).flat_map(attempt_log).collect()
}
