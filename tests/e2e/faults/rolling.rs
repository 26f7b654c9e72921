//! Workers are started and stopped under load, and no answer is lost.

use std::time::Instant;

use anyhow::Result;
use emberline_test_kit::event_watcher::EventWatcher;
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::{Timeline, requests};
use emberline_test_kit::random;
use emberline_test_kit::stack::{Engine, Options, Stack};

/// Simulated workers whose answers last up to 4 s, and which wait 1 s for them when they are told to stop.
fn options(slots: u32) -> Options {
    let args = format!("--slots {slots} --simulated-tokens-per-s 20 --drain-s 1");
    let worker_args = args.split(' ').map(str::to_owned).collect();
    Options { engine: Engine::Simulated, worker_args, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_workers_under_load_fails_nothing() -> Result<()> {
    const WORKERS: usize = 3;
    let (options, mut random) = (options(30), random::generator()?);
    let mut stack = Stack::start_with(options.clone()).await?;
    let mut ids = vec![stack.heartbeat(|h| h.capacity > 0).await?.worker];
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
        ids.push(stack.heartbeat(|h| h.capacity > 0 && !ids.contains(&h.worker)).await?.worker);
    }
    let client = Client::of(&stack);
    let expected = ExpectedAnswers::learn(&client, requests::simulated()).await?;
    let (events, timeline) = (EventWatcher::start(&stack.nats).await?, Timeline::default());

    let load = Load::start(&client, &expected, Behaviour::patient(60), &mut random);
    for old in 0..WORKERS {
        load.wait_for_answers(30).await?;
        let new = stack.add_worker(&options)?;
        ids.push(stack.heartbeat(|h| h.capacity > 0 && !ids.contains(&h.worker)).await?.worker);
        timeline.note(format!("worker {new} serves"));
        stack.workers.terminate(old)?;
        timeline.note(format!("worker {old} told to stop"));
        let status = stack.workers.exit(old).await?;
        timeline.note(format!("worker {old} ended"));
        assert!(status.success(), "{status}");
    }
    load.wait_for_answers(30).await?;
    let report = load.finish().await?;
    println!("{} jobs requeued, {} taken over", events.requeued(), events.takeovers());
    report.conclude(&timeline)?;
    assert!(events.requeued() > 0, "jobs changed hands in the middle");
    stack.wait_for_empty_queue().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_started_takes_its_share_and_one_that_is_stopped_gives_it_back() -> Result<()> {
    const SLOTS: u32 = 8;
    let (options, mut random) = (options(SLOTS), random::generator()?);
    let mut stack = Stack::start_with(options.clone()).await?;
    let client = Client::of(&stack);
    let expected = ExpectedAnswers::learn(&client, requests::simulated()).await?;
    let timeline = Timeline::default();
    // More than two workers have room for.
    let load = Load::start(&client, &expected, Behaviour::patient(24), &mut random);
    let first = stack.heartbeat(|h| h.active == SLOTS).await?.worker;

    let started = Instant::now();
    let new = stack.add_worker(&options)?;
    stack.heartbeat(|h| h.worker != first && h.active == SLOTS).await?;
    let took = started.elapsed().as_secs_f64();
    timeline.note(format!("worker {new} is full, {took:.2} s after its start"));

    load.wait_for_answers(8).await?;
    stack.workers.terminate(new)?;
    timeline.note(format!("worker {new} told to stop"));
    assert!(stack.workers.exit(new).await?.success());
    load.wait_for_answers(8).await?;
    load.finish().await?.conclude(&timeline)?;
    stack.wait_for_empty_queue().await
}
