//! `/health` and `/ready`.

use std::time::{Duration, Instant};

use emberline_test_kit::nats::NatsServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Relay, Worker, job};

/// Status and text of a probe.
async fn probe(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn wait_for(address: &str, path: &str, expected: (u16, &str)) {
    let started = Instant::now();
    loop {
        let (status, text) = probe(address, path).await;
        if (status, text.as_str()) == expected {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{path}: {status} {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where the worker says that it answers.
async fn address(worker: &Worker) -> String {
    let started = Instant::now();
    loop {
        let log = worker.log();
        if let Some((_, rest)) = log.split_once("answering probes at http://") {
            return rest.split_whitespace().next().unwrap().to_owned();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const LISTEN: [&str; 2] = ["--http-listen", "127.0.0.1:0"];
const OK: (u16, &str) = (200, "ok\n");

#[tokio::test]
async fn a_worker_is_ready_while_it_takes_jobs() {
    let mut nats = NatsServer::start().await.unwrap();
    let worker = Worker::start(&nats, &[&LISTEN[..], &["--slots", "2"]].concat());
    let address = address(&worker).await;
    wait_for(&address, "/ready", OK).await;
    assert_eq!(probe(&address, "/other").await.0, 404);

    nats.stop();
    wait_for(&address, "/ready", (503, "not connected to NATS\n")).await;
    wait_for(&address, "/health", OK).await;
    nats.start_again().await.unwrap();
    wait_for(&address, "/ready", OK).await;

    let relay = Relay::new(&nats).await;
    let mut events = relay.send(&job(1, 30_000)).await;
    events.next_tokens(1).await;
    worker.signal("TERM");
    wait_for(&address, "/ready", (503, "draining: it takes no more jobs\n")).await;
    wait_for(&address, "/health", OK).await;
}

#[tokio::test]
async fn a_worker_that_waits_for_nats_lives_and_is_not_ready() {
    let worker =
        Worker::start_with(&[&["--nats", "127.0.0.1:1", "--engine", "simulated"], &LISTEN[..]].concat(), "");
    let address = address(&worker).await;
    assert_eq!(probe(&address, "/health").await, (200, "ok\n".to_owned()));
    assert_eq!(probe(&address, "/ready").await, (503, "not connected to NATS\n".to_owned()));
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut worker = Worker::start_with(&["--engine", "simulated", "--http-listen", &address], "");
    assert_eq!(worker.exit().await.code(), Some(1));
    let log = worker.log();
    assert!(log.contains(&format!("can't listen on {address} for --http-listen")), "{log}");
}
