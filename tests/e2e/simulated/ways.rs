//! The function reaches NATS on each of its ways, and clients see no difference.
//!
//! `EMBERLINE_TEST_BUS=tls`, `edge` or `secure-edge` runs the other modules on one of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use emberline_protocol::streams::Layout;
use emberline_test_kit::background::{self, PATH, wait_until_over};
use emberline_test_kit::bus_way::{BusWay, Edge};
use emberline_test_kit::nats::{NatsServer, set_up};
use emberline_test_kit::proxy::FaultyProxy;
use emberline_test_kit::simulated::{Endpoint, words};
use emberline_test_kit::sse::Reading;
use emberline_test_kit::stack::{Options, SIMULATED_MODEL, Stack};
use futures::future::try_join_all;
use serde_json::{Value, json};

const PACE: [&str; 4] = ["--simulated-tokens-per-s", "50", "--slots", "64"];

async fn nats_with_tls() -> Result<NatsServer> {
    let nats = NatsServer::start_with_tls().await?;
    set_up(&nats, &Layout::default()).await?;
    Ok(nats)
}

async fn start(way: BusWay) -> Result<Stack> {
    let options = Options { way: Some(way), ..Options::simulated(&PACE) };
    match way {
        BusWay::Tls => Stack::start_on(nats_with_tls, options).await,
        BusWay::Nats | BusWay::Edge | BusWay::SecureEdge => Stack::start_with(options).await,
    }
}

#[tokio::test]
async fn tls_carries_whole_answers_streams_and_background_responses() -> Result<()> {
    carries_everything(&start(BusWay::Tls).await?).await
}

#[tokio::test]
async fn an_edge_carries_whole_answers_streams_and_background_responses() -> Result<()> {
    carries_everything(&start(BusWay::Edge).await?).await
}

#[tokio::test]
async fn an_edge_with_tls_carries_whole_answers_streams_and_background_responses() -> Result<()> {
    carries_everything(&start(BusWay::SecureEdge).await?).await
}

async fn carries_everything(stack: &Stack) -> Result<()> {
    for endpoint in Endpoint::ALL {
        let ask = async |stream| {
            let response = endpoint.ask(stack, 20, stream, &[]).await?;
            ensure!(endpoint.read(response, stream).await? == words(20), "{endpoint:?}");
            Ok(())
        };
        try_join_all([true, false, true, false, true, false, true, false].map(ask)).await?;
    }
    let body =
        json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 30, "background": true});
    let id = background::begin(stack, &body).await?;
    let followed = Reading::new(stack.get(&format!("{PATH}/{id}?stream=true")).await?);
    ensure!(text_of(followed).await? == words(30), "followed");
    let done = wait_until_over(stack, &id).await?;
    ensure!(done["output"][0]["content"][0]["text"] == words(30), "{done}");
    a_client_that_goes_ends_its_job(stack).await
}

/// The function says so with the last message of a connection. A worker that is not told notices after 20 s.
async fn a_client_that_goes_ends_its_job(stack: &Stack) -> Result<()> {
    let mut left = Reading::new(Endpoint::Chat.ask(stack, 6000, true, &[]).await?);
    ensure!(left.advance().await?, "no token came");
    stack.heartbeat(|beat| beat.active == 1).await?;
    drop(left);
    let free = stack.heartbeat(|beat| beat.active == 0);
    tokio::time::timeout(Duration::from_secs(10), free).await.context("nobody told the worker")??;
    Ok(())
}

async fn text_of(mut reading: Reading) -> Result<String> {
    while reading.advance().await? {}
    Ok(reading.transcript.output_text())
}

#[tokio::test]
async fn a_worker_dies_behind_tls_and_behind_an_edge_and_costs_no_token() -> Result<()> {
    for way in [BusWay::Tls, BusWay::SecureEdge] {
        let mut stack = start(way).await?;
        stack.add_worker(&Options::simulated(&PACE))?;
        let mut streams = Vec::new();
        for _ in 0..10 {
            streams.push(Reading::new(Endpoint::Chat.ask(&stack, 150, true, &[]).await?));
        }
        for stream in &mut streams {
            while stream.transcript.text().len() < 50 {
                ensure!(stream.advance().await?, "the stream ended early");
            }
        }
        stack.kill_worker().await?;
        for mut stream in streams {
            while stream.advance().await? {}
            ensure!(stream.transcript.done && stream.transcript.text() == words(150), "{way:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_to_an_edge_that_breaks_costs_an_answer_no_token() -> Result<()> {
    let direct = Stack::start_with(Options::simulated(&PACE)).await?;
    let edge = Edge::start(&[direct.nats.address()], &[]).await?;
    let link = FaultyProxy::start(vec![edge.address.clone()]).await?;
    let through = Options {
        way: Some(BusWay::Nats),
        through: vec![link.address().to_owned()],
        ..Options::simulated(&PACE)
    };
    let mut stack = direct;
    stack.url = stack.add_function(&through.variable("nats_scheme", "http")).await?;
    let mut stream = Reading::new(Endpoint::Chat.ask(&stack, 200, true, &[]).await?);
    while stream.transcript.text().len() < 50 {
        ensure!(stream.advance().await?, "the stream ended early");
    }
    link.close();
    let refused = stack.chat(&Endpoint::Chat.body(5, false)).await?;
    ensure!(refused.status() == 503, "{}", refused.status());
    let refused: Value = refused.json().await?;
    ensure!(refused["error"]["code"] == "bus_unavailable", "{refused}");
    link.restore();
    while stream.advance().await? {}
    ensure!(stream.transcript.done && stream.transcript.text() == words(200), "{}", stream.transcript.text());
    Ok(())
}

#[tokio::test]
async fn an_edge_in_front_of_nothing_is_refused_and_nothing_hangs() -> Result<()> {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
    let mut stack = Stack::start_with(Options::simulated(&[])).await?;
    let through = Options { way: Some(BusWay::Edge), through: vec![nobody], ..Options::simulated(&[]) };
    stack.url = stack.add_function(&through).await?;
    let began = std::time::Instant::now();
    let refused = stack.chat(&Endpoint::Chat.body(5, false)).await?;
    ensure!(refused.status() == 503, "{}", refused.status());
    let refused: Value = refused.json().await?;
    ensure!(refused["error"]["code"] == "bus_unavailable", "{refused}");
    println!("refused after {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_name_without_look_up_and_a_wrong_certificate_are_503() -> Result<()> {
    let mut stack =
        Stack::start_on(nats_with_tls, Options { way: Some(BusWay::Tls), ..Options::simulated(&[]) }).await?;
    let port = stack.nats.address().rsplit_once(':').context("no port")?.1.to_owned();
    let tls = || Options { way: Some(BusWay::Tls), ..Options::simulated(&[]) };
    for wrong in [
        tls().variable("nats_tls_ca", ""),
        tls().variable("nats_tls_server_name", "other.emberline.test"),
        Options { through: vec![format!("localhost:{port}")], ..tls() },
    ] {
        stack.url = stack.add_function(&wrong).await?;
        let refused = stack.chat(&Endpoint::Chat.body(5, false)).await?;
        ensure!(refused.status() == 503, "{}", refused.status());
        let refused: Value = refused.json().await?;
        ensure!(refused["error"]["code"] == "bus_unavailable", "{refused}");
    }
    Ok(())
}
