//! A worker is cut off from NATS while its jobs run: others take them over, and what it says when
//! it is back disturbs nobody.

use std::time::Duration;

use anyhow::Result;
use emberline_test_kit::chaos::load::{Client, Habits, Known, Load};
use emberline_test_kit::chaos::witness::Witness;
use emberline_test_kit::chaos::{Timeline, asks, pause};
use emberline_test_kit::cut::Cut;
use emberline_test_kit::seed;
use emberline_test_kit::stack::{Engine, Options, Stack};

const STREAMS: usize = 40;
const ITS_SHARE: usize = 10;
const CUT: Duration = Duration::from_secs(10);
/// Shorter than the time after which a job goes to another worker.
const BRIEF: Duration = Duration::from_secs(1);
/// For everything that comes late.
const AFTER: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_wire_is_cut_for_ten_seconds_is_replaced_and_comes_back() -> Result<()> {
    let mut random = seed::random()?;
    let worker_args = ["--slots", "40", "--simulated-tokens-per-s", "10"].map(str::to_owned).to_vec();
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut stack = Stack::start_with(options.clone()).await?;
    let near = stack.heartbeat(|h| h.capacity > 0).await?.worker;
    let wire = Cut::start(vec![stack.nats.address()]).await?;
    stack.workers.add(&options, wire.address())?;
    let far = stack.heartbeat(|h| h.worker != near && h.capacity > 0).await?.worker;
    let client = Client::of(&stack);
    let known = Known::learn(&client, asks::simulated()).await?;
    let (witness, timeline) = (Witness::start(&stack.nats).await?, Timeline::default());

    let load = Load::start(&client, &known, Habits::patient(STREAMS), &mut random);
    witness.takes(&far, ITS_SHARE).await?;
    load.begun(STREAMS / 2).await?;
    wire.cut();
    timeline.note("the wire is cut");
    pause(CUT).await;
    let taken = witness.takeovers();
    assert!(taken > 0, "its jobs went on elsewhere");
    wire.heal();
    timeline.note("the wire is whole");
    witness.takes(&far, ITS_SHARE).await?;
    timeline.note("the worker takes jobs again");
    pause(AFTER).await;

    for time in [BRIEF, AFTER] {
        wire.close();
        timeline.note("the connection is closed");
        pause(time).await;
        wire.heal();
        timeline.note("it may connect");
        witness.takes(&far, ITS_SHARE).await?;
    }
    let report = load.finish().await?;
    println!("{taken} jobs taken over in the cut, {} in all", witness.takeovers());
    report.conclude(&timeline)?;
    stack.wait_for_empty_queue().await
}
