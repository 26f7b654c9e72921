//! `emberline usage export`, with a real nats-server: nothing is lost when it is killed, and what comes is followed.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::{self, message::PublishMessage};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{Timings, Usage};
use emberline_protocol::key::KeyId;
use emberline_protocol::subject::{self, JobId};
use emberline_protocol::usage::{Outcome, UsageEvent};
use emberline_test_kit::cli::{command, emberline, refused};
use emberline_test_kit::nats::NatsServer;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

/// How long to wait for anything; only a failure takes so long.
const TIMEOUT: Duration = Duration::from_secs(60);
const EXPORT: [&str; 2] = ["usage", "export"];

/// Publishes the usage of the jobs with these numbers, as a worker does.
async fn publish(nats: &NatsServer, numbers: std::ops::Range<u32>) {
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let key = KeyId::of_key(b"key");
    let mut stored = Vec::new();
    for number in numbers {
        let event = UsageEvent {
            v: PROTOCOL_VERSION,
            job: JobId::from_random(number.into()),
            key: key.clone(),
            model: "m".into(),
            usage: Usage { prompt_tokens: number, cached_tokens: 0, completion_tokens: 1 },
            timings: Timings::default(),
            created: 1,
            finished: 2,
            outcome: Outcome::Done,
        };
        let message = PublishMessage::build()
            .payload(serde_json::to_vec(&event).unwrap().into())
            .message_id(format!("id-{number}"));
        stored.push(jetstream.send_publish(subject::usage(&key), message).await.unwrap());
    }
    for stored in stored {
        stored.await.unwrap();
    }
}

/// The numbers of the jobs in these lines.
fn numbers(text: &str) -> Vec<u32> {
    let number = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let number = u32::try_from(line["prompt_tokens"].as_u64().unwrap()).unwrap();
        assert_eq!(line["id"], format!("id-{number}"));
        number
    };
    text.lines().map(number).collect()
}

/// Starts an export whose lines are read from a pipe.
fn start(nats: &NatsServer, args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut export = command(nats, &[&EXPORT, args].concat()).unwrap();
    let mut export = export.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(export.stdout.take().unwrap()).lines();
    (export, lines)
}

async fn next_number(lines: &mut Lines<BufReader<ChildStdout>>) -> u32 {
    let line = tokio::time::timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    numbers(&line)[0]
}

#[tokio::test]
async fn each_event_is_a_line_with_its_sequence_and_message_id() {
    let nats = NatsServer::start().await.unwrap();
    assert_eq!(emberline(&nats, &EXPORT).await.unwrap(), "");
    publish(&nats, 1..4).await;
    let text = emberline(&nats, &EXPORT).await.unwrap();
    assert_eq!(numbers(&text), [1, 2, 3]);
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["sequence"], &first["outcome"], &first["model"]),
        (&1.into(), &"done".into(), &"m".into())
    );

    let csv = emberline(&nats, &[&EXPORT[..], &["--format", "csv"]].concat()).await.unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows.len() == 4 && rows[0].starts_with("sequence,id,job,key,model,"), "{csv}");
    assert!(rows[3].starts_with("3,id-3,") && rows[3].ends_with(",done"), "{csv}");

    for name in [&[][..], &["--name", "late"]] {
        let none = emberline(&nats, &[&EXPORT[..], &["--since", "2200-01-01"], name].concat()).await.unwrap();
        assert_eq!(none, "");
    }
    let (_, complaint) = refused(&nats, &[&EXPORT[..], &["--name", "a.b"]].concat()).await.unwrap();
    assert!(complaint.contains("letters, digits"), "{complaint}");
    // The sums are still there.
    assert!(emberline(&nats, &["usage", "--by", "model"]).await.unwrap().contains('m'));
}

#[tokio::test]
async fn a_named_export_goes_on_where_it_ended_and_every_name_has_its_own_position() {
    let nats = NatsServer::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("usage.jsonl");
    let path = file.to_str().unwrap();
    let named = [&EXPORT[..], &["--name", "billing", "--output", path]].concat();
    publish(&nats, 1..4).await;
    emberline(&nats, &named).await.unwrap();
    publish(&nats, 4..6).await;
    emberline(&nats, &named).await.unwrap();
    emberline(&nats, &named).await.unwrap();
    assert_eq!(numbers(&std::fs::read_to_string(&file).unwrap()), [1, 2, 3, 4, 5]);
    let other = emberline(&nats, &[&EXPORT[..], &["--name", "audit"]].concat()).await.unwrap();
    assert_eq!(numbers(&other), [1, 2, 3, 4, 5]);
}

/// Its reader stops reading, so that it is killed while it writes.
#[tokio::test]
async fn an_export_that_is_killed_loses_nothing_and_does_not_begin_again() {
    let nats = NatsServer::start().await.unwrap();
    publish(&nats, 1..3001).await;
    let (mut first, mut lines) = start(&nats, &["--name", "billing"]);
    let mut found = BTreeSet::new();
    // More than one batch, so that one is acknowledged; the pipe can't hold the rest.
    for _ in 0..700 {
        found.insert(next_number(&mut lines).await);
    }
    assert!(first.try_wait().unwrap().is_none());
    first.kill().await.unwrap();
    let mut rest = String::new();
    lines.into_inner().read_to_string(&mut rest).await.unwrap();
    let whole = rest.rfind('\n').map_or("", |end| &rest[..end]);
    found.extend(numbers(whole));
    assert!(found.len() < 3000, "it was killed too late");

    let second = emberline(&nats, &[&EXPORT[..], &["--name", "billing"]].concat()).await.unwrap();
    let second = numbers(&second);
    assert!(!second.contains(&1), "what was acknowledged does not come again");
    found.extend(second);
    assert_eq!(found, (1..3001).collect());
}

#[tokio::test]
async fn what_comes_is_followed_until_it_is_interrupted() {
    let nats = NatsServer::start().await.unwrap();
    publish(&nats, 1..2).await;
    for args in [&["--follow"][..], &["--follow", "--name", "live"]] {
        let (mut export, mut lines) = start(&nats, args);
        let before = next_number(&mut lines).await;
        let next = if args.len() == 1 { 2 } else { 3 };
        if args.len() > 1 {
            assert_eq!(next_number(&mut lines).await, 2);
        }
        assert_eq!(before, 1);
        publish(&nats, next..next + 1).await;
        assert_eq!(next_number(&mut lines).await, next);
        let pid = rustix::process::Pid::from_raw(export.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert!(tokio::time::timeout(TIMEOUT, export.wait()).await.unwrap().unwrap().success());
    }
}

/// Nothing that the bus does while an export follows it ends the export.
#[tokio::test]
async fn a_followed_export_outlives_a_restart_of_nats_server() {
    let mut nats = NatsServer::start().await.unwrap();
    publish(&nats, 1..2).await;
    let (_export, mut lines) = start(&nats, &["--follow", "--name", "live"]);
    assert_eq!(next_number(&mut lines).await, 1);
    nats.stop();
    nats.start_again().await.unwrap();
    publish(&nats, 2..3).await;
    while next_number(&mut lines).await != 2 {}
}
