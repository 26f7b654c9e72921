//! Starting, draining, dying, and losing NATS.

use std::time::Duration;

use async_nats::jetstream::consumer::{FromConsumer, PullConsumer, pull};
use emberline_protocol::control::Control;
use emberline_protocol::event::EventKind;
use emberline_protocol::lane::Lane;
use emberline_protocol::streams::{Layout, Storage};
use emberline_protocol::subject;
use emberline_test_kit::nats::{NatsServer, WORKER_SEED, set_up};
use emberline_test_kit::proxy::FaultyProxy;
use emberline_worker::nats::ACK_WAIT;
use nkeys::KeyPair;

use crate::support::{MODEL, Relay, Worker, job, text_of, wait_for_empty_queue, within};

#[tokio::test]
async fn a_draining_worker_finishes_its_jobs_and_leaves() {
    let nats = NatsServer::start().await.unwrap();
    let mut worker = Worker::start(&nats, &["--slots", "2"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let long = job(1, 30_000);
    let mut events = relay.send(&long).await;
    events.next_tokens(1).await;
    worker.signal("TERM");
    relay.wait_for("draining", |all| all.iter().any(|h| h.draining && h.active == 1)).await;
    let mut left_over = relay.send(&job(2, 1)).await;
    // It goes on until its client has enough.
    events.tokens_at(100).await;
    relay.control(&long.id, Control::Cancel).await;
    let rest = events.rest().await;
    assert!(matches!(rest.last().unwrap().kind, EventKind::Done { .. }));
    assert!(rest.iter().all(|event| event.attempt == 1));
    assert!(worker.exit().await.success());
    assert_eq!(relay.heartbeats().await, []);

    // What came meanwhile was not lost: the next worker takes it.
    let _next = Worker::start(&nats, &[]);
    assert_eq!(text_of(&left_over.rest().await, 1), "The");
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn what_does_not_fit_the_grace_time_is_continued_elsewhere_at_once() {
    let nats = NatsServer::start().await.unwrap();
    let mut first = Worker::start(&nats, &["--drain-s", "1"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let long = job(1, 30_000);
    let mut events = relay.send(&long).await;
    events.next_tokens(1).await;
    let _second = Worker::start(&nats, &[]);
    relay.wait_for_load(&[0, 1]).await;

    first.signal("TERM");
    // The first worker gives the job back itself: it is not delivered again because of its silence.
    while events.next().await.kind != EventKind::HandedBack {}
    assert!(events.next_tokens(2).await.attempt >= 2);
    assert!(first.exit().await.success());
    relay.control(&long.id, Control::Cancel).await;
    relay.wait_for_load(&[0]).await;
}

#[tokio::test]
async fn a_second_signal_ends_a_draining_worker_at_once() {
    let nats = NatsServer::start().await.unwrap();
    let mut worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut events = relay.send(&job(1, 30_000)).await;
    events.next_tokens(1).await;
    worker.signal("TERM");
    relay.wait_for("draining", |all| all.iter().any(|h| h.draining)).await;
    worker.signal("INT");
    assert_eq!(worker.exit().await.code(), Some(1));
    assert!(worker.log().contains("second signal"), "{}", worker.log());
}

#[tokio::test]
async fn a_job_delivered_again_to_the_worker_that_runs_it_is_not_run_twice() {
    let nats = NatsServer::start().await.unwrap();
    let worker = Worker::start(&nats, &["--slots", "2", "--alive-timeout-ms", "60000"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let job = job(1, 30_000);
    let mut events = relay.send(&job).await;
    // It has heard of its relay by now.
    events.tokens_at(100).await;

    // Asleep for longer than nats-server waits for a word about the job.
    worker.signal("STOP");
    tokio::time::sleep(ACK_WAIT + Duration::from_secs(2)).await;
    worker.signal("CONT");
    within("the second delivery", async {
        while !worker.log().contains("redelivered while it runs here") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    relay.wait_for_load(&[1]).await;
    relay.control(&job.id, Control::Cancel).await;
    assert!(events.rest().await.iter().all(|event| event.attempt == 1));
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn after_nats_restarts_jobs_and_heartbeats_go_on() {
    let mut nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "2"]);
    let relay = Relay::new(&nats).await;
    let id = relay.wait_for_load(&[0]).await.remove(0).worker;
    let long = job(1, 30_000);
    let mut events = relay.send(&long).await;
    events.next_tokens(1).await;

    nats.stop();
    nats.start_again().await.unwrap();
    // It is the same worker that tells of itself again.
    let heartbeats = relay.wait_for_load(&[1]).await;
    assert_eq!(heartbeats[0].worker, id);
    events.next_tokens(1).await;
    assert_eq!(text_of(&relay.send(&job(2, 2)).await.rest().await, 1), "The quick");
    relay.control(&long.id, Control::Cancel).await;
    assert!(matches!(events.rest().await.pop().unwrap().kind, EventKind::Done { .. }));
    relay.wait_for_load(&[0]).await;
    wait_for_empty_queue(&nats).await;
}

/// A worker that hears nothing from NATS can't hear its relays.
#[tokio::test]
async fn a_cut_is_not_taken_for_the_silence_of_a_relay() {
    let nats = NatsServer::start().await.unwrap();
    let link = FaultyProxy::start(vec![nats.address()]).await.unwrap();
    // Longer than a worker takes to see that its connection is lost.
    let args = ["--nats", link.address(), "--engine", "simulated", "--alive-timeout-ms", "12000"];
    let worker = Worker::start_with(&args, WORKER_SEED);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut events = relay.send(&job(1, 1000)).await;
    events.tokens_at(20).await;

    link.silence();
    within("the loss of the connection", async {
        while !worker.log().contains("lost the connection to NATS") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(!worker.log().contains("abandoned"), "{}", worker.log());
    link.restore();
    let last = events.rest().await.pop().unwrap();
    let EventKind::Done { usage, .. } = last.kind else { panic!("{last:?}") };
    assert_eq!((last.attempt, usage.completion_tokens), (1, 1000));
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn without_its_streams_a_worker_says_what_to_run_and_goes_on_when_they_are_there() {
    let mut nats = NatsServer::start_empty().await.unwrap();
    let mut early = Worker::start(&nats, &[]);
    assert_eq!(early.exit().await.code(), Some(1));
    let last = early.log().lines().last().unwrap().to_owned();
    assert!(last.contains("no stream JOBS") && last.contains("`emberline nats setup`"), "{last}");

    let in_memory = Layout { volatile: Storage::Memory, ..Layout::default() };
    set_up(&nats, &in_memory).await.unwrap();
    let worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    nats.stop();
    nats.start_again().await.unwrap();
    within("its complaint", async {
        while !worker.log().contains("no stream EVENTS") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    set_up(&nats, &in_memory).await.unwrap();
    relay.wait_for_load(&[0]).await;
    assert_eq!(text_of(&relay.send(&job(1, 2)).await.rest().await, 1), "The quick");
}

#[tokio::test]
async fn many_workers_may_start_at_once() {
    let nats = NatsServer::start().await.unwrap();
    let _workers: Vec<_> = (0..5).map(|_| Worker::start(&nats, &["--slots", "3"])).collect();
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0; 5]).await;
}

#[tokio::test]
async fn what_an_operator_changed_on_a_consumer_stays() {
    let nats = NatsServer::start().await.unwrap();
    let _first = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let jetstream = async_nats::jetstream::new(nats.worker_client().await.unwrap());
    let name = subject::jobs_consumer(MODEL, Lane::default());
    let consumer = async || -> PullConsumer {
        jetstream.get_consumer_from_stream(&name, subject::JOBS_STREAM).await.unwrap()
    };
    let mut config: pull::Config =
        FromConsumer::try_from_consumer_config(consumer().await.cached_info().config.clone()).unwrap();
    config.ack_wait = Duration::from_secs(60);
    jetstream.create_consumer_on_stream(config, subject::JOBS_STREAM).await.unwrap();

    let _second = Worker::start(&nats, &[]);
    relay.wait_for_load(&[0, 0]).await;
    assert_eq!(consumer().await.cached_info().config.ack_wait, Duration::from_secs(60));
    assert_eq!(text_of(&relay.send(&job(1, 1)).await.rest().await, 1), "The");
}

#[tokio::test]
async fn a_worker_that_cannot_start_says_why_in_one_line_and_what_to_do() {
    let nats = NatsServer::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain.conf");
    std::fs::write(&plain, "max_payload: 1MB\n").unwrap();
    let no_jetstream = NatsServer::start_with(&plain).await.unwrap();
    let (address, plain) = (nats.address(), no_jetstream.address());
    let stranger = KeyPair::new_user();
    let (key, seed) = (stranger.public_key(), stranger.seed().unwrap());
    let simulated = |nats| ["--engine", "simulated", "--nats", nats];
    let cases: [(&[&str], &str, &[&str]); 5] = [
        (&simulated(&address), &seed, &[&address, &key, "emberline nats user add"]),
        (&simulated(&plain), "", &[&plain, "JetStream", "deploy/nats.conf"]),
        (&simulated("127.0.0.1:1"), "", &["127.0.0.1:1", "EMBERLINE_NATS"]),
        (&["--nats", &address], WORKER_SEED, &["EMBERLINE_MODEL_PATH"]),
        (&["--engine", "simulated", "--model-name", "gpt"], "", &["--model-name gpt", "simulated"]),
    ];
    for (args, seed, says) in cases {
        let mut worker = Worker::start_with(args, seed);
        assert_eq!(worker.exit().await.code(), Some(1), "{args:?}");
        let log = worker.log();
        let last = log.lines().last().unwrap();
        assert!(last.starts_with("emberline-worker: "), "{last}");
        for word in says {
            assert!(last.contains(word), "{word}: {last}");
        }
    }
}
