//! What a job's key is charged: corrected counters and usage, once each.

use std::collections::BTreeMap;

use async_nats::Client;
use async_nats::jetstream::{self, message::PublishMessage};
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::Control;
use emberline_protocol::counter::{Bucket, Counter, INCREMENT_HEADER, Owner};
use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{Acceptance, EventKind};
use emberline_protocol::job::{Account, Job};
use emberline_protocol::key::KeyId;
use emberline_protocol::lane::Lane;
use emberline_protocol::subject::{self, JobId, USAGE_STREAM, USAGE_SUBJECTS};
use emberline_protocol::usage::{Outcome, UsageEvent};
use emberline_test_kit::nats::NatsServer;
use futures::StreamExt;

use crate::support::{MODEL, Relay, Worker, job, wait_for_empty_queue, within};

/// The key's counters, and what has been told of its usage.
struct Ledger {
    key: KeyId,
    function: jetstream::Context,
    admin: Client,
    tokens: Bucket,
    /// The key's and the model's.
    jobs: [Bucket; 2],
}

impl Ledger {
    async fn new(nats: &NatsServer, relay: &Relay) -> Self {
        let key = KeyId::of_key(b"key");
        let bucket = |counter, number| Bucket { owner: Owner::Key(key.clone()), counter, number };
        let of_model = Bucket { owner: Owner::model(MODEL), counter: Counter::ModelJobs, number: 99 };
        Self {
            // A bucket to come, so that all corrections are made in it, and none in that of now.
            tokens: bucket(Counter::TokensDay, job(0, 1).created / 86_400_000 + 2),
            jobs: [bucket(Counter::Jobs, 99), of_model],
            function: jetstream::new(relay.client.clone()),
            admin: nats.admin_client().await.unwrap(),
            key,
        }
    }

    async fn add(&self, bucket: &Bucket, amount: i64) -> i64 {
        let message = PublishMessage::build().header(INCREMENT_HEADER, amount.to_string());
        let sum = self.function.send_publish(bucket.subject(), message).await.unwrap().await.unwrap();
        sum.value.unwrap().parse().unwrap()
    }

    /// Counts a job as the function does.
    async fn admitted(&self, job: Job, reserved: u64) -> Job {
        self.add(&self.tokens, i64::try_from(reserved).unwrap()).await;
        for jobs in &self.jobs {
            self.add(jobs, 1).await;
        }
        let account = Account {
            key: self.key.clone(),
            reserved_tokens: reserved,
            token_counters: vec![self.tokens.subject()],
            job_counters: self.jobs.iter().map(Bucket::subject).collect(),
            lane: Lane::default(),
            admission: None,
        };
        Job { account: Some(account), ..job }
    }

    /// Tokens and jobs that are counted now.
    async fn sums(&self) -> (i64, i64) {
        let [of_key, of_model] = &self.jobs;
        let jobs = self.add(of_key, 0).await;
        assert_eq!(self.add(of_model, 0).await, jobs);
        (self.add(&self.tokens, 0).await, jobs)
    }

    /// Makes USAGE full, or gives it room.
    async fn fill_usage(&self, fill: bool) {
        let context = jetstream::new(self.admin.clone());
        let mut config = context.get_stream(USAGE_STREAM).await.unwrap().cached_info().config.clone();
        config.max_bytes = if fill { 1 } else { -1 };
        context.update_stream(config).await.unwrap();
    }

    /// Everything told of the key's jobs.
    async fn usage(&self) -> Vec<UsageEvent> {
        let inbox = self.admin.new_inbox();
        let mut answers = self.admin.subscribe(inbox.clone()).await.unwrap();
        let subject = format!("$JS.API.DIRECT.GET.{USAGE_STREAM}");
        let request = serde_json::json!({"next_by_subj": USAGE_SUBJECTS, "seq": 1, "batch": 100});
        self.admin.publish_with_reply(subject, inbox, request.to_string().into()).await.unwrap();
        let mut events = Vec::new();
        while let Some(message) = within("the usage", answers.next()).await {
            if message.status.is_some() {
                break;
            }
            events.push(serde_json::from_slice(&message.payload).unwrap());
        }
        events
    }
}

