//! Two hosts with a bad network between them: a round trip of 50 ms, one packet of a hundred lost, and a cut of ten
//! seconds. Streams go on.
//!
//! It takes root on Linux, and iproute2 ([`emberline_test_kit::network`]). `deploy/setup.sh tests` runs these tests
//! where it finds both, and says where it does not.

use std::time::{Duration, Instant};

use anyhow::Result;
use emberline_test_kit::bus_way::BusWay;
use emberline_test_kit::compare::with;
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::report::Report;
use emberline_test_kit::load::requests::{self, TestRequest};
use emberline_test_kit::load::{Timeline, pause};
use emberline_test_kit::nats::NatsServer;
use emberline_test_kit::network::{Network, Quality};
use emberline_test_kit::random;
use emberline_test_kit::simulated::{Endpoint, paced};
use emberline_test_kit::stack::{Options, Stack};
use futures::future::try_join_all;
use serde_json::json;

const BAD: Quality = Quality { delay: Duration::from_millis(25), loss_percent: 1 };
const STREAMS: usize = 20;
const WORDS_PER_S: u32 = 25;
/// Of the streams that are cut: they begin one after the other, and none ends before the link is whole again.
const WORDS: usize = 800;
const CUT: Duration = Duration::from_secs(10);
/// From the last stream's beginning to the cut: its worker has heard of it.
const MIDDLE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes root on Linux, and iproute2"]
async fn streams_go_on_when_the_network_between_function_and_nats_is_bad() -> Result<()> {
    let mut network = Network::start(BAD)?;
    let nats = NatsServer::start_on(network.far()).await?;
    let through = vec![network.way_to(nats.address()).await?];
    let options = Options { through, worker_host: network.far().clone(), ..simulated(0) };
    streams_go_on(&network, nats, options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes root on Linux, and iproute2"]
async fn streams_go_on_when_the_network_between_nats_and_the_worker_is_bad() -> Result<()> {
    let mut network = Network::start(BAD)?;
    let nats = NatsServer::start_on(network.near()).await?;
    let worker_through = Some(network.way_to(nats.address()).await?);
    let options = Options { worker_through, worker_host: network.far().clone(), ..simulated(0) };
    streams_go_on(&network, nats, options).await
}

/// A worker of so many words a second; 0 for as many as it can.
fn simulated(words_per_s: u32) -> Options {
    Options { way: Some(BusWay::Nats), ..paced(words_per_s, 2 * STREAMS, &[]) }
}

fn long() -> Vec<TestRequest> {
    let body = with(&Endpoint::Chat.body(WORDS, true), &json!({"stream_options": {"include_usage": true}}));
    let kinds = [
        ("long", json!({})),
        ("three long choices", json!({"n": 3})),
        ("long with log-probabilities", json!({"logprobs": true, "top_logprobs": 2})),
    ];
    kinds.map(|(name, more)| TestRequest { name, body: with(&body, &more) }).into()
}

/// `options` are those of a worker that answers at once, which says what is expected.
async fn streams_go_on(network: &Network, nats: NatsServer, options: Options) -> Result<()> {
    let mut random = random::generator()?;
    let mut stack = Stack::start_on(async move || Ok(nats), options.clone()).await?;
    let quick = stack.heartbeat(|h| h.capacity > 0).await?.worker;
    let client = Client::of(&stack);
    let short = ExpectedAnswers::learn(&client, requests::simulated()).await?;
    let long = long().into_iter().map(|request| ExpectedAnswers::learn(&client, vec![request]));
    let long = try_join_all(long).await?;
    // Or the other worker takes over what this one has not acknowledged.
    stack.wait_for_empty_queue().await?;
    let worker_args = simulated(WORDS_PER_S).worker_args;
    stack.start_worker(&Options { worker_args, ..options })?;
    stack.heartbeat(|h| h.worker != quick && h.capacity > 0).await?;

    let timeline = Timeline::default();
    let load = Load::start(&client, &short, Behaviour::patient(STREAMS), &mut random);
    load.wait_for_answers(2 * STREAMS).await?;
    load.finish().await?.conclude(&timeline)?;

    let mut answers = Vec::new();
    for expected in long.iter().cycle().take(STREAMS) {
        let load = Load::start(&client, expected, Behaviour::patient(1), &mut random);
        load.wait_for_answers(1).await?;
        // It asks for no more than this one.
        answers.push(tokio::spawn(load.finish()));
    }
    pause(MIDDLE).await;
    timeline.note("the link is cut");
    network.cut()?;
    pause(CUT).await;
    network.mend()?;
    timeline.note("the link is whole again");
    let whole_again = Instant::now();
    let mut report = Report::default();
    for answer in answers {
        report.merge(answer.await??);
    }
    println!("{:.2} s later the last stream went on", report.resumed_after(whole_again).as_secs_f64());
    report.conclude(&timeline)?;
    assert_eq!(report.streams, STREAMS);
    stack.wait_for_empty_queue().await
}
