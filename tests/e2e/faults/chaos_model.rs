//! Workers with the real model are killed, and every answer is the same as without: sampled, constrained,
//! with tool calls, with several choices.

use std::time::Duration;

use anyhow::Result;
use emberline_test_kit::event_watcher::EventWatcher;
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::{Timeline, pause, requests};
use emberline_test_kit::random;
use emberline_test_kit::stack::{Options, Stack};
use rand::RngExt as _;

const STREAMS: usize = 20;
const KILLS: usize = 5;
const WORKERS: usize = 2;
/// What has begun is in mid-stream by then.
const LONGEST_WAIT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_streams_of_the_real_model_survive_five_deaths() -> Result<()> {
    let mut random = random::generator()?;
    let options = Options::default();
    let mut stack = Stack::start().await?;
    let client = Client::of(&stack);
    let expected = ExpectedAnswers::learn(&client, requests::real()).await?;
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
    }

    let (events, timeline) = (EventWatcher::start(&stack.nats).await?, Timeline::default());
    let load = Load::start(&client, &expected, Behaviour::patient(STREAMS), &mut random);
    for _ in 0..KILLS {
        load.wait_for_answers(STREAMS / 4).await?;
        pause(LONGEST_WAIT.mul_f64(random.random())).await;
        let victim = random.random_range(0..WORKERS);
        stack.workers.kill(victim).await?;
        timeline.note(format!("worker {victim} killed"));
        stack.workers.start(victim)?;
    }
    let report = load.finish().await?;
    println!("{} jobs taken over", events.takeovers());
    report.conclude(&timeline)?;
    assert!(events.takeovers() > 0, "jobs changed hands in the middle");
    assert!(report.streams >= STREAMS, "every client had an answer");
    stack.wait_for_empty_queue().await
}