#[tokio::test]
async fn a_job_is_charged_what_it_used_however_it_ends() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let ledger = Ledger::new(&nats, &relay).await;

    // Complete: less than reserved, and more.
    let short = ledger.admitted(job(1, 8), 500).await;
    relay.send(&short).await.rest().await;
    assert_eq!(ledger.sums().await, (2 + 8, 0), "told before the client hears of the end");
    let long = ledger.admitted(job(2, 20), 3).await;
    relay.send(&long).await.rest().await;
    assert_eq!(ledger.sums().await, (10 + 2 + 20, 0));

    // Cancelled.
    let cancelled = ledger.admitted(job(3, 30_000), 40_000).await;
    let mut events = relay.send(&cancelled).await;
    events.next_tokens(1).await;
    relay.control(&cancelled.id, Control::Cancel).await;
    let EventKind::Done { usage, .. } = events.rest().await.pop().unwrap().kind else { panic!("not done") };
    let used = i64::from(usage.prompt_tokens + usage.completion_tokens);
    assert_eq!(ledger.sums().await, (32 + used, 0));

    // Late, refused by the engine, and late before it began.
    let mut slow = ledger.admitted(job(4, 30_000), 100).await;
    slow.deadline = slow.created + 1000;
    let too_long = ledger.admitted(job(5, u32::MAX), 100).await;
    let mut late = ledger.admitted(job(6, 1), 100).await;
    late.deadline = 1;
    for job in [&slow, &too_long, &late] {
        relay.send(job).await.rest().await;
    }
    wait_for_empty_queue(&nats).await;

    let told: BTreeMap<JobId, UsageEvent> =
        ledger.usage().await.into_iter().map(|event| (event.job.clone(), event)).collect();
    let outcomes: Vec<Outcome> = told.values().map(|event| event.outcome).collect();
    let failed = Outcome::Failed;
    assert_eq!(
        outcomes,
        [
            Outcome::Done,
            Outcome::Done,
            Outcome::Cancelled,
            failed(ErrorCode::Timeout),
            failed(ErrorCode::ContextLengthExceeded),
            failed(ErrorCode::Timeout)
        ]
    );
    let first = &told[&short.id];
    assert_eq!((first.usage.prompt_tokens, first.usage.completion_tokens), (2, 8));
    assert_eq!(
        (&first.key, first.model.as_str(), first.created),
        (&ledger.key, "simulated-echo", short.created)
    );
    assert!(first.finished >= first.created && first.timings.first_token_ms > 0.0);
    let slow = told[&slow.id].usage;
    assert!(slow.completion_tokens > 0, "what was computed in vain counts, too");
    let sum = |event: &UsageEvent| i64::from(event.usage.prompt_tokens + event.usage.completion_tokens);
    assert_eq!(ledger.sums().await, (told.values().map(sum).sum(), 0));
}

#[tokio::test]
async fn a_worker_killed_with_five_jobs_leaves_no_job_counted_and_none_charged_twice() {
    let nats = NatsServer::start().await.unwrap();
    let first = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let ledger = Ledger::new(&nats, &relay).await;
    let (mut jobs, mut logs) = (Vec::new(), Vec::new());
    for id in 1..=5 {
        let job = ledger.admitted(job(id, 30_000), 100).await;
        let mut events = relay.send(&job).await;
        events.next_tokens(1).await;
        jobs.push(job);
        logs.push(events);
    }
    assert_eq!(ledger.sums().await, (500, 5));
    drop(first); // SIGKILL
    assert_eq!(ledger.sums().await, (500, 5));
    let _second = Worker::start(&nats, &[]);
    for (job, events) in jobs.iter().zip(&mut logs) {
        events.next_tokens(2).await;
        relay.control(&job.id, Control::Cancel).await;
        events.rest().await;
    }
    wait_for_empty_queue(&nats).await;
    let told = ledger.usage().await;
    let mut ids: Vec<&JobId> = told.iter().map(|event| &event.job).collect();
    ids.sort_unstable();
    assert_eq!(ids, jobs.iter().map(|job| &job.id).collect::<Vec<_>>());
    let used: u32 = told.iter().map(|event| event.usage.prompt_tokens + event.usage.completion_tokens).sum();
    assert_eq!(ledger.sums().await, (i64::from(used), 0));
}

#[tokio::test]
async fn a_job_that_was_charged_already_is_not_charged_again() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let ledger = Ledger::new(&nats, &relay).await;
    let job = ledger.admitted(job(1, 8), 100).await;
    relay.send(&job).await.rest().await;
    wait_for_empty_queue(&nats).await;
    // Queued once more, as if the worker had died just before its acknowledgement.
    let other_id = JobId::from_random(77);
    let payload = serde_json::to_vec(&job).unwrap();
    relay.send_raw(&other_id, &subject::jobs(&job.model, job.lane()), payload).await;
    wait_for_empty_queue(&nats).await;
    assert_eq!(ledger.sums().await, (10, 0));
    assert_eq!(ledger.usage().await.len(), 1);
}

