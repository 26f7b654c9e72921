//! What happens to a job.

use async_nats::jetstream;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::Control;
use emberline_protocol::dead_letter::PROMPTS_HEADER;
use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{EventKind, FinishReason, Usage};
use emberline_protocol::job::{Message, Role};
use emberline_protocol::lane::Lane;
use emberline_protocol::log::LogState;
use emberline_protocol::subject::{self, JobId};
use emberline_test_kit::nats::NatsServer;

use crate::support::{MODEL, Relay, Worker, job, text_of, wait_for_empty_queue, within};

#[tokio::test]
async fn a_job_becomes_a_log_of_events_in_order_and_leaves_the_queue() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let job = job(1, 8);
    let events = relay.send(&job).await.rest().await;
    assert_eq!(text_of(&events, 1), "The quick ember glows along the line. ");
    assert!(matches!(events[0].kind, EventKind::Taken { .. }));
    let EventKind::Accepted(accepted) = &events[1].kind else { panic!("{events:?}") };
    assert_eq!((accepted.prompt_tokens, accepted.cached_tokens), (2, 0));
    let [.., finish, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(finish.kind, EventKind::Finish { choice: 0, reason: FinishReason::Length });
    let usage = Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: 8 };
    assert!(matches!(done.kind, EventKind::Done { usage: u, .. } if u == usage));
    wait_for_empty_queue(&nats).await;

    // The log ends as a single message that says what was said live.
    let jetstream = async_nats::jetstream::new(nats.worker_client().await.unwrap());
    let log = jetstream.get_stream(subject::EVENTS_STREAM).await.unwrap();
    let stored = log.get_last_raw_message_by_subject(&subject::events(&job.id)).await.unwrap();
    let stored: Chunk = serde_json::from_slice(&stored.payload).unwrap();
    assert_eq!((stored.index, stored.end, stored.events.last()), (0, done.next, Some(&done.kind)));
    let state = LogState::of(&[stored], 1, false);
    assert_eq!(state.choices[0].text, "The quick ember glows along the line. ");
    assert_eq!(log.cached_info().state.messages, 1);
    relay.wait_for_load(&[0]).await;
}

#[tokio::test]
async fn cancel_frees_the_slot_for_the_next_job() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "1"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let (long, short) = (job(1, 30_000), job(2, 1));
    let mut events = relay.send(&long).await;
    events.next_tokens(1).await;
    relay.wait_for_load(&[1]).await;
    let mut waiting = relay.send(&short).await;

    relay.control(&long.id, Control::Cancel).await;
    let last = events.rest().await.pop().unwrap();
    let EventKind::Done { usage, .. } = last.kind else { panic!("{last:?}") };
    assert!(usage.completion_tokens >= 1 && usage.completion_tokens < 30_000);
    assert_eq!(text_of(&waiting.rest().await, 1), "The");
    relay.wait_for_load(&[0]).await;
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_job_whose_relay_is_silent_is_given_up_and_one_that_is_heard_of_goes_on() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--alive-timeout-ms", "4000"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let (silent, heard) = (job(1, 30_000), job(2, 30_000));
    let mut heard_events = relay.send(&heard).await;
    let last = relay.send_silently(&silent).await.rest().await.pop().unwrap();
    let EventKind::Done { usage, .. } = last.kind else { panic!("{last:?}") };
    assert!(usage.completion_tokens < 30_000);
    // Both run at the same pace: here it has lived for twice as long.
    heard_events.tokens_at(2 * usage.completion_tokens).await;
    relay.control(&heard.id, Control::Cancel).await;
    relay.wait_for_load(&[0]).await;
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_job_that_was_cancelled_in_the_queue_does_not_keep_its_slot() {
    let nats = NatsServer::start().await.unwrap();
    // A silence that the job's deadline would end; before the first word it is shorter.
    let _worker = Worker::start(&nats, &["--slots", "1", "--alive-timeout-ms", "600000"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let (running, queued) = (job(1, 30_000), job(2, 30_000));
    let mut events = relay.send(&running).await;
    events.next_tokens(1).await;
    let mut abandoned = relay.send_silently(&queued).await;
    relay.control(&queued.id, Control::Cancel).await;
    relay.control(&running.id, Control::Cancel).await;
    let last = abandoned.rest().await.pop().unwrap();
    assert!(matches!(last.kind, EventKind::Done { .. }), "{last:?}");
    relay.wait_for_load(&[0]).await;
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn two_workers_share_a_queue() {
    let nats = NatsServer::start().await.unwrap();
    let _workers = [Worker::start(&nats, &["--slots", "2"]), Worker::start(&nats, &["--slots", "2"])];
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0, 0]).await;

    let jobs: Vec<_> = (1..=4).map(|id| job(id, 30_000)).collect();
    let mut events = Vec::new();
    for job in &jobs {
        events.push(relay.send(job).await);
    }
    // Neither takes more than it can run, so each has to take two.
    let heartbeats = relay.wait_for_load(&[2, 2]).await;
    assert!(
        heartbeats.iter().all(|h| h.capacity == 2 && h.engine == "simulated" && h.models[0].name == MODEL)
    );
    let mut fifth = relay.send(&job(5, 1)).await;
    for (job, events) in jobs.iter().zip(&mut events) {
        relay.control(&job.id, Control::Cancel).await;
        assert_eq!(events.next().await.attempt, 1);
    }
    assert_eq!(text_of(&fifth.rest().await, 1), "The");
    relay.wait_for_load(&[0, 0]).await;
}

#[tokio::test]
async fn a_message_that_is_no_job_is_refused_and_others_go_on() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "1"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let queue = subject::jobs(MODEL, Lane::default());
    let good = job(1, 1);
    let newer = serde_json::to_vec(&emberline_protocol::job::Job { v: 99, ..good.clone() }).unwrap();
    let elsewhere =
        serde_json::to_vec(&emberline_protocol::job::Job { model: "other".into(), ..good }).unwrap();
    let bodies = [b"not json".to_vec(), b"{}".to_vec(), vec![0xff; 100], Vec::new(), newer, elsewhere];
    for (id, body) in (100..).zip(bodies) {
        let id = JobId::from_random(id);
        // What has no id of its own is answered under its message id.
        let answered_at =
            serde_json::from_slice::<emberline_protocol::job::Job>(&body).map_or(id.clone(), |job| job.id);
        let mut answer = relay.client.subscribe(subject::live(&answered_at)).await.unwrap();
        relay.send_raw(&id, &queue, body).await;
        let answer =
            crate::support::within("the refusal", futures::StreamExt::next(&mut answer)).await.unwrap();
        let chunk: Chunk = serde_json::from_slice(&answer.payload).unwrap();
        let [EventKind::Error(error)] = &chunk.events[..] else { panic!("{chunk:?}") };
        assert_eq!((error.status, error.code), (500, ErrorCode::InternalError));
    }
    assert_eq!(text_of(&relay.send(&job(2, 2)).await.rest().await, 1), "The quick");
    wait_for_empty_queue(&nats).await;
}

