//! Emberline with simulated workers, as `emberline up` runs it, but with files of its own.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use emberline_protocol::heartbeat::ModelState;
use emberline_protocol::streams::{Layout, streams};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::load::Target;
use super::processes::Part;
use super::system::{NatsCounts, Pace, System};
use super::way::{PlannedWay, Way};
use crate::cache::Cache;
use crate::catalogue::Catalogue;
use crate::console::Console;
use crate::key_gen::new_api_key;
use crate::nats::access::{NatsAccess, NatsConnection};
use crate::nats::{jetstream_api, stored};
use crate::programs;
use crate::pull::Puller;
use crate::up;
use crate::up::bus_way::BusWay;
use crate::up::host::{self, FunctionHost};
use crate::up::plan::{Backend, Models, SIMULATED_MODEL, SimulatedEngine, StackPlan, StackUsers};
use crate::up::ports::{self, ListenAddress, PortClaim};
use crate::up::stack::Stack;
use crate::up::transcript::{StackPart, Transcript};

/// The parts on the way to nats-server: the function's host, and the edge if there is one.
pub(crate) const FUNCTION: &str = "function";
pub(crate) const EDGE: &str = "edge";
/// Jobs at once of a worker: more than there are clients.
const SLOTS: u16 = 512;
/// Limits that are counted as in `emberline up`, and that no load reaches.
const LIMITS: &str = "requests_per_minute=1000000000,tokens_per_minute=1000000000000";
/// How long a worker may take until it sends heartbeats.
const WORKER_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A stack that runs or is about to.
pub(crate) struct Emberline<'a> {
    plan: &'a StackPlan,
    stack: Stack<'a>,
    target: Target,
    /// A connection that may read what streams hold, as long as the stack runs.
    admin: Option<NatsConnection>,
    /// Workers whose heartbeats have been seen; those of dead ones are stored for a while.
    known_workers: HashSet<String>,
}

/// Plans a stack with its files in `folder`.
pub(crate) fn plan(
    way: Way,
    pace: Pace,
    host: Option<FunctionHost>,
    folder: &Path,
    cache: &Cache,
    console: &Console,
) -> anyhow::Result<StackPlan> {
    let free: ListenAddress = "127.0.0.1:0".parse()?;
    let claim = |part| PortClaim { listen: free, part, variable: "the address of the loopback interface" };
    let [listen, nats_listen, monitoring, edge] = ports::check([
        claim("function"),
        claim("nats-server"),
        claim("nats-server's monitoring"),
        claim("edge"),
    ])?;
    let root = up::find_built_root()?;
    let (host, host_program) = host::find(host, console)?;
    let PlannedWay { nats_config, bus_way } = way.plan(host, &root, folder, edge)?;
    let catalogue = Catalogue::load(None)?;
    Ok(StackPlan {
        root,
        nats_server: Puller::new(cache, &catalogue, console).nats_server()?,
        nats_config,
        nats_store: folder.join("nats"),
        nats_listen,
        nats_monitoring: Some(monitoring.port()),
        bus_way,
        listen,
        host,
        host_program,
        cache: cache.path(""),
        spin_state: folder.join("spin"),
        spin_cache: host::write_spin_cache(cache)?,
        worker_program: programs::sibling("emberline-worker")?,
        workers: 1,
        backend: Backend::Cpu,
        models: Models::Simulated(SimulatedEngine {
            slots: SLOTS,
            tokens_per_s: pace.tokens_per_s.unwrap_or(0),
        }),
        api_key: new_api_key()?,
        default_limits: Some(LIMITS.to_owned()),
        // Like the others: lines for each job would be written, and read by the load generator's process.
        log_filter: Some("warn"),
        users: StackUsers::random()?,
    })
}

impl<'a> Emberline<'a> {
    pub(crate) fn new(plan: &'a StackPlan, transcript: &'a Transcript, console: &'a Console) -> Self {
        let target = Target {
            address: plan.listen,
            api_key: Some(plan.api_key.clone()),
            model: SIMULATED_MODEL.to_owned(),
        };
        let stack = Stack::new(plan, transcript, console);
        Self { plan, stack, target, admin: None, known_workers: HashSet::new() }
    }

    /// The function's open connections to nats-server, of which an instance has some as long as it lives.
    pub(crate) async fn function_connections(&self) -> anyhow::Result<Vec<NatsClient>> {
        let Clients { mut connections } = self.monitoring("/connz?auth=true").await?;
        connections.retain(|client| client.authorized_user == self.plan.users.function.public);
        Ok(connections)
    }

