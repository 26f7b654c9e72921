//! What a model says it takes at most is more than all it ever takes: mixed random load on the real
//! engine with the real model, the number of slots and the cache that nobody has set.
//!
//! Alone in its file: it measures the whole process. `make soak` runs it for ten minutes
//! (SOAK_SECONDS), `make test` for a quarter of one.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

#[path = "soak/load.rs"]
#[allow(dead_code)] // what the soak needs besides
mod load;

use std::time::{Duration, Instant};

use emberline_inference::bench::resident;
use emberline_inference::device::ComputeDevice;
use emberline_inference::engine::Engine;
use emberline_inference::engine::inference::{self, InferenceEngine, LoadOptions};
use emberline_protocol::event::EventKind;
use emberline_protocol::subject::JobId;
use emberline_test_kit::paths::model_path;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use load::Ask;

const DEFAULT_SECONDS: u64 = 15;
/// Jobs that run or wait; more than there are slots for.
const JOBS: usize = 48;
/// What a worker of a model with 135 million weights may take.
const SMALL: u64 = 1 << 30;

fn submit(engine: &mut InferenceEngine, random: &mut StdRng) -> UnboundedReceiver<EventKind> {
    let (events, receiver) = unbounded_channel();
    let is_long = random.random_bool(0.1);
    let job = Ask::random(random, is_long).job(JobId::from_random(random.random()));
    let prepared = engine.preprocessor().prepare(job, Instant::now()).expect("a job that can be served");
    engine.submit(prepared, events);
    receiver
}

/// Whether nothing more can come.
fn has_ended(events: &mut UnboundedReceiver<EventKind>) -> bool {
    while let Ok(kind) = events.try_recv() {
        assert!(!matches!(kind, EventKind::Error(_)), "a job failed: {kind:?}");
        if matches!(kind, EventKind::Done { .. }) {
            return true;
        }
    }
    false
}

#[test]
fn an_engine_takes_no_more_than_it_says() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(DEFAULT_SECONDS, |text| text.parse().unwrap());
    let mut random = StdRng::seed_from_u64(rand::random());
    let options = LoadOptions::new(model_path().unwrap(), "soak", ComputeDevice::cpu());
    let mut engine = inference::load(&options).unwrap();
    let at_most = engine.memory().expect("an engine that computes here knows what it takes");
    let mut running: Vec<UnboundedReceiver<EventKind>> = Vec::new();
    let (began, whole) = (Instant::now(), Duration::from_secs(seconds));
    let (mut largest, mut answers) = (0, 0);
    while began.elapsed() < whole {
        while running.len() < JOBS {
            running.push(submit(&mut engine, &mut random));
        }
        engine.step().unwrap();
        let before = running.len();
        running.retain_mut(|events| !has_ended(events));
        answers += before - running.len();
        // Anywhere but on Linux nothing tells.
        largest = resident().unwrap_or(0).max(largest);
    }
    let tokens = engine.counts().rows;
    println!(
        "{answers} answers, {tokens} tokens computed, cache of {} blocks; MiB: {} at most, {} said",
        engine.stats().scheduler.blocks_total,
        largest >> 20,
        at_most >> 20
    );
    assert!(answers > 0);
    assert!(largest <= at_most, "{largest} bytes, but at most {at_most} were said");
    assert!(at_most <= SMALL, "{at_most} bytes for a small model");
}
