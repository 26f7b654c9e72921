//! The plan of `emberline nats setup`: one step for each stream and consumer.
//!
//! An existing stream is changed only where the protocol depends on a setting or the operator asked for a
//! change. What JetStream can't change in place is removed and recreated only on request, and only where
//! that loses no more than a restart of nats-server does.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use emberline_protocol::counter::LIMITS_STREAM;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::streams::{self, Consumer, Difference, Layout, Storage, Stream, readable};
use emberline_protocol::subject::{
    EVENTS_STREAM, JOBS_STREAM, KEPT_STREAM, KEYS_STREAM, USAGE_STREAM, WORKERS_STREAM,
};
use serde_json::{Value, json};

use crate::nats::access::NatsConnection;
use crate::nats::jetstream_api::{self, JetStreamError};

/// Settings that JetStream can't change in place.
const FIXED: [&str; 4] = ["storage", "retention", "allow_msg_counter", "ack_policy"];
/// How often recreating a stream is tried: a running worker of an older version may create it first.
const MAX_RECREATIONS: u32 = 3;
/// How long the other servers may take to copy a stream.
const REPLICATION_TIMEOUT: Duration = Duration::from_secs(60);
const REPLICATION_POLL: Duration = Duration::from_millis(250);

/// The changes that the operator asked for; `None` keeps what exists.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestedChanges {
    pub(super) replicas: Option<u8>,
    pub(super) storage: Option<Storage>,
    pub(super) queue_jobs: Option<i64>,
    pub(super) queue_bytes: Option<i64>,
    pub(super) events_bytes: Option<i64>,
    pub(super) kept_bytes: Option<i64>,
    pub(super) usage_bytes: Option<i64>,
    pub(super) usage_age: Option<Duration>,
    /// The domain whose keys count here, too.
    pub(super) keys_from: Option<JetStreamDomain>,
    /// The domains whose usage events are copied here.
    pub(super) usage_from: Vec<JetStreamDomain>,
    /// Consumers of `JOBS` to create or update.
    pub(super) consumers: Vec<Consumer>,
    /// Whether what can't be changed in place may be removed and recreated.
    pub(super) recreate: bool,
}

impl RequestedChanges {
    /// The layout of new streams. `jobs` is the existing queue, whose number of replicas they take over.
    fn layout(&self, jobs: Option<&Value>) -> Layout {
        let default = Layout::default();
        let replicas_of_queue = || jobs?["config"]["num_replicas"].as_u64()?.try_into().ok();
        Layout {
            replicas: self.replicas.or_else(replicas_of_queue).unwrap_or(default.replicas),
            volatile: self.storage.unwrap_or(default.volatile),
            queue_jobs: self.queue_jobs.unwrap_or(default.queue_jobs),
            queue_bytes: self.queue_bytes.unwrap_or(default.queue_bytes),
            events_bytes: self.events_bytes.unwrap_or(default.events_bytes),
            kept_bytes: self.kept_bytes.unwrap_or(default.kept_bytes),
            usage_bytes: self.usage_bytes.unwrap_or(default.usage_bytes),
            usage_age: self.usage_age.unwrap_or(default.usage_age),
        }
    }

    /// The streams of other domains from which `stream` is to have its messages, too.
    fn sources(&self, stream: &Stream) -> Vec<Value> {
        let domains = match stream.name {
            KEYS_STREAM => self.keys_from.as_slice(),
            USAGE_STREAM => &self.usage_from,
            _ => &[],
        };
        let source =
            |domain: &JetStreamDomain| json!({"name": stream.name, "external": {"api": domain.api_prefix()}});
        domains.iter().map(source).collect()
    }

    /// The sources that were asked for and that `config`, the configuration of an existing stream, lacks.
    fn missing_sources(&self, stream: &Stream, config: &Value) -> Option<Difference> {
        let found = config["sources"].as_array().cloned().unwrap_or_default();
        let same =
            |a: &Value, b: &Value| a["name"] == b["name"] && a["external"]["api"] == b["external"]["api"];
        let mut missing = self.sources(stream);
        missing.retain(|wanted| !found.iter().any(|found| same(found, wanted)));
        let is_complete = missing.is_empty();
        let wanted = found.iter().cloned().chain(missing).collect();
        (!is_complete).then(|| Difference { field: "sources", found: found.into(), wanted })
    }

