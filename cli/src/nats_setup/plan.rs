//! What is to be done so that NATS has what is wanted.
//!
//! Of what is there, only that is changed which the protocol rests on or which was asked for. What
//! JetStream can't change in place is removed and made anew only when that was asked for, and only
//! where no more is lost than by a restart of nats-server.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use emberline_protocol::counter::LIMITS_STREAM;
use emberline_protocol::streams::{self, Consumer, Difference, Layout, Storage, Stream, readable};
use emberline_protocol::subject::{EVENTS_STREAM, JOBS_STREAM, KEPT_STREAM, WORKERS_STREAM};
use serde_json::{Value, json};

use crate::nats::jetstream_api::{self, JetStreamError};

/// Fields that JetStream does not change of what is there.
const FIXED: [&str; 4] = ["storage", "retention", "allow_msg_counter", "ack_policy"];
/// A worker that is running makes a stream again as soon as it is gone.
const RECREATIONS: u32 = 3;
/// How long other servers may take to copy a stream, and how often it is looked whether they have.
const REPLICATION: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);

/// What is asked for; `None` leaves it as it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    pub(super) replicas: Option<u8>,
    pub(super) storage: Option<Storage>,
    pub(super) queue_jobs: Option<i64>,
    pub(super) queue_bytes: Option<i64>,
    pub(super) events_bytes: Option<i64>,
    pub(super) kept_bytes: Option<i64>,
    /// Consumers of JOBS.
    pub(super) consumers: Vec<Consumer>,
    /// What can't be changed in place may be made anew.
    pub(super) recreate: bool,
}

impl Wishes {
    /// What is new is like this; `jobs` is the queue that is there.
    fn layout(&self, jobs: Option<&Value>) -> Layout {
        let default = Layout::default();
        let as_the_queue = || jobs?["config"]["num_replicas"].as_u64()?.try_into().ok();
        Layout {
            replicas: self.replicas.or_else(as_the_queue).unwrap_or(default.replicas),
            volatile: self.storage.unwrap_or(default.volatile),
            queue_jobs: self.queue_jobs.unwrap_or(default.queue_jobs),
            queue_bytes: self.queue_bytes.unwrap_or(default.queue_bytes),
            events_bytes: self.events_bytes.unwrap_or(default.events_bytes),
            kept_bytes: self.kept_bytes.unwrap_or(default.kept_bytes),
        }
    }

    /// The fields of a stream that something was asked for about.
    fn fields(&self, stream: &Stream) -> Vec<&'static str> {
        let bytes = match stream.name {
            JOBS_STREAM => self.queue_bytes,
            EVENTS_STREAM => self.events_bytes,
            KEPT_STREAM => self.kept_bytes,
            _ => None,
        };
        let jobs = self.queue_jobs.filter(|_| stream.name == JOBS_STREAM);
        let asked = [
            ("num_replicas", self.replicas.is_some()),
            ("storage", self.storage.is_some() && stream.volatile),
            ("max_msgs", jobs.is_some()),
            ("max_msgs_per_subject", jobs.is_some()),
            ("max_bytes", bytes.is_some()),
        ];
        asked.into_iter().filter_map(|(field, asked)| asked.then_some(field)).collect()
    }
}

/// What is to be done, in order.
#[derive(Debug)]
pub(super) struct Plan {
    steps: Vec<Step>,
}

/// What is to be done about one stream or consumer.
#[derive(Debug)]
struct Step {
    target: Target,
    action: Action,
}

#[derive(Debug)]
enum Target {
    Stream(Stream),
    Consumer(Consumer),
}

#[derive(Debug)]
enum Action {
    Keep,
    Create,
    /// The whole configuration as it will be, with what an operator has set and we don't know.
    Update {
        differences: Vec<Difference>,
        config: Value,
    },
    /// With so many messages that are lost.
    Recreate {
        differences: Vec<Difference>,
        messages: u64,
    },
    Blocked {
        differences: Vec<Difference>,
        remedy: String,
    },
}

impl Plan {
    /// Looks at what is there.
    pub(super) async fn make(client: &Client, wishes: &Wishes) -> Result<Self, JetStreamError> {
        let jobs = jetstream_api::find(client, &format!("STREAM.INFO.{JOBS_STREAM}")).await?;
        let mut steps = Vec::new();
        for stream in streams::streams(&wishes.layout(jobs.as_ref())) {
            let found = jetstream_api::find(client, &format!("STREAM.INFO.{}", stream.name)).await?;
            steps.push(Step::of_stream(stream, found.as_ref(), wishes));
        }
        for consumer in &wishes.consumers {
            let place = format!("CONSUMER.INFO.{JOBS_STREAM}.{}", consumer.durable_name);
            let found = jetstream_api::find(client, &place).await?;
            steps.push(Step::of_consumer(consumer.clone(), found.as_ref()));
        }
        Ok(Self { steps })
    }

