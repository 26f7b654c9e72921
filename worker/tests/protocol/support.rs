//! A worker process, and the function's side of the protocol.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::{self, message::PublishMessage};
use async_nats::{Client, Subscriber};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::{Control, Orphan};
use emberline_protocol::event::EventKind;
use emberline_protocol::heartbeat::{Heartbeat, ModelState};
use emberline_protocol::job::{GenerationRequest, Job, Message, Role, SamplingOptions};
use emberline_protocol::model_summary::ModelSummary;
use emberline_protocol::subject::{self, JobId};
use emberline_test_kit::events::{Event, events_of};
use emberline_test_kit::nats::NatsServer;
use futures::StreamExt;
use tempfile::TempDir;
use tokio::task::JoinSet;

pub(crate) const MODEL: &str = "simulated-echo";
/// Nothing here takes this long; a machine that is busy compiling may be slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a relay says that its client is there; more often than in earnest, for a busy machine.
const ALIVE_INTERVAL: Duration = Duration::from_millis(200);

/// A worker process; killed when dropped.
pub(crate) struct Worker {
    process: Child,
    logs: TempDir,
}

impl Worker {
    /// Starts a worker of the simulated engine.
    pub(crate) fn start(nats: &NatsServer, args: &[&str]) -> Self {
        let address = nats.address();
        let all = [&["--nats", &address, "--engine", "simulated"], args].concat();
        Self::start_with(&all, emberline_test_kit::nats::WORKER_SEED)
    }

    /// Starts a worker of the models in a file.
    pub(crate) fn of_models(nats: &NatsServer, models: &Models, args: &[&str]) -> Self {
        let address = nats.address();
        let all = [&["--nats", &address, "--models", models.path.to_str().unwrap()], args].concat();
        Self::start_with(&all, emberline_test_kit::nats::WORKER_SEED)
    }

    /// Starts a worker with these arguments only.
    pub(crate) fn start_with(args: &[&str], seed: &str) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let stderr = File::create(logs.path().join("stderr")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_emberline-worker"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EMBERLINE_") {
                command.env_remove(name);
            }
        }
        let process = command
            .args(args)
            .env("EMBERLINE_NATS_NKEY_SEED", seed)
            .env("EMBERLINE_LOG", "debug,async_nats=info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { process, logs }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.logs.path().join("stderr")).unwrap()
    }

    /// Sends it a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success(), "kill -{name} {pid}");
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the worker does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() || std::env::var_os("EMBERLINE_TEST_LOGS").is_some() {
            eprintln!("--- worker {}\n{}", self.process.id(), self.log());
        }
    }
}

/// A file of models.
pub(crate) struct Models {
    folder: TempDir,
    pub(crate) path: PathBuf,
}

impl Models {
    /// Names and sources.
    pub(crate) fn new(models: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let models_file = Self { path: folder.path().join("models.toml"), folder };
        models_file.set(models);
        models_file
    }

    /// Puts another list in its place at once.
    pub(crate) fn set(&self, models: &[(&str, &str)]) {
        let entry = |(name, source)| format!("[[model]]\nname = '{name}'\nsource = '{source}'\n");
        self.write(&models.iter().copied().map(entry).collect::<String>());
    }

    /// The same with any text.
    pub(crate) fn write(&self, text: &str) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, &self.path).unwrap();
    }
}

/// A job for `model`, of `max_tokens` words, due in a minute.
pub(crate) fn job_for(model: &str, id: u128, max_tokens: u32) -> Job {
    Job { model: model.to_owned(), ..job(id, max_tokens) }
}

/// The same for the only model of most workers here.
pub(crate) fn job(id: u128, max_tokens: u32) -> Job {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_millis()).unwrap();
    Job {
        v: PROTOCOL_VERSION,
        id: JobId::from_random(id),
        model: MODEL.to_owned(),
        created: now,
        deadline: now + 60_000,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: vec![Message::new(Role::User, "two words")],
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            ..GenerationRequest::default()
        },
        seed: 1,
        background: None,
        account: None,
    }
}

/// The function's side: its user, its rights.
pub(crate) struct Relay {
    pub(crate) client: Client,
}

/// One job's events, as they come.
pub(crate) struct Events {
    subscriber: Subscriber,
    /// Those of the last chunk that are not taken yet.
    chunk: VecDeque<Event>,
    /// Speaks for the relay; ends with this.
    alive: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn new(nats: &NatsServer) -> Self {
        Self { client: nats.function_client().await.unwrap() }
    }