    /// The settings of `stream` that were asked for.
    fn fields(&self, stream: &Stream) -> Vec<&'static str> {
        let bytes = match stream.name {
            JOBS_STREAM => self.queue_bytes,
            EVENTS_STREAM => self.events_bytes,
            KEPT_STREAM => self.kept_bytes,
            USAGE_STREAM => self.usage_bytes,
            _ => None,
        };
        let jobs = self.queue_jobs.filter(|_| stream.name == JOBS_STREAM);
        let asked = [
            ("num_replicas", self.replicas.is_some()),
            ("storage", self.storage.is_some() && stream.volatile),
            ("max_msgs", jobs.is_some()),
            ("max_msgs_per_subject", jobs.is_some()),
            ("max_bytes", bytes.is_some()),
            ("max_age", self.usage_age.is_some() && stream.name == USAGE_STREAM),
        ];
        asked.into_iter().filter_map(|(field, asked)| asked.then_some(field)).collect()
    }
}

/// The steps, in order.
#[derive(Debug)]
pub(super) struct SetupPlan {
    steps: Vec<PlanStep>,
}

/// What to do with one stream or consumer.
#[derive(Debug)]
struct PlanStep {
    target: PlanTarget,
    action: PlanAction,
}

/// A stream or consumer that does not fit this release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deviation {
    /// Whether it is a stream.
    pub(crate) is_stream: bool,
    /// Which one, and what is wrong with it.
    pub(crate) finding: String,
    /// What helps where setting up does not.
    pub(crate) remedy: Option<String>,
}

#[derive(Debug)]
enum PlanTarget {
    Stream(Stream),
    Consumer(Consumer),
}

#[derive(Debug)]
enum PlanAction {
    Keep,
    Create {
        config: Value,
    },
    /// `config` is the whole new configuration, including settings of the operator that we don't know.
    Update {
        differences: Vec<Difference>,
        config: Value,
    },
    /// Removes the stream first, with its `messages`.
    Recreate {
        differences: Vec<Difference>,
        messages: u64,
    },
    Blocked {
        differences: Vec<Difference>,
        remedy: String,
    },
}

impl SetupPlan {
    /// Compares what exists with what is wanted.
    pub(super) async fn make(
        client: &NatsConnection,
        requested: &RequestedChanges,
    ) -> Result<Self, JetStreamError> {
        Self::of_streams(client, requested, |_| true).await
    }

    /// The same for those streams that `wanted` names, of which JOBS must be one, and the requested consumers.
    pub(super) async fn of_streams(
        client: &NatsConnection,
        requested: &RequestedChanges,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, JetStreamError> {
        let jobs = jetstream_api::find(client, &format!("STREAM.INFO.{JOBS_STREAM}")).await?;
        let mut steps = Vec::new();
        let layout = requested.layout(jobs.as_ref());
        for stream in streams::streams(&layout).into_iter().filter(|stream| wanted(stream.name)) {
            let found = jetstream_api::find(client, &format!("STREAM.INFO.{}", stream.name)).await?;
            steps.push(PlanStep::of_stream(stream, found.as_ref(), requested));
        }
        for consumer in &requested.consumers {
            let place = format!("CONSUMER.INFO.{JOBS_STREAM}.{}", consumer.durable_name);
            let found = jetstream_api::find(client, &place).await?;
            steps.push(PlanStep::of_consumer(consumer.clone(), found.as_ref()));
        }
        Ok(Self { steps })
    }

    /// Whether some step can't be carried out.
    pub(super) fn is_blocked(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, PlanAction::Blocked { .. }))
    }

    /// The number of streams and consumers to change.
    pub(super) fn changes(&self) -> usize {
        self.steps.iter().filter(|step| !matches!(step.action, PlanAction::Keep)).count()
    }

    /// What does not fit this release.
    pub(super) fn deviations(&self) -> Vec<Deviation> {
        self.steps.iter().filter_map(PlanStep::deviation).collect()
    }

    /// Carries out every step, reports each when it is done, and waits until new replicas are up to date.
    pub(super) async fn carry_out(
        &self,
        client: &NatsConnection,
        mut report: impl FnMut(String),
    ) -> anyhow::Result<()> {
        for step in &self.steps {
            let done = match step.action {
                PlanAction::Keep | PlanAction::Blocked { .. } => continue,
                PlanAction::Create { .. } => "created",
                PlanAction::Update { .. } => "updated",
                PlanAction::Recreate { .. } => "recreated",
            };
            let target = &step.target;
            let carried_out = step.carry_out(client).await;
            carried_out.with_context(|| format!("{target} was not {done}{}", target.replicas_hint()))?;
            report(format!("{done} {target}"));
        }
        for step in &self.steps {
            if let (PlanTarget::Stream(stream), true) = (&step.target, step.makes_replicas()) {
                wait_for_replicas(client, stream).await?;
                report(format!("stream {} has its {} replicas", stream.name, stream.num_replicas));
            }
        }
        Ok(())
    }
}