#[tokio::test]
async fn a_job_whose_charge_cannot_be_stored_stays_queued_until_a_worker_has_stored_it() {
    let nats = NatsServer::start().await.unwrap();
    // Longer than the time after which such a job takes a slot again.
    let mut first = Worker::start(&nats, &["--slots", "1", "--drain-s", "31"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let ledger = Ledger::new(&nats, &relay).await;
    let before = ledger.admitted(job(2, 8), 100).await;
    relay.send(&before).await.rest().await;
    wait_for_empty_queue(&nats).await;
    ledger.fill_usage(true).await;
    let job = ledger.admitted(job(1, 8), 100).await;
    // Its client has the answer.
    relay.send(&job).await.rest().await;
    assert_eq!(ledger.sums().await, (20, 0));
    first.signal("TERM");
    assert!(first.exit().await.success());
    let log = first.log();
    let lines = log.lines().filter(|line| line.contains("nats-server has not confirmed the job's charge"));
    let [line] = lines.collect::<Vec<_>>()[..] else { panic!("{log}") };
    let said =
        [job.id.as_str(), ledger.key.as_str(), MODEL, "prompt_tokens=2", "completion_tokens=8", "Done"];
    for word in said {
        assert!(line.contains(word), "{word}: {line}");
    }
    let remedy = log.lines().find(|line| line.contains("the stream USAGE is full")).unwrap();
    for word in ["maximum bytes exceeded", "emberline usage export", "--usage-age", "--usage-bytes"] {
        assert!(remedy.contains(word), "{word}: {remedy}");
    }
    let told = ledger.usage().await;
    assert_eq!(told.iter().map(|event| &event.job).collect::<Vec<_>>(), [&before.id], "none made room");

    ledger.fill_usage(false).await;
    let _second = Worker::start(&nats, &[]);
    wait_for_empty_queue(&nats).await;
    let told: Vec<JobId> = ledger.usage().await.into_iter().map(|event| event.job).collect();
    assert_eq!(told, [before.id, job.id]);
    assert_eq!(ledger.sums().await, (20, 0));
}

/// Writes the log of a worker that died after it had generated some tokens of a job; they are used tokens.
async fn written_by_another(nats: &NatsServer, job: &Job) -> i64 {
    let accepted = Acceptance { prompt_tokens: 2, ..Acceptance::default() };
    // What the simulated engine says.
    let tokens = EventKind::Tokens {
        choice: 0,
        position: 0,
        ids: vec![0, 1],
        text: "The quick".into(),
        logprobs: Vec::new(),
    };
    let kinds = [EventKind::Taken { worker: "w".into(), ack: None }, EventKind::Accepted(accepted), tokens];
    write(nats, job, 1, &kinds).await;
    2 + 2
}

async fn write(nats: &NatsServer, job: &Job, attempt: u32, kinds: &[EventKind]) {
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    for (kind, index) in kinds.iter().zip(0..) {
        let payload = serde_json::to_vec(&Chunk::of(attempt, index, kind.clone())).unwrap();
        jetstream.publish(job.log().1, payload.into()).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn a_failure_is_charged_what_the_attempts_before_it_have_used() {
    let nats = NatsServer::start().await.unwrap();
    let mut first = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let ledger = Ledger::new(&nats, &relay).await;
    first.signal("TERM");
    assert!(first.exit().await.success());

    // Late when the next worker takes it, refused by it, and given up after workers that died before their first token.
    let late = Job { deadline: 1, ..job(1, 30_000) };
    let refused = job(2, u32::MAX);
    let deadly = job(3, 30_000);
    let mut used = 0;
    for job in [&late, &refused, &deadly] {
        used += written_by_another(&nats, job).await;
    }
    for attempt in 2..=4 {
        write(&nats, &deadly, attempt, &[EventKind::Taken { worker: format!("w{attempt}"), ack: None }])
            .await;
    }
    let mut logs = Vec::new();
    for job in [late, refused, deadly] {
        logs.push(relay.send(&ledger.admitted(job, 100).await).await);
    }
    let _second = Worker::start(&nats, &[]);
    let mut told = 0;
    for events in &mut logs {
        let last = events.rest().await.pop().unwrap().kind;
        let usage = match last {
            EventKind::Done { usage, .. } => usage,
            EventKind::Error(error) => error.usage.unwrap(),
            other => panic!("{other:?}"),
        };
        told += i64::from(usage.prompt_tokens + usage.completion_tokens);
    }
    wait_for_empty_queue(&nats).await;
    assert_eq!((told, ledger.sums().await), (used, (used, 0)));
    let outcomes: BTreeMap<JobId, Outcome> =
        ledger.usage().await.into_iter().map(|event| (event.job, event.outcome)).collect();
    let failed = Outcome::Failed;
    assert_eq!(
        outcomes.into_values().collect::<Vec<_>>(),
        [
            failed(ErrorCode::Timeout),
            failed(ErrorCode::ContextLengthExceeded),
            failed(ErrorCode::WorkerFailed)
        ]
    );
}
