//! Jobs that go on though nobody listens.

use async_nats::header::NATS_MESSAGE_TTL;
use async_nats::jetstream::{self, message::PublishMessage};
use emberline_protocol::control::Control;
use emberline_protocol::event::{EventKind, FinishReason};
use emberline_protocol::job::Job;
use emberline_protocol::stored_request::{EraseReply, EraseRequest};
use emberline_protocol::subject;
use emberline_test_kit::event_logs;
use emberline_test_kit::events::Event;
use emberline_test_kit::nats::NatsServer;

use crate::support::{Relay, Worker, job, text_of, wait_for_empty_queue, within};

fn background(id: u128, max_tokens: u32) -> Job {
    Job { background: Some(100), ..job(id, max_tokens) }
}

/// Keeps what the bucket says of a job; nothing is a deletion.
async fn keep(relay: &Relay, job: &Job, record: &str) {
    let jetstream = jetstream::new(relay.client.clone());
    let message = PublishMessage::build().payload(record.to_owned().into());
    let stored = jetstream.send_publish(subject::request(&job.id), message).await.unwrap();
    within("the record's acknowledgement", async { stored.await.unwrap() }).await;
}

fn is_cancelled(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Finish { choice: 0, reason: FinishReason::Cancelled })
}

#[tokio::test]
async fn a_background_job_needs_nobody_to_listen() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--alive-timeout-ms", "100"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    // At 50 tokens a second this takes longer than an ordinary job would be waited for.
    let job = background(1, 40);
    let mut events = relay.send_silently(&job).await;
    let all = events.rest().await;
    text_of(&all, 1);
    let Some(Event { kind: EventKind::Done { usage, .. }, .. }) = all.last() else { panic!("{all:?}") };
    assert_eq!(usage.completion_tokens, 40);
    wait_for_empty_queue(&nats).await;

    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let kept = jetstream.get_stream(subject::KEPT_STREAM).await.unwrap();
    let last = kept.get_last_raw_message_by_subject(&subject::kept_events(&job.id)).await.unwrap();
    let ttl: u64 = last.headers.get(NATS_MESSAGE_TTL).unwrap().as_str().parse().unwrap();
    // A minute to the deadline, as long as the job says, and a little longer.
    assert!((150..=221).contains(&ttl), "{ttl}");
    let others = jetstream.get_stream(subject::EVENTS_STREAM).await.unwrap();
    assert_eq!(others.cached_info().state.messages, 0);
}

#[tokio::test]
async fn a_cancel_is_heard_and_written_down() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let job = background(1, 30_000);
    let mut events = relay.send_silently(&job).await;
    events.next_tokens(1).await;
    relay.control(&job.id, Control::Cancel).await;
    let rest = events.rest().await;
    let [.., finish, done] = rest.as_slice() else { panic!("{rest:?}") };
    assert!(is_cancelled(&finish.kind), "{finish:?}");
    assert!(matches!(&done.kind, EventKind::Done { usage, .. } if usage.completion_tokens > 0), "{done:?}");
    relay.wait_for_load(&[0]).await;
}

#[tokio::test]
async fn a_job_that_is_cancelled_or_deleted_in_the_queue_is_not_run() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    for (id, record) in [(1, r#"{"cancelled":true}"#), (2, "")] {
        let job = background(id, 30_000);
        keep(&relay, &job, record).await;
        let all = relay.send_silently(&job).await.rest().await;
        assert!(all.len() == 2 && is_cancelled(&all[0].kind), "{all:?}");
        assert!(matches!(&all[1].kind, EventKind::Done { usage, .. } if usage.completion_tokens == 0));
    }
    let wanted = background(3, 2);
    keep(&relay, &wanted, r#"{"cancelled":false}"#).await;
    let all = relay.send_silently(&wanted).await.rest().await;
    assert!(!text_of(&all, 1).is_empty());
    wait_for_empty_queue(&nats).await;
}

/// Whether the log of a job has text.
async fn has_text(nats: &NatsServer, job: &Job) -> bool {
    let log = event_logs::kept(nats, &job.id).await.unwrap();
    log.iter().any(|event| matches!(event.kind, EventKind::Tokens { .. }))
}

async fn ask_to_erase(relay: &Relay, job: &Job) -> EraseReply {
    let request = serde_json::to_vec(&EraseRequest { job: job.id.clone() }).unwrap();
    let asked = relay.client.request(subject::ERASE_SUBJECT, request.into());
    serde_json::from_slice(&within("a worker's answer", asked).await.unwrap().payload).unwrap()
}

#[tokio::test]
async fn the_text_of_a_deleted_request_is_removed_and_no_other() {
    let nats = NatsServer::start().await.unwrap();
    let worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let (deleted, wanted) = (background(1, 40), background(2, 40));
    for job in [&deleted, &wanted] {
        keep(&relay, job, "{}").await;
        relay.send_silently(job).await.rest().await;
    }
    wait_for_empty_queue(&nats).await;
    keep(&relay, &deleted, "").await;
    assert!(has_text(&nats, &deleted).await);
    assert_eq!(ask_to_erase(&relay, &deleted).await, EraseReply::Erased);
    assert!(!has_text(&nats, &deleted).await);
    let EraseReply::Failed(reason) = ask_to_erase(&relay, &wanted).await else { panic!("erased") };
    assert!(reason.contains("is not deleted"), "{reason}");
    assert!(has_text(&nats, &wanted).await);
    assert!(!worker.log().to_lowercase().contains("violation"), "{}", worker.log());
}

#[tokio::test]
async fn a_job_that_runs_when_its_request_is_deleted_leaves_no_text() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let job = background(1, 40);
    keep(&relay, &job, "{}").await;
    let mut events = relay.send_silently(&job).await;
    events.next_tokens(1).await;
    // Nobody tells the worker: its connection was lost, perhaps.
    keep(&relay, &job, "").await;
    events.rest().await;
    wait_for_empty_queue(&nats).await;
    assert!(!has_text(&nats, &job).await);
}