/// Waits until all replicas of a stream are up to date: until then, a server that fails may take messages
/// with it.
async fn wait_for_replicas(client: &NatsConnection, stream: &Stream) -> anyhow::Result<()> {
    let replicated = async {
        loop {
            let found = jetstream_api::find(client, &format!("STREAM.INFO.{}", stream.name)).await?;
            if found.is_some_and(|found| is_replicated(&found, stream.num_replicas)) {
                return Ok::<_, JetStreamError>(());
            }
            tokio::time::sleep(REPLICATION_POLL).await;
        }
    };
    let waited = tokio::time::timeout(REPLICATION_TIMEOUT, replicated).await;
    waited.with_context(|| {
        let name = stream.name;
        format!("stream {name} is set up, but its replicas are not up to date yet; `nats stream info {name}` shows them")
    })??;
    Ok(())
}

fn is_replicated(found: &Value, replicas: u8) -> bool {
    let others = found["cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    let is_current = |other: &Value| other["current"] == true && other["offline"] != true;
    others.len() + 1 >= usize::from(replicas) && others.iter().all(is_current)
}

impl fmt::Display for SetupPlan {
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

impl PlanStep {
    fn of_stream(stream: Stream, found: Option<&Value>, requested: &RequestedChanges) -> Self {
        let Some(found) = found else {
            let mut config = stream.to_json();
            if let Some(sources) = requested.missing_sources(&stream, &config) {
                config["sources"] = sources.wanted;
            }
            return Self { target: PlanTarget::Stream(stream), action: PlanAction::Create { config } };
        };
        let config = &found["config"];
        let mut differences = stream.incompatible_fields(config);
        let asked = stream.differences(config, &requested.fields(&stream));
        differences.extend(asked.into_iter().filter(|asked| {
            stream.incompatible_fields(config).iter().all(|unfit| unfit.field != asked.field)
        }));
        differences.extend(requested.missing_sources(&stream, config));
        let messages = found["state"]["messages"].as_u64().unwrap_or_default();
        let action = if !differences.iter().any(is_fixed) {
            update(differences, config)
        } else if !stream.volatile {
            let remedy = format!("`nats stream rm {}` removes it with its {messages} messages", stream.name);
            PlanAction::Blocked { differences, remedy }
        } else if requested.recreate {
            PlanAction::Recreate { differences, messages }
        } else {
            let remedy = format!("--recreate removes and recreates it: {}", loss(&stream, messages));
            PlanAction::Blocked { differences, remedy }
        };
        Self { target: PlanTarget::Stream(stream), action }
    }

    fn of_consumer(consumer: Consumer, found: Option<&Value>) -> Self {
        let action = match found.map(|found| &found["config"]) {
            None => PlanAction::Create { config: consumer.to_json() },
            Some(config) => {
                let differences = consumer.differences(config, &Consumer::FIELDS);
                if differences.iter().any(is_fixed) {
                    let remedy = format!("`nats consumer rm {JOBS_STREAM} {}`", consumer.durable_name);
                    PlanAction::Blocked { differences, remedy }
                } else {
                    update(differences, config)
                }
            }
        };
        Self { target: PlanTarget::Consumer(consumer), action }
    }

    fn deviation(&self) -> Option<Deviation> {
        let (finding, remedy) = match &self.action {
            PlanAction::Keep => return None,
            PlanAction::Create { .. } => ("is missing".to_owned(), None),
            PlanAction::Update { differences, .. } | PlanAction::Recreate { differences, .. } => {
                (format!("differs: {}", listed(differences)), None)
            }
            PlanAction::Blocked { differences, remedy } => {
                (format!("differs: {}", listed(differences)), Some(remedy.clone()))
            }
        };
        let is_stream = self.target.stream().is_some();
        Some(Deviation { is_stream, finding: format!("{} {finding}", self.target), remedy })
    }

    /// Whether the step makes other servers copy a stream.
    fn makes_replicas(&self) -> bool {
        let PlanTarget::Stream(stream) = &self.target else { return false };
        stream.num_replicas > 1
            && match &self.action {
                PlanAction::Create { .. } | PlanAction::Recreate { .. } => true,
                PlanAction::Update { differences, .. } => {
                    differences.iter().any(|difference| difference.field == "num_replicas")
                }
                PlanAction::Keep | PlanAction::Blocked { .. } => false,
            }
    }

    async fn carry_out(&self, client: &NatsConnection) -> Result<(), JetStreamError> {
        match &self.action {
            PlanAction::Keep | PlanAction::Blocked { .. } => Ok(()),
            PlanAction::Create { config } => self.target.put(client, "CREATE", config).await,
            PlanAction::Update { config, .. } => self.target.put(client, "UPDATE", config).await,
            PlanAction::Recreate { .. } => {
                let mut attempt = 1;
                loop {
                    let remove = format!("STREAM.DELETE.{}", self.target.name());
                    jetstream_api::find(client, &remove).await?;
                    match self.target.put(client, "CREATE", &self.target.to_json()).await {
                        Err(error) if error.is_name_taken() && attempt < MAX_RECREATIONS => attempt += 1,
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

fn update(differences: Vec<Difference>, config: &Value) -> PlanAction {
    if differences.is_empty() {
        return PlanAction::Keep;
    }
    let mut config = config.clone();
    for difference in &differences {
        config[difference.field] = difference.wanted.clone();
    }
    PlanAction::Update { differences, config }
}

impl PlanTarget {
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

    /// Sends a configuration; `action` is `CREATE` or `UPDATE`.
    async fn put(&self, client: &NatsConnection, action: &str, config: &Value) -> Result<(), JetStreamError> {
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

    /// A hint at the servers that several replicas need, for an error.
    fn replicas_hint(&self) -> String {
        match self {
            Self::Stream(Stream { num_replicas: replicas @ 2.., .. }) => {
                format!(" ({replicas} replicas need a cluster of at least {replicas} servers that are up)")
            }
            _ => String::new(),
        }
    }
}

impl fmt::Display for PlanTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(stream) => write!(f, "stream {}", stream.name),
            Self::Consumer(consumer) => write!(f, "consumer {} of {JOBS_STREAM}", consumer.durable_name),
        }
    }
}

impl fmt::Display for PlanStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, action } = self;
        match action {
            PlanAction::Keep => write!(f, "unchanged  {target}"),
            PlanAction::Create { config } => {
                write!(f, "create     {target}{}{}", described(target), described_sources(config))
            }
            PlanAction::Update { differences, .. } => {
                write!(f, "update     {target}: {}{}", listed(differences), removed(differences))
            }
            PlanAction::Recreate { differences, messages } => {
                let loss = target.stream().map(|stream| loss(stream, *messages)).unwrap_or_default();
                write!(f, "recreate   {target}: {}; {loss}", listed(differences))
            }
            PlanAction::Blocked { differences, remedy } => {
                write!(f, "blocked    {target}: {} can't be changed in place; {remedy}", listed(differences))
            }
        }
    }
}

/// What losing a stream's messages means.
fn loss(stream: &Stream, messages: u64) -> String {
    let consequence = match stream.name {
        EVENTS_STREAM => "running answers break off",
        LIMITS_STREAM => "limits per minute start again at zero",
        WORKERS_STREAM => "workers are unknown for some seconds",
        _ => "for good",
    };
    format!("its {messages} messages are lost, {consequence}")
}

fn described(target: &PlanTarget) -> String {
    let Some(stream) = target.stream() else { return String::new() };
    let config = stream.to_json();
    let shown = |field: &str| readable(field, &config[field]);
    let replicas = if stream.num_replicas == 1 { "replica" } else { "replicas" };
    let room = format!("{} {replicas}, {}", stream.num_replicas, shown("max_bytes"));
    let age = if stream.max_age.is_zero() { String::new() } else { format!(", {}", shown("max_age")) };
    format!(": {}, {room}{age}", shown("storage"))
}

fn described_sources(config: &Value) -> String {
    match config.get("sources") {
        None => String::new(),
        Some(sources) => format!(", with {}", readable("sources", sources)),
    }
}

/// What an update removes: messages that are older than a new, lower age.
fn removed(differences: &[Difference]) -> &'static str {
    let is_shortened = |difference: &Difference| {
        let ages = difference.found.as_u64().zip(difference.wanted.as_u64());
        difference.field == "max_age" && ages.is_some_and(|(found, wanted)| found == 0 || wanted < found)
    };
    if differences.iter().any(is_shortened) { "; what is older is removed" } else { "" }
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