/// A message's words stay where its prompt belongs: in no log, no header and no event.
#[tokio::test]
async fn nothing_that_a_message_says_is_logged_or_quoted() {
    const MARK: &str = "xyzzy-secret";
    let nats = NatsServer::start().await.unwrap();
    let worker = Worker::start(&nats, &["--dead-letter-prompts", "hash"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut good = job(1, 2);
    good.request.messages = vec![Message::new(Role::User, MARK)];
    good.request.stop = vec![MARK.to_owned()];
    assert_eq!(text_of(&relay.send(&good).await.rest().await, 1), "The quick");

    // The mark in the place of each field, and as a field's name.
    let whole = serde_json::to_value(&good).unwrap();
    let mut bodies = vec![
        MARK.to_owned(),
        format!("\"{MARK}\""),
        format!("{{\"{MARK}\":1}}"),
        format!("{{\"v\":\"{MARK}\"}}"),
    ];
    for place in ["", "/request", "/request/messages/0"] {
        for field in whole.pointer(place).unwrap().as_object().unwrap().keys() {
            let mut body = whole.clone();
            let object = body.pointer_mut(place).unwrap().as_object_mut().unwrap();
            let wrong =
                if object[field].is_string() { serde_json::json!({ MARK: MARK }) } else { MARK.into() };
            object.insert(field.clone(), wrong);
            object.insert(MARK.to_owned(), MARK.into());
            bodies.push(body.to_string());
        }
    }
    bodies.push({
        let mut body = whole.clone();
        body["model"] = MARK.into();
        body.to_string()
    });
    let queue = subject::jobs(MODEL, Lane::default());
    let mut refused = 0;
    for (id, body) in (100..).zip(bodies) {
        let id = JobId::from_random(id);
        let answered_at = serde_json::from_str::<serde_json::Value>(&body)
            .ok()
            .and_then(|body| JobId::try_from(body["id"].as_str()?.to_owned()).ok());
        // Each under an id of its own.
        let body = answered_at.map_or(body.clone(), |old| body.replace(old.as_str(), id.as_str()));
        let answer = relay.send_raw(&id, &queue, body.into_bytes()).await.rest().await.pop().unwrap();
        if let EventKind::Error(error) = answer.kind {
            refused += 1;
            assert!(!error.message.contains(MARK), "{error:?}");
        }
    }
    assert!(refused > 20, "{refused}");
    wait_for_empty_queue(&nats).await;

    let dead =
        jetstream::new(nats.admin_client().await.unwrap()).get_stream(subject::DEAD_STREAM).await.unwrap();
    let letters = dead.cached_info().state.last_sequence;
    let admin = nats.admin_client().await.unwrap();
    for sequence in 1..=letters {
        let query = serde_json::json!({"seq": sequence}).to_string();
        let get = format!("$JS.API.DIRECT.GET.{}", subject::DEAD_STREAM);
        let letter = within("a dead letter", admin.request(get, query.into())).await.unwrap();
        let headers = letter.headers.unwrap();
        assert!(!format!("{headers:?}").contains(MARK), "{headers:?}");
        assert_eq!(headers.get(PROMPTS_HEADER).unwrap().as_str(), "hash");
        assert!(!String::from_utf8_lossy(&letter.payload).contains(MARK), "{:?}", letter.payload);
    }
    assert!(letters > 20, "{letters}");
    for log in [worker.log(), nats.log()] {
        let line = log.lines().find(|line| line.contains(MARK));
        assert_eq!(line, None);
    }
}

#[tokio::test]
async fn what_the_engine_refuses_and_what_is_late_ends_with_its_error() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;

    let mut late = job(2, 1);
    late.deadline = late.created - 1;
    let mut slow = job(3, 30_000);
    slow.deadline = slow.created + 1500;
    let cases = [
        (job(1, u32::MAX), ErrorCode::ContextLengthExceeded),
        (late, ErrorCode::Timeout),
        (slow, ErrorCode::Timeout),
    ];
    for (job, code) in cases {
        let last = relay.send(&job).await.rest().await.pop().unwrap();
        let EventKind::Error(error) = last.kind else { panic!("{last:?}") };
        assert_eq!(error.code, code);
    }
    relay.wait_for_load(&[0]).await;
    wait_for_empty_queue(&nats).await;
}
