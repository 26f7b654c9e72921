//! Workers are killed at random, and no client notices more than a short silence.
//!
//! CHAOS_SECONDS says for how long (`make chaos`: a minute), EMBERLINE_TEST_SEED repeats a run's
//! choices.

use std::time::{Duration, Instant};

use anyhow::Result;
use emberline_test_kit::chaos::load::{Client, Habits, Known, Load};
use emberline_test_kit::chaos::witness::Witness;
use emberline_test_kit::chaos::{Timeline, asks, pause};
use emberline_test_kit::seed;
use emberline_test_kit::stack::{Engine, Options, Stack};
use rand::RngExt as _;
use rand::rngs::StdRng;

/// As many streams are kept going with the simulated engine.
const STREAMS: usize = 200;
const WORKERS: usize = 4;
/// From one death to the next.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a dead worker stays away at most; less than [`INTERVAL`], so that all are there again.
const AWAY: Duration = Duration::from_millis(1500);

/// Noticed within 3 s, and then a slot, a log to read and a prompt to compute.
const LONGEST_GAP: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_survive_a_death_every_two_seconds() -> Result<()> {
    let lasts = seed::seconds("CHAOS_SECONDS", 20)?;
    let mut random = seed::random()?;
    // With one worker gone, the others have room for all streams.
    let worker_args = ["--slots", "80", "--simulated-tokens-per-s", "10"].map(str::to_owned).to_vec();
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut stack = Stack::start_with(options.clone()).await?;
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
    }
    let client = Client::of(&stack);
    let known = Known::learn(&client, asks::simulated()).await?;

    let (witness, timeline) = (Witness::start(&stack.nats).await?, Timeline::default());
    let load = Load::start(&client, &known, Habits::patient(STREAMS), &mut random);
    load.begun(STREAMS / 2).await?;
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        kill_one(&mut stack, &mut random, &timeline).await?;
    }
    let report = load.finish().await?;
    println!("{} jobs taken over", witness.takeovers());
    report.conclude(&timeline)?;
    assert!(witness.takeovers() > 0, "jobs changed hands in the middle");
    assert!(report.streams >= STREAMS, "every client had an answer");
    assert!(report.longest_gap() < LONGEST_GAP, "{:?}", report.longest_gap());
    stack.wait_for_empty_queue().await
}

async fn kill_one(stack: &mut Stack, random: &mut StdRng, timeline: &Timeline) -> Result<()> {
    let victim = random.random_range(0..WORKERS);
    stack.workers.kill(victim).await?;
    timeline.note(format!("worker {victim} killed"));
    let away = AWAY.mul_f64(random.random());
    pause(away).await;
    stack.workers.start(victim)?;
    timeline.note(format!("worker {victim} started"));
    pause(INTERVAL - away).await;
    Ok(())
}
