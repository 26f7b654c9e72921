//! Workers come and go while clients ask: each restart, each start and each stop loses nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use emberline_test_kit::chaos::load::{Client, Habits, Known, Load};
use emberline_test_kit::chaos::witness::Witness;
use emberline_test_kit::chaos::{Timeline, asks};
use emberline_test_kit::seed;
use emberline_test_kit::stack::{Engine, Options, Stack};

/// Simulated workers whose answers last up to 4 s, and which wait 1 s for them when they are to end.
fn options(slots: u32) -> Options {
    let args = format!("--slots {slots} --simulated-tokens-per-s 20 --drain-s 1");
    let worker_args = args.split(' ').map(str::to_owned).collect();
    Options { engine: Engine::Simulated, worker_args, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_workers_under_load_fails_nothing() -> Result<()> {
    const WORKERS: usize = 3;
    let (options, mut random) = (options(30), seed::random()?);
    let mut stack = Stack::start_with(options.clone()).await?;
    let mut ids = vec![stack.heartbeat(|h| h.capacity > 0).await?.worker];
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
        ids.push(stack.heartbeat(|h| h.capacity > 0 && !ids.contains(&h.worker)).await?.worker);
    }
    let client = Client::of(&stack);
    let known = Known::learn(&client, asks::simulated()).await?;
    let (witness, timeline) = (Witness::start(&stack.nats).await?, Timeline::default());

    let load = Load::start(&client, &known, Habits::patient(60), &mut random);
    for old in 0..WORKERS {
        load.begun(30).await?;
        let new = stack.add_worker(&options)?;
        ids.push(stack.heartbeat(|h| h.capacity > 0 && !ids.contains(&h.worker)).await?.worker);
        timeline.note(format!("worker {new} serves"));
        stack.workers.terminate(old)?;
        timeline.note(format!("worker {old} told to stop"));
        let status = stack.workers.exit(old).await?;
        timeline.note(format!("worker {old} ended"));
        assert!(status.success(), "{status}");
    }
    load.begun(30).await?;
    let report = load.finish().await?;
    println!("{} jobs handed back, {} taken over", witness.handed_back(), witness.takeovers());
    report.conclude(&timeline)?;
    assert!(witness.handed_back() > 0, "jobs changed hands in the middle");
    // Nothing died, so nothing had to be missed first.
    assert!(report.longest_gap() < Duration::from_secs(2), "{:?}", report.longest_gap());
    stack.wait_for_empty_queue().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_started_takes_its_share_and_one_that_is_stopped_gives_it_back() -> Result<()> {
    const SLOTS: u32 = 8;
    let (options, mut random) = (options(SLOTS), seed::random()?);
    let mut stack = Stack::start_with(options.clone()).await?;
    let client = Client::of(&stack);
    let known = Known::learn(&client, asks::simulated()).await?;
    let timeline = Timeline::default();
    // More than two workers have room for.
    let load = Load::start(&client, &known, Habits::patient(24), &mut random);
    let first = stack.heartbeat(|h| h.active == SLOTS).await?.worker;

    let started = Instant::now();
    let new = stack.add_worker(&options)?;
    stack.heartbeat(|h| h.worker != first && h.active == SLOTS).await?;
    let took = started.elapsed();
    timeline.note(format!("worker {new} is full, {:.2} s after its start", took.as_secs_f64()));
    assert!(took < Duration::from_secs(2), "{took:?}");

    load.begun(8).await?;
    stack.workers.terminate(new)?;
    timeline.note(format!("worker {new} told to stop"));
    assert!(stack.workers.exit(new).await?.success());
    load.begun(8).await?;
    load.finish().await?.conclude(&timeline)?;
    stack.wait_for_empty_queue().await
}