    /// Queues a job, listens to its events and says that it does.
    pub(crate) async fn send(&self, job: &Job) -> Events {
        let mut events = self.send_silently(job).await;
        let (client, subject) = (self.client.clone(), subject::control(&job.id));
        events.alive.spawn(async move {
            loop {
                tokio::time::sleep(ALIVE_INTERVAL).await;
                client.publish(subject.clone(), encode(Control::Alive).into()).await.unwrap();
            }
        });
        events
    }

    /// Queues a job and listens to its events, but never says so.
    pub(crate) async fn send_silently(&self, job: &Job) -> Events {
        let payload = serde_json::to_vec(job).unwrap();
        self.queue(&job.id, subject::jobs(&job.model, job.lane()), payload).await
    }

    /// Queues any bytes as the job `id`.
    pub(crate) async fn send_raw(&self, id: &JobId, subject: &str, payload: Vec<u8>) -> Events {
        self.queue(id, subject.to_owned(), payload).await
    }

    async fn queue(&self, id: &JobId, subject: String, payload: Vec<u8>) -> Events {
        let subscriber = self.client.subscribe(subject::live(id)).await.unwrap();
        let message = PublishMessage::build().payload(payload.into()).message_id(id.as_str());
        let jetstream = jetstream::new(self.client.clone());
        within("the job's acknowledgement", async {
            jetstream.send_publish(subject, message).await.unwrap().await.unwrap();
        })
        .await;
        Events { subscriber, chunk: VecDeque::new(), alive: JoinSet::new() }
    }

