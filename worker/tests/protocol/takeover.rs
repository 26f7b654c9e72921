//! Jobs of workers that die, sleep or go, and jobs that kill their workers.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::PublishMessage;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::{Control, Sent, SentQuestion, SentTokens};
use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{Acceptance, EventKind, FinishReason};
use emberline_protocol::job::Job;
use emberline_protocol::streams::Consumer;
use emberline_protocol::{PROTOCOL_VERSION, dead_letter, subject};
use emberline_test_kit::events::Event;
use emberline_test_kit::nats::{NatsServer, WORKER_SEED};
use emberline_test_kit::proxy::FaultyProxy;
use emberline_worker::intake::takeover::MAX_FRUITLESS;
use futures::StreamExt as _;

use crate::support::{Events, MODEL, Relay, Worker, job, wait_for_empty_queue, within};

/// What a job says, over and over.
const WORDS: [&str; 8] = ["The", " quick", " ember", " glows", " along", " the", " line", ". "];

/// The text of each token from `position` on.
fn words(position: u32) -> impl Iterator<Item = &'static str> {
    WORDS.into_iter().cycle().skip(position as usize % WORDS.len())
}

/// An answer as a relay puts it together, which nothing may be written to twice.
#[derive(Default)]
struct Answer {
    attempt: u32,
    next_index: u32,
    tokens: u32,
    text: String,
    /// How many tokens there were when the present attempt began, and where its first token stands.
    resumed: (u32, Option<u32>),
}

impl Answer {
    /// Follows the log until the answer has so many tokens, or to its end.
    async fn follow(&mut self, events: &mut Events, tokens: u32) -> Event {
        loop {
            let event = events.next().await;
            if event.attempt < self.attempt {
                continue;
            }
            if event.attempt > self.attempt {
                assert!(matches!(event.kind, EventKind::Taken { .. }), "{event:?}");
                (self.attempt, self.next_index) = (event.attempt, 0);
                self.resumed = (self.tokens, None);
            }
            assert_eq!(event.index, self.next_index);
            self.next_index = event.next;
            match &event.kind {
                EventKind::Tokens { position, ids, text, .. } => {
                    self.resumed.1.get_or_insert(*position);
                    // What was published may be further than the log.
                    let known = self.tokens.checked_sub(*position).unwrap_or_else(|| panic!("{event:?}"));
                    let again: String = words(*position).take(known.min(ids.len() as u32) as usize).collect();
                    self.text.push_str(text.strip_prefix(&again).unwrap_or_else(|| panic!("{event:?}")));
                    self.tokens = self.tokens.max(position + u32::try_from(ids.len()).unwrap());
                    if self.tokens >= tokens {
                        return event;
                    }
                }
                EventKind::Done { .. } | EventKind::Error(_) => return event,
                _ => {}
            }
        }
    }

    fn assert_is_undisturbed(&self) {
        assert_eq!(self.text, words(0).take(self.tokens as usize).collect::<String>());
    }
}

