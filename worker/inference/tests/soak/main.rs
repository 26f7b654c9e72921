//! Mixed random load on the real engine with the real model: no block of the cache is lost, memory
//! stays flat, and every answer is what it is when its job runs alone.
//!
//! `make soak` runs it for ten minutes (SOAK_SECONDS), `make test` for a quarter of one. SOAK_SEED
//! repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

mod answer;
mod load;

use std::collections::HashMap;
use std::fmt::Debug;
use std::str::FromStr;
use std::time::{Duration, Instant};

use emberline_inference::bench::resident;
use emberline_inference::device::ComputeDevice;
use emberline_inference::engine::Engine;
use emberline_inference::engine::inference::{self, CacheSize, InferenceEngine, LoadOptions};
use emberline_inference::speculation::Speculation;
use emberline_protocol::event::EventKind;
use emberline_protocol::subject::JobId;
use emberline_test_kit::paths::model_path;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use answer::Answer;
use load::{Ask, pick};

const DEFAULT_SECONDS: u64 = 15;
/// Sequences at once.
const SLOTS: usize = 12;
/// Jobs that run or wait at most; more than there are slots for.
const JOBS: usize = 20;
/// Steps at least, however slow the machine is; and at most, if the cache was never too small.
const STEPS: u64 = 150;
const MOST_STEPS: u64 = 3000;
/// Blocks of the cache beyond those of the longest job.
const SPARE_BLOCKS: usize = 2;
/// Of so many different jobs one is long. A cache for the longest is still too small for what runs beside it.
const LONG: usize = 5;
/// One of so many jobs is cancelled, after up to so many steps.
const CANCELLED: usize = 6;
const CANCEL_WITHIN: u32 = 25;
const PREFILL_BUDGET: usize = 96;
/// What memory may grow by from the second quarter to the last, in which nothing new is met.
const GROWTH: u64 = 24 << 20;

fn number<T: FromStr<Err: Debug>>(variable: &str, default: T) -> T {
    std::env::var(variable)
        .map_or(default, |value| value.parse().unwrap_or_else(|e| panic!("{variable}: {e:?}")))
}

fn engine(blocks: usize, speculation: Speculation) -> InferenceEngine {
    let options = LoadOptions {
        slots: Some(SLOTS),
        prefill_budget: Some(PREFILL_BUDGET),
        cache: CacheSize::Blocks(blocks),
        speculation,
        ..LoadOptions::new(model_path().unwrap(), "soak", ComputeDevice::cpu())
    };
    inference::load(&options).unwrap()
}

fn submit(engine: &mut InferenceEngine, ask: &Ask, id: JobId) -> UnboundedReceiver<EventKind> {
    let (events, receiver) = unbounded_channel();
    let prepared =
        engine.preprocessor().prepare(ask.job(id), Instant::now()).expect("a job that can be served");
    engine.submit(prepared, events);
    receiver
}

/// Each job alone, one token a step, nothing of it in the cache.
fn solo(asks: &[Ask]) -> Vec<Answer> {
    let mut engine = engine(1024, Speculation::Off);
    let answers = asks.iter().map(|ask| {
        let mut events = submit(&mut engine, ask, JobId::from_random(1));
        while engine.has_work() {
            engine.step().unwrap();
        }
        engine.flush().unwrap();
        engine.clear_prefix_cache();
        let mut answer = Answer::default();
        assert!(answer.read(&mut events), "a job alone comes to its end");
        answer
    });
    answers.collect()
}

/// A job under way.
struct Running {
    ask: usize,
    events: UnboundedReceiver<EventKind>,
    answer: Answer,
    /// After how many steps it is cancelled.
    cancel_in: Option<u32>,
}

#[derive(Debug, Default)]
struct Tally {
    submitted: usize,
    completed: usize,
    cancelled: usize,
    tokens: u64,
}

struct Soak<'a> {
    engine: InferenceEngine,
    asks: &'a [Ask],
    alone: &'a [Answer],
    running: HashMap<JobId, Running>,
    tally: Tally,
}