    pub(crate) async fn control(&self, job: &JobId, control: Control) {
        self.client.publish(subject::control(job), encode(control).into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Says that the worker that runs `job` is not connected.
    pub(crate) async fn report_orphan(&self, job: &JobId, ack: String) {
        let orphan = Orphan { v: PROTOCOL_VERSION, job: job.clone(), ack };
        let payload = serde_json::to_vec(&orphan).unwrap();
        self.client.publish(subject::orphans(MODEL), payload.into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// What the bucket of heartbeats has under keys that `filter` covers, with the keys' subjects: the latest last.
    async fn entries(&self, filter: &str) -> Vec<(String, Vec<u8>)> {
        let (mut entries, mut from) = (Vec::new(), Some(1_u64));
        while let Some(sequence) = from {
            let inbox = self.client.new_inbox();
            let mut answers = self.client.subscribe(inbox.clone()).await.unwrap();
            let subject = format!("$JS.API.DIRECT.GET.{}", subject::WORKERS_STREAM);
            let request = serde_json::json!({"next_by_subj": filter, "seq": sequence, "batch": 1000});
            self.client.publish_with_reply(subject, inbox, request.to_string().into()).await.unwrap();
            from = loop {
                let message = within("the heartbeats", answers.next()).await.unwrap();
                let header = |name: &str| message.headers.as_ref()?.get(name).map(ToString::to_string);
                let number = |name: &str| header(name)?.parse::<u64>().ok();
                // A status ends the batch: 204 after the last, 404 if there is none, 503 without a bucket.
                if message.status.is_some() {
                    let has_more = number("Nats-Num-Pending").is_some_and(|pending| pending > 0);
                    break number("Nats-Last-Sequence").filter(|_| has_more).map(|last| last + 1);
                }
                // A deleted key is an empty message.
                if !message.payload.is_empty() {
                    entries.push((header("Nats-Subject").unwrap(), message.payload.to_vec()));
                }
            };
        }
        entries
    }

    /// The workers' heartbeats, one for each worker.
    pub(crate) async fn heartbeats(&self) -> Vec<Heartbeat> {
        let entries = self.entries(subject::HEARTBEATS_SUBJECTS).await.into_iter();
        let heartbeats = entries.map(|(_, payload)| serde_json::from_slice::<Heartbeat>(&payload).unwrap());
        let latest: BTreeMap<_, _> =
            heartbeats.map(|heartbeat| (heartbeat.worker.clone(), heartbeat)).collect();
        latest.into_values().collect()
    }

    /// What the function knows of a model's workers.
    pub(crate) async fn summary(&self, model: &str) -> Option<ModelSummary> {
        let entries = self.entries(&subject::model_summary(model)).await;
        entries.last().map(|(_, payload)| ModelSummary::read(payload).unwrap())
    }

    /// Waits until a model's summary is as `wanted`.
    pub(crate) async fn wait_for_summary(
        &self,
        what: &str,
        model: &str,
        wanted: impl Fn(Option<&ModelSummary>) -> bool,
    ) -> Option<ModelSummary> {
        let started = Instant::now();
        loop {
            let summary = self.summary(model).await;
            if wanted(summary.as_ref()) {
                return summary;
            }
            assert!(started.elapsed() < PATIENCE, "waiting for {what}: {summary:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the heartbeats are as `wanted`.
    pub(crate) async fn wait_for(&self, what: &str, wanted: impl Fn(&[Heartbeat]) -> bool) -> Vec<Heartbeat> {
        let started = Instant::now();
        loop {
            let heartbeats = self.heartbeats().await;
            if wanted(&heartbeats) {
                return heartbeats;
            }
            assert!(started.elapsed() < PATIENCE, "waiting for {what}: {heartbeats:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for one worker whose models are in these states.
    pub(crate) async fn wait_for_states(&self, states: &[(&str, ModelState)]) -> Heartbeat {
        let what = format!("states {states:?}");
        let all = self.wait_for(&what, |heartbeats| match heartbeats {
            [heartbeats] => {
                heartbeats.states.iter().map(|m| (m.name.as_str(), m.state)).eq(states.iter().copied())
            }
            _ => false,
        });
        all.await.remove(0)
    }

    /// Waits for serving workers with these numbers of running jobs, in any order.
    pub(crate) async fn wait_for_load(&self, loads: &[u32]) -> Vec<Heartbeat> {
        let mut loads = loads.to_vec();
        loads.sort_unstable();
        self.wait_for(&format!("loads {loads:?}"), |heartbeats| {
            let mut seen: Vec<u32> = heartbeats.iter().map(|h| h.active).collect();
            seen.sort_unstable();
            seen == loads && heartbeats.iter().all(|h| !h.models.is_empty())
        })
        .await
    }
}

impl Events {
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.chunk.pop_front() {
                return event;
            }
            let message = within("an event", self.subscriber.next()).await.unwrap();
            let chunk: Chunk = serde_json::from_slice(&message.payload).unwrap();
            assert_eq!(chunk.v, PROTOCOL_VERSION);
            self.chunk.extend(events_of(chunk));
        }
    }

    /// The next token event of `attempt` or a later one.
    pub(crate) async fn next_tokens(&mut self, attempt: u32) -> Event {
        loop {
            let event = self.next().await;
            if event.attempt >= attempt && matches!(event.kind, EventKind::Tokens { .. }) {
                return event;
            }
        }
    }

    /// Reads on until the tokens at `position`, which must come before the job ends.
    pub(crate) async fn tokens_at(&mut self, position: u32) {
        loop {
            match self.next().await.kind {
                EventKind::Tokens { position: first, ids, .. }
                    if first as usize + ids.len() > position as usize =>
                {
                    return;
                }
                end @ (EventKind::Done { .. } | EventKind::Error(_)) => {
                    panic!("ended before {position}: {end:?}")
                }
                _ => {}
            }
        }
    }

    /// Everything up to the last event.
    pub(crate) async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            let last = matches!(event.kind, EventKind::Done { .. } | EventKind::Error(_));
            events.push(event);
            if last {
                return events;
            }
        }
    }
}

fn encode(control: Control) -> Vec<u8> {
    serde_json::to_vec(&control).unwrap()
}

/// Checks that nothing is missing of the first attempt from `attempt` on, which nobody took over, and
/// puts the text together. Numbers are left out where a job was given back before it was begun.
pub(crate) fn text_of(events: &[Event], attempt: u32) -> String {
    let (mut text, mut index) = (String::new(), 0);
    let events: Vec<_> = events.iter().filter(|event| event.attempt >= attempt).collect();
    let attempt = events.first().map_or(attempt, |first| first.attempt);
    for event in events {
        assert_eq!((event.attempt, event.index), (attempt, index), "{event:?}");
        index = event.next;
        if let EventKind::Tokens { text: more, .. } = &event.kind {
            text.push_str(more);
        }
    }
    text
}

/// Messages in JOBS, seen by someone who may.
pub(crate) async fn wait_for_empty_queue(nats: &NatsServer) {
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let started = Instant::now();
    loop {
        let stream = jetstream.get_stream(subject::JOBS_STREAM).await.unwrap();
        let messages = stream.cached_info().state.messages;
        if messages == 0 {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{messages} messages stay in the queue");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}