    /// What nats-server reports of itself.
    async fn monitoring<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let port = self.plan.nats_monitoring.context("nats-server does not report on itself")?;
        let address = SocketAddr::new(self.plan.nats_listen.ip(), port);
        let (status, body) = Target::get(address, path).await?;
        ensure!(status == 200, "nats-server's monitoring at {address} answers {status}");
        serde_json::from_slice(&body).with_context(|| format!("nats-server's {path}"))
    }

    /// Makes sure that the function's connections are what the plan says.
    async fn check_way(&self) -> anyhow::Result<()> {
        let encrypts = matches!(self.plan.bus_way, BusWay::Tls { .. });
        let connections = self.function_connections().await?;
        ensure!(!connections.is_empty(), "the function has answered, and has no connection to nats-server");
        let as_planned = |client: &NatsClient| client.tls_version.is_some() == encrypts;
        ensure!(connections.iter().all(as_planned), "not what was to be measured: {connections:?}");
        Ok(())
    }

    /// The ids of the workers that serve, by their last heartbeats.
    async fn serving_workers(&self, nats: &NatsConnection) -> anyhow::Result<HashSet<String>> {
        let serves = |state: &ModelState| *state == ModelState::Serving;
        let heartbeats = stored::heartbeats(nats).await?.into_iter();
        let serving = heartbeats.filter(|beat| beat.states.iter().any(|model| serves(&model.state)));
        Ok(serving.map(|beat| beat.worker).collect())
    }
}

impl System for Emberline<'_> {
    async fn start(&mut self) -> anyhow::Result<()> {
        self.stack.start().await?;
        let nats = self.stack.nats_access()?.connect().await?;
        self.known_workers = self.serving_workers(&nats).await?;
        let seed = self.plan.users.admin.seed.clone();
        let admin = NatsAccess::admin(&self.plan.nats_address().to_string(), seed)?;
        self.admin = Some(admin.connect().await?);
        self.target.probe().await?;
        self.check_way().await
    }

    async fn stop(&mut self) {
        self.admin = None;
        self.stack.stop().await;
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn parts(&self) -> Vec<Part> {
        let name = |part| match part {
            StackPart::Nats => "nats-server",
            StackPart::Function => FUNCTION,
            StackPart::Edge => EDGE,
            StackPart::Worker(_) | StackPart::Peer(_) => "worker",
        };
        let part =
            |process: &up::process::Process| Part { name: name(process.part()), group: process.group() };
        self.stack.processes().map(part).collect()
    }

    async fn nats_counts(&self) -> anyhow::Result<Option<NatsCounts>> {
        let nats = self.admin.as_ref().context("the stack has not been started")?;
        let mut counts = NatsCounts::default();
        let names: BTreeSet<_> = streams(&Layout::default()).into_iter().map(|stream| stream.name).collect();
        for name in names {
            let found = jetstream_api::find(nats, &format!("STREAM.INFO.{name}")).await?;
            let last = found.and_then(|info| info["state"]["last_seq"].as_u64());
            counts.stored.insert(name.to_string(), last.unwrap_or(0));
        }
        let server: ServerCounts = self.monitoring("/varz").await?;
        counts.messages_in = server.in_msgs;
        counts.messages_out = server.out_msgs;
        counts.connections = server.total_connections;
        Ok(Some(counts))
    }

    async fn start_worker(&mut self, number: usize) -> anyhow::Result<()> {
        self.stack.start_worker(number)?;
        let nats = self.stack.nats_access()?.connect().await?;
        let began = Instant::now();
        loop {
            let serving = self.serving_workers(&nats).await?;
            if !serving.is_subset(&self.known_workers) {
                self.known_workers.extend(serving);
                return Ok(());
            }
            ensure!(began.elapsed() < WORKER_TIMEOUT, "worker {number} was started and serves nothing");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn kill_worker(&mut self, number: usize) {
        self.stack.kill_worker(number).await;
    }
}

/// The part of nats-server's /varz that is read.
#[derive(Debug, Deserialize)]
struct ServerCounts {
    in_msgs: u64,
    out_msgs: u64,
    /// Since the start, those that have ended included.
    total_connections: u64,
}

/// The part of its /connz that is read.
#[derive(Debug, Deserialize)]
struct Clients {
    connections: Vec<NatsClient>,
}

/// A client of nats-server.
#[derive(Debug, Deserialize)]
pub(crate) struct NatsClient {
    /// The public key of its user; empty while it has not proved who it is.
    #[serde(default)]
    authorized_user: String,
    /// The version of TLS that it speaks.
    tls_version: Option<String>,
}
