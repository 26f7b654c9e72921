//! One of a model's workers sums up the heartbeats of all, as long as any lives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{Heartbeat, ModelState, ModelStatus, ServedModel};
use emberline_protocol::model_summary::ModelSummary;
use emberline_protocol::subject;
use emberline_test_kit::nats::NatsServer;
use futures::future::try_join_all;

use crate::support::{MODEL, Models, Relay, Worker, within};

/// What a worker logs when it has read all heartbeats of a model, and when it begins to.
const READ: &str = "summed up the heartbeats";
const TAKEN_OVER: &str = "sums up the heartbeats of the model's workers from now on";

fn counts(workers: u32) -> impl Fn(Option<&ModelSummary>) -> bool {
    move |summary| summary.is_some_and(|summary| summary.workers == workers)
}

/// The heartbeat of a worker of [`MODEL`] that is not there.
fn heartbeat(worker: String, v: u32, context_length: u32) -> Heartbeat {
    Heartbeat {
        v,
        worker,
        models: vec![ServedModel { name: MODEL.into(), context_length, created: 1_700_000_000 }],
        engine: "burn".into(),
        device: "NVIDIA H100 80GB HBM3 (vulkan)".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        capacity: 8,
        states: vec![ModelStatus {
            name: MODEL.into(),
            state: ModelState::Serving,
            reason: None,
            capacity: 8,
            active: 3,
            pace: 1.5,
            memory: Some(16 << 30),
            loaded_percent: None,
        }],
        ..Heartbeat::default()
    }
}

/// Writes each heartbeat under its model.
async fn write(jetstream: &jetstream::Context, heartbeats: &[Heartbeat]) {
    for some in heartbeats.chunks(500) {
        let store = some.iter().map(|heartbeat| async move {
            let key = subject::heartbeats(&heartbeat.worker, [MODEL]).pop_first().unwrap();
            jetstream.publish(key, serde_json::to_vec(heartbeat).unwrap().into()).await?.await
        });
        try_join_all(store).await.unwrap();
    }
}

#[tokio::test]
async fn a_model_stays_while_any_of_its_workers_lives_whoever_is_killed() {
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    let mut workers: Vec<Worker> = (0..3).map(|_| Worker::start(&nats, &["--slots", "3"])).collect();
    let mut summary = relay.wait_for_summary("three workers", MODEL, counts(3)).await.unwrap();
    assert_eq!(summary.slots, 9);
    while workers.len() > 1 {
        for worker in &workers {
            let log = worker.log();
            assert!(!log.contains(READ) || log.contains(TAKEN_OVER), "a keeper alone reads all:\n{log}");
        }
        let keeper = summary.keeper.clone().unwrap();
        let place = workers.iter().position(|worker| worker.log().contains(&keeper)).unwrap();
        drop(workers.remove(place));
        let killed = Instant::now();
        // Until those that are left are counted by one of them, there is always a summary.
        let left = u32::try_from(workers.len()).unwrap();
        relay
            .wait_for_summary("another keeper", MODEL, |summary| {
                summary.is_none_or(|s| s.keeper.as_ref() != Some(&keeper))
            })
            .await
            .expect("the model was gone while a worker lived");
        let taken_over = killed.elapsed();
        summary = relay
            .wait_for_summary("the dead worker's heartbeat to expire", MODEL, |summary| {
                summary.is_none_or(|summary| summary.workers == left)
            })
            .await
            .expect("the model was gone while a worker lived");
        println!("taken over after {taken_over:?}, {left} workers counted after {:?}", killed.elapsed());
    }
    drop(workers);
    relay.wait_for_summary("a model without workers to expire", MODEL, |summary| summary.is_none()).await;
}

#[tokio::test]
async fn of_workers_that_leave_at_the_same_time_the_last_removes_the_summary() {
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    for number in [1, 2, 3] {
        let mut workers: Vec<Worker> = (0..number).map(|_| Worker::start(&nats, &[])).collect();
        relay.wait_for_summary("all workers", MODEL, counts(number)).await;
        for worker in &workers {
            worker.signal("TERM");
        }
        for worker in &mut workers {
            assert!(worker.exit().await.success());
        }
        assert_eq!(relay.summary(MODEL).await, None, "{number} workers");
    }
}

#[tokio::test]
async fn a_keeper_that_leaves_is_followed_by_another_worker() {
    const OTHER: &str = "simulated-b";
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    let models = Models::new(&[(MODEL, "simulated"), (OTHER, "simulated")]);
    let mut keeper = Worker::of_models(&nats, &models, &[]);
    let first = relay.wait_for_summary("the first worker", MODEL, counts(1)).await.unwrap().keeper;
    let second = Worker::start(&nats, &[]);
    relay.wait_for_summary("both workers", MODEL, counts(2)).await;
    // Of one model only: that it still serves the other means nothing for this one.
    models.set(&[(OTHER, "simulated")]);
    let summary = relay
        .wait_for_summary("the second worker", MODEL, |summary| {
            summary.is_none_or(|summary| {
                summary.keeper.as_ref().is_some_and(|keeper| Some(keeper) != first.as_ref())
            })
        })
        .await
        .expect("the model was gone while a worker lived");
    assert!(second.log().contains(&summary.keeper.unwrap()));
    relay.wait_for_summary("one worker", MODEL, counts(1)).await;
    assert_eq!(relay.summary(OTHER).await.unwrap().keeper, first);
    keeper.signal("TERM");
    assert!(keeper.exit().await.success());
    assert_eq!(relay.summary(OTHER).await, None);
    assert!(!nats.log().to_lowercase().contains("violation"), "{}", nats.log());
}

#[tokio::test]
async fn workers_that_differ_are_summed_up_to_what_all_can_keep() {
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    let _worker = Worker::start(&nats, &["--slots", "3"]);
    relay.wait_for_summary("the worker", MODEL, counts(1)).await;
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let others = [heartbeat("a".into(), PROTOCOL_VERSION, 7), heartbeat("b".into(), 4, 3)];
    write(&jetstream, &others).await;
    let summary = relay.wait_for_summary("both workers", MODEL, counts(2)).await.unwrap();
    assert_eq!((summary.model.context_length, summary.model.created), (7, 1_700_000_000));
    assert_eq!((summary.slots, summary.left_out), (11, BTreeMap::from([(4, 1)])));
}

/// More workers than one batched direct get by subject may bring.
#[tokio::test]
async fn five_thousand_workers_are_summed_up_by_one_of_them() {
    const OTHERS: u32 = 5000;
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let others: Vec<_> =
        (0..OTHERS).map(|number| heartbeat(format!("{number:016x}"), PROTOCOL_VERSION, 8192)).collect();
    let worker = Worker::start(&nats, &[]);
    // Each again before it expires, as long as it takes.
    let beat = async {
        loop {
            write(&jetstream, &others).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    let summary = tokio::select! {
        summary = relay.wait_for_summary("all workers", MODEL, counts(OTHERS + 1)) => summary.unwrap(),
        () = beat => unreachable!(),
    };
    assert!(summary.slots > u64::from(OTHERS) * 8, "{summary:?}");
    let line =
        || worker.log().lines().find(|l| l.contains(READ) && l.contains("workers=5001")).map(str::to_owned);
    let line = within("its log", async {
        loop {
            match line() {
                Some(line) => return line,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    println!("{line}");
}
