//! A worker is cut off from NATS while its jobs run: others take them over, and what it publishes when it
//! is back changes no answer.

use std::time::Duration;

use anyhow::Result;
use emberline_test_kit::event_watcher::EventWatcher;
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::{Timeline, pause, requests};
use emberline_test_kit::proxy::FaultyProxy;
use emberline_test_kit::random;
use emberline_test_kit::stack::{Engine, Options, Stack};

const STREAMS: usize = 40;
const ITS_SHARE: usize = 10;
/// Long enough that every one of its jobs has been given to another worker.
const CUT: Duration = Duration::from_secs(10);
/// Shorter than the time after which a job goes to another worker.
const BRIEF: Duration = Duration::from_secs(1);
/// Time for what arrives late.
const AFTER: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_wire_is_cut_for_ten_seconds_is_replaced_and_comes_back() -> Result<()> {
    let mut random = random::generator()?;
    let worker_args = ["--slots", "40", "--simulated-tokens-per-s", "10"].map(str::to_owned).to_vec();
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut stack = Stack::start_with(options.clone()).await?;
    let near = stack.heartbeat(|h| h.capacity > 0).await?.worker;
    let link = FaultyProxy::start(vec![stack.nats.address()]).await?;
    stack.workers.add(&options, link.address())?;
    let far = stack.heartbeat(|h| h.worker != near && h.capacity > 0).await?.worker;
    let client = Client::of(&stack);
    let expected = ExpectedAnswers::learn(&client, requests::simulated()).await?;
    let (events, timeline) = (EventWatcher::start(&stack.nats).await?, Timeline::default());

    let load = Load::start(&client, &expected, Behaviour::patient(STREAMS), &mut random);
    events.wait_for_jobs(&far, ITS_SHARE).await?;
    load.wait_for_answers(STREAMS / 2).await?;
    link.silence();
    timeline.note("the link is silent");
    pause(CUT).await;
    let taken = events.takeovers();
    assert!(taken > 0, "its jobs went on elsewhere");
    link.restore();
    timeline.note("the link works again");
    events.wait_for_jobs(&far, ITS_SHARE).await?;
    timeline.note("the worker takes jobs again");
    pause(AFTER).await;

    for time in [BRIEF, AFTER] {
        link.close();
        timeline.note("the connection is closed");
        pause(time).await;
        link.restore();
        timeline.note("it may connect");
        events.wait_for_jobs(&far, ITS_SHARE).await?;
    }
    let report = load.finish().await?;
    println!("{taken} jobs taken over in the cut, {} in all", events.takeovers());
    report.conclude(&timeline)?;
    stack.wait_for_empty_queue().await
}
