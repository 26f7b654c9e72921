//! Workers are killed at random, and clients notice no more than a pause.
//!
//! CHAOS_SECONDS says for how long (15 by default, a minute in `make chaos`), EMBERLINE_TEST_SEED repeats a run's
//! choices.

use std::time::{Duration, Instant};

use anyhow::Result;
use emberline_test_kit::event_watcher::EventWatcher;
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::{Timeline, pause, requests};
use emberline_test_kit::random;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_survive_a_death_every_two_seconds() -> Result<()> {
    let lasts = random::seconds("CHAOS_SECONDS", 15)?;
    let mut random = random::generator()?;
    // With one worker gone, the others have room for all streams.
    let worker_args = ["--slots", "80", "--simulated-tokens-per-s", "10"].map(str::to_owned).to_vec();
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut stack = Stack::start_with(options.clone()).await?;
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
    }
    let client = Client::of(&stack);
    let expected = ExpectedAnswers::learn(&client, requests::simulated()).await?;

    let (events, timeline) = (EventWatcher::start(&stack.nats).await?, Timeline::default());
    let load = Load::start(&client, &expected, Behaviour::patient(STREAMS), &mut random);
    load.wait_for_answers(STREAMS / 2).await?;
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        kill_one(&mut stack, &mut random, &timeline).await?;
    }
    let report = load.finish().await?;
    println!("{} jobs taken over", events.takeovers());
    report.conclude(&timeline)?;
    assert!(events.takeovers() > 0, "jobs changed hands in the middle");
    assert!(report.streams >= STREAMS, "every client had an answer");
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
