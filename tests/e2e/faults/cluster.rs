//! Three nats-servers: the one that leads dies, and nothing that was accepted is lost.

use std::time::Duration;

use anyhow::Result;
use emberline_protocol::subject::{EVENTS_STREAM, JOBS_STREAM};
use emberline_test_kit::chaos::load::{Client, Habits, Known, Load};
use emberline_test_kit::chaos::{Timeline, asks, pause};
use emberline_test_kit::cluster::NatsCluster;
use emberline_test_kit::emberline::emberline;
use emberline_test_kit::seed;
use emberline_test_kit::stack::{Engine, Options, Stack};

const STREAMS: usize = 60;
const WORKERS: usize = 3;
/// How long a dead server stays away.
const AWAY: Duration = Duration::from_secs(3);

async fn replicated() -> Result<NatsCluster> {
    let nats = NatsCluster::start().await?;
    emberline(&nats, &["nats", "setup", "--replicas", "3", "--storage", "file", "--yes"]).await?;
    Ok(nats)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_three_servers_dies_twice_and_nothing_is_lost() -> Result<()> {
    let mut random = seed::random()?;
    let worker_args = ["--slots", "40", "--simulated-tokens-per-s", "10"].map(str::to_owned).to_vec();
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut stack = Stack::start_on(replicated, options.clone()).await?;
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
    }
    let client = Client::of(&stack);
    let known = Known::learn(&client, asks::simulated()).await?;
    let timeline = Timeline::default();

    // What comes while there is no leader is put off, at once and not for ever.
    let habits = Habits { come_again: true, ..Habits::patient(STREAMS) };
    let load = Load::start(&client, &known, habits, &mut random);
    for stream in [EVENTS_STREAM, JOBS_STREAM] {
        load.begun(STREAMS).await?;
        let leader = stack.nats.leader_of(stream).await?;
        stack.nats.kill(leader)?;
        timeline.note(format!("nats-server {leader} killed, which led {stream}"));
        pause(AWAY).await;
        stack.nats.start_again(leader).await?;
        timeline.note(format!("nats-server {leader} started"));
        for stream in [EVENTS_STREAM, JOBS_STREAM] {
            stack.nats.wait_until_whole(stream).await?;
        }
        timeline.note("all replicas are up to date");
    }
    load.begun(STREAMS).await?;
    load.finish().await?.conclude(&timeline)?;
    stack.wait_for_empty_queue().await
}
