//! Time to fold a stored event log, as a worker does that takes a job over.

use std::hint::black_box;

use criterion::Criterion;
use emberline_protocol::chunk::{Chunk, merge};
use emberline_protocol::event::{Acceptance, EventKind};
use emberline_protocol::log::EventLog;

/// Tokens of every log.
const TOKENS: u32 = 2048;
/// Tokens of a chunk.
const CHUNK: usize = 32;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("EventLog::read, 2048 tokens in chunks of 32");
    for (name, attempts) in [("one attempt", 1), ("four attempts", 4)] {
        let stored = stored_log(attempts);
        assert_eq!(fold(&stored).choices().first().map(|choice| choice.token_count()), Some(TOKENS));
        group.bench_function(name, |bencher| bencher.iter(|| fold(black_box(&stored))));
    }
    group.finish();
    criterion.final_summary();
}

fn fold(stored: &[Chunk]) -> EventLog {
    let mut log = EventLog::new(1, false);
    log.read(stored, |_, _, _| {});
    log
}

/// A log of one choice in which `attempts` workers write equally many tokens, one after the other.
fn stored_log(attempts: u32) -> Vec<Chunk> {
    let per_attempt = TOKENS / attempts;
    let attempt_log = |attempt: u32| {
        let first = (attempt - 1) * per_attempt;
        let taken = EventKind::Taken { worker: format!("worker {attempt}"), ack: None };
        let begin = [taken, EventKind::Accepted(Acceptance::default())];
        let tokens = (first..first + per_attempt).map(|position| EventKind::Tokens {
            choice: 0,
            position,
            ids: vec![position],
            text: " word".to_owned(),
            logprobs: Vec::new(),
        });
        let tokens: Vec<EventKind> = tokens.collect();
        let mut chunks = vec![Chunk::new(attempt, 0, begin.into())];
        for events in tokens.chunks(CHUNK) {
            let mut chunk = Chunk::new(attempt, chunks.last().map_or(0, |last| last.end), events.to_vec());
            chunk.events.clear();
            events.iter().cloned().for_each(|event| merge(&mut chunk.events, event));
            chunks.push(chunk);
        }
        chunks
    };
    (1..=attempts).flat_map(attempt_log).collect()
}