impl Soak<'_> {
    fn submit(&mut self, random: &mut StdRng) {
        let id = JobId::from_random(random.random());
        let ask = random.random_range(0..self.asks.len());
        self.tally.submitted += 1;
        let is_cancelled = self.tally.submitted.is_multiple_of(CANCELLED);
        let cancel_in = is_cancelled.then(|| random.random_range(0..CANCEL_WITHIN));
        let events = submit(&mut self.engine, &self.asks[ask], id.clone());
        self.running.insert(id, Running { ask, events, answer: Answer::default(), cancel_in });
    }

    fn step(&mut self) {
        self.engine.step().unwrap();
        self.cancel();
        self.read();
    }

    /// Takes in what has come; complete answers are compared.
    fn read(&mut self) {
        let (asks, alone, tally) = (self.asks, self.alone, &mut self.tally);
        self.running.retain(|_, Running { ask, events, answer, .. }| {
            let complete = answer.read(events);
            if complete {
                assert!(*answer == alone[*ask], "{:?}: {answer:?}, but alone {:?}", asks[*ask], alone[*ask]);
                tally.completed += 1;
                tally.tokens += u64::from(answer.completion_tokens.unwrap_or(0));
            }
            !complete
        });
    }

    fn cancel(&mut self) {
        let mut due = Vec::new();
        for (id, running) in &mut self.running {
            match &mut running.cancel_in {
                Some(0) => due.push(id.clone()),
                Some(steps) => *steps -= 1,
                None => {}
            }
        }
        for id in due {
            let Some(mut running) = self.running.remove(&id) else { continue };
            if self.engine.cancel(&id).is_none() {
                // It has come to its end, but its events have not come here.
                self.running.insert(id, Running { cancel_in: None, ..running });
                continue;
            }
            self.engine.flush().unwrap();
            running.answer.read(&mut running.events);
            let whole = &self.alone[running.ask];
            assert!(running.answer.begins(whole), "cancelled: {:?}, but alone {whole:?}", running.answer);
            self.tally.cancelled += 1;
        }
    }
}

#[test]
fn mixed_random_load_leaks_nothing_and_changes_no_answer() {
    let seconds = number("SOAK_SECONDS", DEFAULT_SECONDS);
    let seed = number("SOAK_SEED", rand::random::<u64>());
    let mut random = StdRng::seed_from_u64(seed);
    let distinct = usize::try_from(seconds.clamp(10, 150)).unwrap();
    println!("SOAK_SEED={seed} SOAK_SECONDS={seconds}, {distinct} different jobs");
    let asks: Vec<Ask> = (0..distinct).map(|number| Ask::random(&mut random, number % LONG == 0)).collect();
    let alone = solo(&asks);

    // Enough for the longest job and a little more: too little for all that may run.
    let most = asks.iter().zip(&alone).map(|(ask, answer)| ask.blocks(answer.prompt_tokens)).max().unwrap();
    let engine = engine(most + SPARE_BLOCKS, Speculation::PromptLookup);
    let mut soak =
        Soak { engine, asks: &asks, alone: &alone, running: HashMap::new(), tally: Tally::default() };
    let (began, whole) = (Instant::now(), Duration::from_secs(seconds));
    let mut memory: Vec<(Duration, u64)> = Vec::new();
    let mut next_sample = Duration::ZERO;
    let mut jobs = JOBS;
    loop {
        let (counts, stats) = (soak.engine.counts(), soak.engine.stats());
        let is_over = began.elapsed() >= whole && counts.steps >= STEPS;
        if is_over && (stats.scheduler.preemptions > 0 || counts.steps >= MOST_STEPS) {
            break;
        }
        let now = began.elapsed();
        if now >= next_sample {
            memory.push((now, resident().unwrap_or(0)));
            next_sample += whole / 40;
        }
        // Full, half empty, almost idle.
        if is_over {
            // It was never crowded so far.
            jobs = JOBS;
        } else if random.random_bool(0.01) {
            jobs = *pick(&mut random, &[1, JOBS / 2, JOBS, JOBS]);
        }
        while soak.running.len() < jobs {
            soak.submit(&mut random);
        }
        soak.step();
    }
    while soak.engine.has_work() {
        soak.step();
    }
    soak.engine.flush().unwrap();
    soak.read();
    report(&soak, &memory, began.elapsed());
    assert!(soak.running.is_empty(), "jobs without an end");
    assert_eq!(soak.engine.stats().scheduler.blocks_used, 0, "blocks were lost");
    assert!(
        soak.engine.stats().scheduler.preemptions > 0,
        "the pool was never too small: this run shows nothing of that"
    );
    assert!(soak.tally.completed > 0 && soak.tally.cancelled > 0, "{:?}", soak.tally);
    let quarter = |n: usize| &memory[memory.len() * n / 4..memory.len() * (n + 1) / 4];
    let most = |samples: &[(Duration, u64)]| samples.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    let (early, late) = (most(quarter(1)), most(quarter(3)));
    assert!(late <= early + GROWTH, "memory grew from {early} to {late} bytes");
}

fn report(soak: &Soak<'_>, memory: &[(Duration, u64)], took: Duration) {
    let Tally { completed, cancelled, tokens, .. } = soak.tally;
    println!(
        "{completed} answers equal to their solo runs, {cancelled} jobs cancelled, {tokens} tokens in {:.0} s; \
         cache of {} blocks, {} preemptions, {:?}",
        took.as_secs_f64(),
        soak.engine.stats().scheduler.blocks_total,
        soak.engine.stats().scheduler.preemptions,
        soak.engine.counts()
    );
    let series = memory.iter().map(|(at, bytes)| format!("{:.0}s {}", at.as_secs_f64(), bytes >> 20));
    println!("resident MiB: {}", series.collect::<Vec<_>>().join(", "));
}