#[tokio::test]
async fn a_dead_workers_job_goes_on_in_another_within_three_seconds() {
    let nats = NatsServer::start().await.unwrap();
    let first = Worker::start(&nats, &["--simulated-tokens-per-s", "50"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut events = relay.send(&job(1, 200)).await;
    let mut answer = Answer::default();
    answer.follow(&mut events, 20).await;
    let _second = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    relay.wait_for_load(&[0, 1]).await;

    first.signal("KILL");
    let died = Instant::now();
    while answer.attempt == 1 {
        answer.follow(&mut events, answer.tokens + 1).await;
    }
    let (stored, resumed_at) = answer.resumed;
    println!("taken over after {:?}, at token {stored}", died.elapsed());
    // Here no relay says what the client has, so that the worker goes on where the log ends.
    assert!(answer.attempt == 2 && resumed_at.is_some_and(|position| position <= stored), "{resumed_at:?}");
    let last = answer.follow(&mut events, u32::MAX).await;
    let EventKind::Done { usage, .. } = last.kind else { panic!("{last:?}") };
    assert_eq!((answer.tokens, usage.completion_tokens), (200, 200));
    answer.assert_is_undisturbed();
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_worker_that_slept_leaves_its_job_to_its_successor() {
    let nats = NatsServer::start().await.unwrap();
    let sleeper = Worker::start(&nats, &["--simulated-tokens-per-s", "100"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let long = job(1, 30_000);
    let mut events = relay.send(&long).await;
    let mut answer = Answer::default();
    answer.follow(&mut events, 20).await;
    let _second = Worker::start(&nats, &["--simulated-tokens-per-s", "100"]);
    relay.wait_for_load(&[0, 1]).await;

    sleeper.signal("STOP");
    while answer.attempt == 1 {
        answer.follow(&mut events, answer.tokens + 1).await;
    }
    sleeper.signal("CONT");
    within("its giving up", async {
        while !sleeper.log().contains("another worker has taken the job over") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    relay.wait_for_load(&[0, 1]).await;
    answer.follow(&mut events, answer.tokens + 50).await;
    relay.control(&long.id, Control::Cancel).await;
    let last = answer.follow(&mut events, u32::MAX).await;
    assert!(matches!(last.kind, EventKind::Done { .. }), "{last:?}");
    assert_eq!(answer.attempt, 2);
    answer.assert_is_undisturbed();
    relay.wait_for_load(&[0, 0]).await;
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_replaced_worker_does_not_remove_its_successors_job() {
    let nats = NatsServer::start().await.unwrap();
    let link = FaultyProxy::start(vec![nats.address()]).await.unwrap();
    let args = ["--nats", link.address(), "--engine", "simulated", "--simulated-tokens-per-s", "20"];
    let first = Worker::start_with(&args, WORKER_SEED);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut events = relay.send(&job(1, 30)).await;
    let mut answer = Answer::default();
    answer.follow(&mut events, 5).await;
    // The first worker computes the rest before JetStream gives its job to another one, and has it all to store,
    // to charge and to acknowledge when it is heard again.
    link.silence();
    let second = Worker::start(&nats, &["--simulated-tokens-per-s", "1"]);
    while answer.attempt == 1 {
        answer.follow(&mut events, answer.tokens + 1).await;
    }
    link.restore();
    within("the first worker's end", async {
        while !["another worker has taken the job over", "ended", "requeued"]
            .iter()
            .any(|end| first.log().contains(end))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    second.signal("KILL");
    let last = answer.follow(&mut events, u32::MAX).await;
    let EventKind::Done { usage, .. } = last.kind else { panic!("{last:?}") };
    assert_eq!((answer.attempt, answer.tokens, usage.completion_tokens), (3, 30, 30));
    answer.assert_is_undisturbed();
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_job_goes_on_from_what_the_client_has_although_no_log_has_it() {
    let nats = NatsServer::start().await.unwrap();
    let mut first = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    first.signal("TERM");
    assert!(first.exit().await.success());

    let job = job(1, 30);
    let mut questions = relay.client.subscribe(subject::sent(&job.id)).await.unwrap();
    // Its worker has died: the log has two tokens, and the client five, which another kind of device wrote.
    let mut events = relay.send_silently(&job).await;
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let logged = Chunk::new(
        1,
        0,
        vec![
            EventKind::Taken { worker: "w".into(), ack: None },
            EventKind::Accepted(Acceptance::default()),
            tokens(0, &[0, 1], "The quick"),
        ],
    );
    let payload = serde_json::to_vec(&logged).unwrap();
    jetstream.publish(subject::events(&job.id), payload.into()).await.unwrap().await.unwrap();
    take_and_drop(&nats, &job).await;

    let _worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    let question = within("the question", questions.next()).await.unwrap();
    let asked: SentQuestion = serde_json::from_slice(&question.payload).unwrap();
    assert_eq!((asked.attempt, &asked.tokens[..]), (2, &[2][..]));
    let sent = SentTokens { ids: vec![7, 8, 9], text: " RED EMBER GLOWS".into(), finish: None };
    let answer = serde_json::to_vec(&Sent { v: PROTOCOL_VERSION, choices: vec![sent] }).unwrap();
    relay.client.publish(question.reply.unwrap(), answer.into()).await.unwrap();

    let all = events.rest().await;
    let text = all.iter().fold(String::new(), |text, event| match &event.kind {
        EventKind::Tokens { position, text: more, .. } => {
            assert!(*position == 2 && text.is_empty() || *position > 2 && !text.is_empty(), "{event:?}");
            text + more
        }
        _ => text,
    });
    assert!(text.starts_with(" RED EMBER GLOWS"), "{text}");
    let EventKind::Done { usage, .. } = all.last().unwrap().kind else { panic!("{all:?}") };
    assert_eq!(usage.completion_tokens, 30);
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_job_whose_worker_is_gone_is_given_back_by_a_peer() {
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    let (gone, there) = (job(1, 3), job(2, 30_000));
    let worker = Worker::start(&nats, &["--simulated-tokens-per-s", "50"]);
    relay.wait_for_load(&[0]).await;
    let mut running = relay.send(&there).await;
    let EventKind::Taken { ack: Some(ack), .. } = running.next().await.kind else { panic!("not taken") };
    let mut waiting = relay.send(&gone).await;
    let EventKind::Taken { ack: Some(own), .. } = waiting.next().await.kind else { panic!("not taken") };
    waiting.rest().await;

    // One that is there is left alone, and so is what is no job of the model's.
    let elsewhere = "$JS.ACK.JOBS.worker-other-0.1.1.1.1.1".to_owned();
    for (job, ack) in [(&there.id, ack), (&gone.id, elsewhere)] {
        relay.report_orphan(job, ack).await;
    }
    relay.report_orphan(&gone.id, own).await;
    within("the job to be given back", async {
        while !worker.log().contains("giving the job back in its name") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(worker.log().matches("giving the job back in its name").count(), 1);
    relay.control(&there.id, Control::Cancel).await;
    let last = running.rest().await.pop().unwrap();
    assert_eq!(last.attempt, 1);
    wait_for_empty_queue(&nats).await;
}

fn tokens(position: u32, ids: &[u32], text: &str) -> EventKind {
    EventKind::Tokens { choice: 0, position, ids: ids.to_vec(), text: text.into(), logprobs: Vec::new() }
}

/// Takes the job as a worker does, and never acknowledges it.
async fn take_and_drop(nats: &NatsServer, job: &Job) {
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let consumer = Consumer::of_jobs(&job.model, job.lane());
    let config = serde_json::from_value(consumer.to_json()).unwrap();
    let jobs =
        jetstream.create_consumer_strict_on_stream::<pull::Config, _>(config, subject::JOBS_STREAM).await;
    let mut taken = jobs.unwrap().fetch().max_messages(1).messages().await.unwrap();
    within("the job", taken.next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_handed_back_goes_on_where_it_was() {
    let nats = NatsServer::start().await.unwrap();
    let mut workers: Vec<Worker> = Vec::new();
    let relay = Relay::new(&nats).await;
    let mut events = None;
    let mut answer = Answer::default();
    // More often than a job may die without getting on.
    for attempt in 1..=2 * MAX_FRUITLESS {
        workers.push(Worker::start(&nats, &["--drain-s", "0", "--simulated-tokens-per-s", "1000"]));
        within("a worker", async {
            while !workers.last().unwrap().log().contains("serving") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        if events.is_none() {
            events = Some(relay.send(&job(1, 6000)).await);
        }
        let (events, before) = (events.as_mut().unwrap(), answer.attempt);
        while answer.attempt == before {
            answer.follow(events, answer.tokens + 1).await;
        }
        let worker = workers.last_mut().unwrap();
        if attempt < 2 * MAX_FRUITLESS {
            worker.signal("TERM");
            assert!(worker.exit().await.success());
        }
    }
    let mut events = events.unwrap();
    let last = answer.follow(&mut events, u32::MAX).await;
    assert!(matches!(last.kind, EventKind::Done { .. }), "{last:?}");
    assert_eq!(answer.tokens, 6000);
    answer.assert_is_undisturbed();
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn a_job_that_kills_its_workers_is_given_up_and_set_aside() {
    let nats = NatsServer::start().await.unwrap();
    let relay = Relay::new(&nats).await;
    let deadly = job(1, 10);
    let mut events = None;
    // So slow that none of them comes to its first token.
    for attempt in 1..=MAX_FRUITLESS {
        let worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0.01"]);
        if events.is_none() {
            relay.wait_for_load(&[0]).await;
            events = Some(relay.send(&deadly).await);
        }
        loop {
            let event = events.as_mut().unwrap().next().await;
            if event.attempt >= attempt && matches!(event.kind, EventKind::Accepted(_)) {
                break;
            }
        }
        worker.signal("KILL");
    }
    let _worker = Worker::start(&nats, &[]);
    let last = events.unwrap().rest().await.pop().unwrap();
    let EventKind::Error(error) = last.kind else { panic!("{last:?}") };
    assert_eq!((error.status, error.code), (502, ErrorCode::WorkerFailed));
    wait_for_empty_queue(&nats).await;

    let admin = nats.admin_client().await.unwrap();
    let query = serde_json::json!({"last_by_subj": subject::dead(&subject::model_token(MODEL))}).to_string();
    let dead = format!("$JS.API.DIRECT.GET.{}", subject::DEAD_STREAM);
    let letter = within("the dead letter", admin.request(dead, query.into())).await.unwrap();
    assert_eq!(letter.payload, serde_json::to_vec(&deadly).unwrap());
    let header = |name: &str| Some(letter.headers.as_ref()?.get(name)?.to_string());
    assert_eq!(header(dead_letter::ATTEMPTS_HEADER), Some(MAX_FRUITLESS.to_string()));
    assert!(header(dead_letter::REASON_HEADER).unwrap().contains("died"));
    assert!(header(dead_letter::QUEUED_ON_HEADER).unwrap().starts_with("emberline.jobs."));
}

#[tokio::test]
async fn a_withdrawn_job_is_ended_before_anything_is_computed() {
    let nats = NatsServer::start().await.unwrap();
    let mut first = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    first.signal("TERM");
    assert!(first.exit().await.success());

    let unwanted = job(1, 30_000);
    let mut events = relay.send_silently(&unwanted).await;
    let message = PublishMessage::build().ttl(Duration::from_secs(60));
    let jetstream = jetstream::new(nats.function_client().await.unwrap());
    jetstream.send_publish(subject::withdrawn(&unwanted.id), message).await.unwrap().await.unwrap();

    let worker = Worker::start(&nats, &[]);
    let rest = events.rest().await;
    let kinds: Vec<_> = rest.iter().map(|event| &event.kind).collect();
    let [EventKind::Taken { .. }, EventKind::Finish { reason, .. }, EventKind::Done { usage, .. }] =
        kinds[..]
    else {
        panic!("{rest:?}")
    };
    assert_eq!((*reason, usage.completion_tokens), (FinishReason::Cancelled, 0));
    wait_for_empty_queue(&nats).await;
    assert!(!worker.log().contains("started"), "{}", worker.log());
}

#[tokio::test]
async fn a_job_whose_acknowledgement_was_lost_is_not_run_again() {
    let nats = NatsServer::start().await.unwrap();
    let mut first = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    first.signal("TERM");
    assert!(first.exit().await.success());

    // All of its log is there, written by a worker that died then.
    let ended = job(1, 30_000);
    relay.send_silently(&ended).await;
    let usage = emberline_protocol::event::Usage::default();
    let done = EventKind::Done { usage, timings: emberline_protocol::event::Timings::default(), at: None };
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    for (kind, index) in [EventKind::Taken { worker: "w".into(), ack: None }, done].into_iter().zip(0..) {
        let payload = serde_json::to_vec(&Chunk::of(1, index, kind)).unwrap();
        let stored = jetstream.publish(subject::events(&ended.id), payload.into()).await.unwrap();
        stored.await.unwrap();
    }
    let worker = Worker::start(&nats, &[]);
    wait_for_empty_queue(&nats).await;
    assert!(!worker.log().contains("started"), "{}", worker.log());
}

#[tokio::test]
async fn progress_is_told_often_enough() {
    let nats = NatsServer::start().await.unwrap();
    // The first token takes more than twice the time after which a silent worker's job is delivered again.
    let worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0.18"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let events = relay.send(&job(1, 1)).await.rest().await;
    assert!(events.iter().all(|event| event.attempt == 1), "{events:?}");
    assert!(!worker.log().contains("runs already"), "{}", worker.log());
    wait_for_empty_queue(&nats).await;
}
