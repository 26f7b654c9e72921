//! The leader of three nats-servers dies, and nothing that was accepted is lost.

use std::time::Duration;

use anyhow::Result;
use emberline_protocol::subject::{EVENTS_STREAM, JOBS_STREAM};
use emberline_test_kit::cli::emberline;
use emberline_test_kit::cluster::NatsCluster;
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::{Timeline, pause, requests};
use emberline_test_kit::random;
use emberline_test_kit::stack::{Engine, Options, Stack};
use emberline_test_kit::wait;

const STREAMS: usize = 60;
const WORKERS: usize = 3;
/// How long a dead server stays away.
const AWAY: Duration = Duration::from_secs(3);

async fn replicated() -> Result<NatsCluster> {
    let nats = NatsCluster::start().await?;
    // Servers that are still connecting to each other may lose a request, and the command gives up then.
    wait::until("the streams are made", async || {
        let made =
            emberline(&nats, &["nats", "setup", "--replicas", "3", "--storage", "file", "--yes"]).await;
        Ok(made.inspect_err(|error| println!("once more: {error}")).is_ok())
    })
    .await?;
    Ok(nats)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_three_servers_dies_twice_and_nothing_is_lost() -> Result<()> {
    let mut random = random::generator()?;
    let worker_args = ["--slots", "40", "--simulated-tokens-per-s", "10"].map(str::to_owned).to_vec();
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut stack = Stack::start_on(replicated, options.clone()).await?;
    for _ in 1..WORKERS {
        stack.add_worker(&options)?;
    }
    let client = Client::of(&stack);
    let expected = ExpectedAnswers::learn(&client, requests::simulated()).await?;
    let timeline = Timeline::default();

    // Requests that come while there is no leader are refused, and tried again.
    let behaviour = Behaviour { retry: true, ..Behaviour::patient(STREAMS) };
    let load = Load::start(&client, &expected, behaviour, &mut random);
    for stream in [EVENTS_STREAM, JOBS_STREAM] {
        load.wait_for_answers(STREAMS).await?;
        let leader = stack.nats.leader_of(stream).await?;
        stack.nats.kill(leader)?;
        timeline.note(format!("nats-server {leader} killed, which led {stream}"));
        pause(AWAY).await;
        stack.nats.start_again(leader).await?;
        timeline.note(format!("nats-server {leader} started"));
        for stream in [EVENTS_STREAM, JOBS_STREAM] {
            stack.nats.wait_for_replicas(stream).await?;
        }
        timeline.note("all replicas are up to date");
    }
    load.wait_for_answers(STREAMS).await?;
    load.finish().await?.conclude(&timeline)?;
    stack.wait_for_empty_queue().await
}