    /// Whether something stands in the way of carrying it out.
    pub(super) fn is_blocked(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::Blocked { .. }))
    }

    /// How many streams and consumers it changes.
    pub(super) fn changes(&self) -> usize {
        self.steps.iter().filter(|step| !matches!(step.action, Action::Keep)).count()
    }

    /// Does it, and tells of each step that is done.
    pub(super) async fn carry_out(
        &self,
        client: &Client,
        mut tell: impl FnMut(String),
    ) -> anyhow::Result<()> {
        for step in &self.steps {
            let done = match step.action {
                Action::Keep | Action::Blocked { .. } => continue,
                Action::Create => "created",
                Action::Update { .. } => "updated",
                Action::Recreate { .. } => "made anew",
            };
            let target = &step.target;
            let carried_out = step.carry_out(client).await;
            carried_out.with_context(|| format!("{target} was not {done}{}", target.needs()))?;
            tell(format!("{done} {target}"));
        }
        for step in &self.steps {
            if let (Target::Stream(stream), true) = (&step.target, step.makes_replicas()) {
                wait_until_whole(client, stream).await?;
                tell(format!("stream {} has its {} replicas", stream.name, stream.num_replicas));
            }
        }
        Ok(())
    }
}

/// Waits until all replicas of a stream have what it holds: before that, a server that goes takes it along.
async fn wait_until_whole(client: &Client, stream: &Stream) -> anyhow::Result<()> {
    let whole = async {
        loop {
            let found = jetstream_api::find(client, &format!("STREAM.INFO.{}", stream.name)).await?;
            if found.is_some_and(|found| is_whole(&found, stream.num_replicas)) {
                return Ok::<_, JetStreamError>(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(REPLICATION, whole).await;
    waited.with_context(|| {
        let name = stream.name;
        format!("stream {name} is set up, but its replicas are not up to date yet; `nats stream info {name}` shows them")
    })??;
    Ok(())
}

fn is_whole(found: &Value, replicas: u8) -> bool {
    let others = found["cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    let is_current = |other: &Value| other["current"] == true && other["offline"] != true;
    others.len() + 1 >= usize::from(replicas) && others.iter().all(is_current)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.steps.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            step.fmt(f)?;
        }
        Ok(())
    }
}

impl Step {
    fn of_stream(stream: Stream, found: Option<&Value>, wishes: &Wishes) -> Self {
        let Some(found) = found else {
            return Self { target: Target::Stream(stream), action: Action::Create };
        };
        let config = &found["config"];
        let mut differences = stream.unfit(config);
        let asked = stream.differences(config, &wishes.fields(&stream));
        differences.extend(
            asked
                .into_iter()
                .filter(|asked| stream.unfit(config).iter().all(|unfit| unfit.field != asked.field)),
        );
        let messages = found["state"]["messages"].as_u64().unwrap_or_default();
        let action = if !differences.iter().any(is_fixed) {
            update(differences, config)
        } else if !stream.volatile {
            let remedy = format!("`nats stream rm {}` removes it with its {messages} messages", stream.name);
            Action::Blocked { differences, remedy }
        } else if wishes.recreate {
            Action::Recreate { differences, messages }
        } else {
            let remedy = format!("with --recreate it is made anew: {}", loss(&stream, messages));
            Action::Blocked { differences, remedy }
        };
        Self { target: Target::Stream(stream), action }
    }

    fn of_consumer(consumer: Consumer, found: Option<&Value>) -> Self {
        let action = match found.map(|found| &found["config"]) {
            None => Action::Create,
            Some(config) => {
                let differences = consumer.differences(config, &Consumer::FIELDS);
                if differences.iter().any(is_fixed) {
                    let remedy = format!("`nats consumer rm {JOBS_STREAM} {}`", consumer.durable_name);
                    Action::Blocked { differences, remedy }
                } else {
                    update(differences, config)
                }
            }
        };
        Self { target: Target::Consumer(consumer), action }
    }

    /// Whether other servers have to copy what it is about.
    fn makes_replicas(&self) -> bool {
        let Target::Stream(stream) = &self.target else { return false };
        stream.num_replicas > 1
            && match &self.action {
                Action::Create | Action::Recreate { .. } => true,
                Action::Update { differences, .. } => {
                    differences.iter().any(|difference| difference.field == "num_replicas")
                }
                Action::Keep | Action::Blocked { .. } => false,
            }
    }

    async fn carry_out(&self, client: &Client) -> Result<(), JetStreamError> {
        match &self.action {
            Action::Keep | Action::Blocked { .. } => Ok(()),
            Action::Create => self.target.put(client, "CREATE", &self.target.to_json()).await,
            Action::Update { config, .. } => self.target.put(client, "UPDATE", config).await,
            Action::Recreate { .. } => {
                let mut attempt = 1;
                loop {
                    let remove = format!("STREAM.DELETE.{}", self.target.name());
                    jetstream_api::find(client, &remove).await?;
                    match self.target.put(client, "CREATE", &self.target.to_json()).await {
                        Err(error) if error.is_taken() && attempt < RECREATIONS => attempt += 1,
                        created => return created,
                    }
                }
            }
        }
    }
}

fn is_fixed(difference: &Difference) -> bool {
    FIXED.contains(&difference.field)
}

fn update(differences: Vec<Difference>, config: &Value) -> Action {
    if differences.is_empty() {
        return Action::Keep;
    }
    let mut config = config.clone();
    for difference in &differences {
        config[difference.field] = difference.wanted.clone();
    }
    Action::Update { differences, config }
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Stream(stream) => stream.name,
            Self::Consumer(consumer) => &consumer.durable_name,
        }
    }

    fn stream(&self) -> Option<&Stream> {
        match self {
            Self::Stream(stream) => Some(stream),
            Self::Consumer(_) => None,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Stream(stream) => stream.to_json(),
            Self::Consumer(consumer) => consumer.to_json(),
        }
    }

    /// Sends a configuration; `action` is CREATE or UPDATE.
    async fn put(&self, client: &Client, action: &str, config: &Value) -> Result<(), JetStreamError> {
        let put = match self {
            Self::Stream(stream) => {
                jetstream_api::call(client, &format!("STREAM.{action}.{}", stream.name), config).await
            }
            Self::Consumer(Consumer { durable_name, filter_subject, .. }) => {
                let place = format!("CONSUMER.CREATE.{JOBS_STREAM}.{durable_name}.{filter_subject}");
                let body =
                    json!({"stream_name": JOBS_STREAM, "config": config, "action": action.to_lowercase()});
                jetstream_api::call(client, &place, &body).await
            }
        };
        put.map(drop)
    }

    /// What its replicas need, if it has several.
    fn needs(&self) -> String {
        match self {
            Self::Stream(Stream { num_replicas: replicas @ 2.., .. }) => {
                format!(" ({replicas} replicas need a cluster of at least {replicas} servers that are up)")
            }
            _ => String::new(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(stream) => write!(f, "stream {}", stream.name),
            Self::Consumer(consumer) => write!(f, "consumer {} of {JOBS_STREAM}", consumer.durable_name),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, action } = self;
        match action {
            Action::Keep => write!(f, "unchanged  {target}"),
            Action::Create => write!(f, "create     {target}{}", described(target)),
            Action::Update { differences, .. } => write!(f, "update     {target}: {}", listed(differences)),
            Action::Recreate { differences, messages } => {
                let loss = target.stream().map(|stream| loss(stream, *messages)).unwrap_or_default();
                write!(f, "recreate   {target}: {}; {loss}", listed(differences))
            }
            Action::Blocked { differences, remedy } => {
                write!(f, "can't      {target}: {} in place; {remedy}", listed(differences))
            }
        }
    }
}

/// What it means that a stream's messages are gone.
fn loss(stream: &Stream, messages: u64) -> String {
    let consequence = match stream.name {
        EVENTS_STREAM => "answers that are being given break off",
        LIMITS_STREAM => "limits by the minute count anew",
        WORKERS_STREAM => "workers are not known for some seconds",
        _ => "they are gone",
    };
    format!("its {messages} messages are lost, {consequence}")
}

fn described(target: &Target) -> String {
    let Some(stream) = target.stream() else { return String::new() };
    let config = stream.to_json();
    let told = |field: &str| readable(field, &config[field]);
    let replicas = if stream.num_replicas == 1 { "replica" } else { "replicas" };
    let room = format!("{} {replicas}, {}", stream.num_replicas, told("max_bytes"));
    let age = if stream.max_age.is_zero() { String::new() } else { format!(", {}", told("max_age")) };
    format!(": {}, {room}{age}", told("storage"))
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
