//! The real model's workers are killed, and every answer is the one that it is without: drawn,
//! constrained, called, several choices.

use std::time::Duration;

use anyhow::Result;
use emberline_test_kit::chaos::load::{Client, Habits, Known, Load};
use emberline_test_kit::chaos::witness::Witness;
use emberline_test_kit::chaos::{Timeline, asks, pause};
use emberline_test_kit::seed;
use emberline_test_kit::stack::{Options, Stack};
use rand::RngExt as _;

const STREAMS: usize = 20;
const KILLS: usize = 5;
const WORKERS: usize = 2;
/// What has begun is in mid-stream by then.
const LONGEST_WAIT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_streams_of_the_real_model_survive_five_deaths() -> Result<()> {
    let mut random = seed::random()?;
    let options = Options::default();
    let mut stack = Stack::start().await?;
    let client = Client::of(&stack);
    let known = Known::learn(&client, asks::real()).await?;
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
    }

    let (witness, timeline) = (Witness::start(&stack.nats).await?, Timeline::default());
    let load = Load::start(&client, &known, Habits::patient(STREAMS), &mut random);
    for _ in 0..KILLS {
        load.begun(STREAMS / 4).await?;
        pause(LONGEST_WAIT.mul_f64(random.random())).await;
        let victim = random.random_range(0..WORKERS);
        stack.workers.kill(victim).await?;
        timeline.note(format!("worker {victim} killed"));
        stack.workers.start(victim)?;
    }
    let report = load.finish().await?;
    println!("{} jobs taken over", witness.takeovers());
    report.conclude(&timeline)?;
    assert!(witness.takeovers() > 0, "jobs changed hands in the middle");
    assert!(report.streams >= STREAMS, "every client had an answer");
    stack.wait_for_empty_queue().await
}
