//! Connects to the NATS of a stack: as the user `worker` to look at it, as `admin` to administer it.

use std::ops::Deref;
use std::time::Duration;

use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectOptions, ServerAddr};
use clap::Args;
use emberline_nats_access::{
    ConnectFailure, InvalidServer, NATS_HEADING, NatsArgs, Proof, ProofError, Secret, Secrets, TlsFiles,
    parse_server,
};
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::subject::{JobId, MIN_NATS_VERSION, is_supported_nats};

use super::global_args::Global;
use crate::cache::Cache;
use crate::running_stack::{self, RunningStackError};

/// How long connecting and each request may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// The users of deploy/nats.conf that commands connect as.
const WORKER: &str = "worker";
const ADMIN: &str = "admin";

/// Options that name the stack to look at, if it is not the one that runs with this cache folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArgs {
    #[command(flatten)]
    servers: ServerArgs,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    domain: DomainArgs,
}

/// Options that name the stack to administer, if it is not the one that runs with this cache folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    servers: Global<ServerArgs>,
    #[command(flatten)]
    nats: Global<NatsArgs>,
    #[command(flatten)]
    pub(crate) domain: Global<DomainArgs>,
}

#[derive(Debug, Clone, Args)]
struct ServerArgs {
    /// Addresses of nats-server, separated by commas: nats://HOST:PORT or tls://HOST:PORT [default: the running
    /// stack's]
    #[arg(
        long,
        env = "EMBERLINE_NATS",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = parse_server,
        help_heading = NATS_HEADING
    )]
    nats: Vec<ServerAddr>,
}

/// Options that say where the streams are, if they are not on the servers to which --nats leads.
#[derive(Debug, Clone, Args)]
pub(crate) struct DomainArgs {
    /// JetStream domain in which the streams are, where nats-server is a leaf node outside of it
    #[arg(
        long,
        env = "EMBERLINE_NATS_JETSTREAM_DOMAIN",
        value_name = "DOMAIN",
        default_value = "",
        hide_default_value = true,
        help_heading = NATS_HEADING
    )]
    pub(crate) nats_jetstream_domain: JetStreamDomain,
}

/// Where NATS is, who connects, and in which domain the streams are.
#[derive(Debug, Clone)]
pub(crate) struct NatsAccess {
    access: emberline_nats_access::NatsAccess,
    domain: JetStreamDomain,
}

/// A connection to NATS.
#[derive(Debug, Clone)]
pub(crate) struct NatsConnection {
    client: Client,
    /// The domain in which the streams are.
    domain: JetStreamDomain,
}

impl Deref for NatsConnection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl NatsConnection {
    /// A connection that was made with [`NatsAccess::options`], as it is.
    pub(crate) fn unchecked(client: Client, access: &NatsAccess) -> Self {
        Self { client, domain: access.domain.clone() }
    }

    /// JetStream, in the domain of the streams.
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        ContextBuilder::new().api_prefix(self.domain.api_prefix()).build(self.client.clone())
    }

    /// Where to publish what is meant for `subject`: requests to JetStream and writes to buckets go to the domain of
    /// the streams.
    pub(crate) fn subject_in_domain(&self, subject: &str) -> String {
        self.domain.subject(subject).into_owned()
    }
}

/// Why a stack's NATS can't be reached or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("no stack is running with this cache folder; start one with `make up`, or name one with --nats")]
    NoStack,
    #[error(
        "the running stack does not tell what proves to be the user `{0}`; give --nats and EMBERLINE_NATS_NKEY_SEED"
    )]
    NotRecorded(&'static str),
    #[error(transparent)]
    RunningStack(#[from] RunningStackError),
    #[error(transparent)]
    Address(#[from] InvalidServer),
    #[error(transparent)]
    Options(#[from] emberline_nats_access::AccessError),
    #[error(transparent)]
    Secrets(#[from] ProofError),
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    #[error("nats-server at {address} is {version}; Emberline needs {}.{} or newer", MIN_NATS_VERSION.0, MIN_NATS_VERSION.1)]
    TooOld { address: String, version: String },
    #[error(
        "nats-server at {address} has JetStream off; start it with deploy/nats.conf, or name the domain of the servers that have it with --nats-jetstream-domain"
    )]
    NoJetStream { address: String },
    #[error("reading the stream {stream} failed: {reason}")]
    Read { stream: &'static str, reason: String },
    #[error("the event log of job {0} does not end with timings")]
    NoTimings(JobId),
}

impl AccessArgs {
    /// Access to the stack that the options name, or to the running one.
    pub(crate) fn resolve(&self, cache: &Cache) -> Result<NatsAccess, AccessError> {
        self.resolve_as(WORKER, cache)
    }

    /// Whether the options name servers.
    pub(crate) fn name_servers(&self) -> bool {
        !self.servers.nats.is_empty()
    }

    /// The same as another user than `worker`.
    pub(crate) fn resolve_as(&self, user: &'static str, cache: &Cache) -> Result<NatsAccess, AccessError> {
        let Self { servers, nats, domain } = self.clone();
        resolve(servers, nats, domain, user, cache)
    }
}

impl AdminArgs {
    /// Access to the stack that the options name, or to the running one.
    pub(crate) fn resolve(&self, cache: &Cache) -> Result<NatsAccess, AccessError> {
        let Self { servers: Global(servers), nats: Global(nats), domain: Global(domain) } = self.clone();
        resolve(servers, nats, domain, ADMIN, cache)
    }
}

fn resolve(
    servers: ServerArgs,
    mut nats: NatsArgs,
    domain: DomainArgs,
    user: &'static str,
    cache: &Cache,
) -> Result<NatsAccess, AccessError> {
    if servers.nats.is_empty() {
        let stack = running_stack::find(cache)?.ok_or(AccessError::NoStack)?;
        return match user {
            WORKER => NatsAccess::worker(&stack.nats, stack.worker_seed),
            ADMIN => NatsAccess::admin(&stack.nats, stack.admin_seed),
            other => Err(AccessError::NotRecorded(other)),
        };
    }
    let secrets = match admin_secrets()? {
        Some(secrets) if user == ADMIN => {
            nats.nats_user = Some(ADMIN.to_owned());
            secrets
        }
        _ => Secrets::from_env()?,
    };
    let access = nats.access(servers.nats, secrets, user)?;
    Ok(NatsAccess { access, domain: domain.nats_jetstream_domain })
}

/// The secrets of the user `admin`, so that those of a worker may be in the same environment.
fn admin_secrets() -> Result<Option<Secrets>, ProofError> {
    let password = Secret::from_env("EMBERLINE_ADMIN_PASSWORD")?;
    let nkey_seed = Secret::from_env("EMBERLINE_ADMIN_NKEY_SEED")?;
    let is_given = password.is_some() || nkey_seed.is_some();
    Ok(is_given.then_some(Secrets { password, nkey_seed, token: None }))
}

impl NatsAccess {
    /// Access to a stack's nats-server with the rights of a worker.
    pub(crate) fn worker(address: &str, seed: String) -> Result<Self, AccessError> {
        Self::of_stack(address, WORKER, seed)
    }

    /// Access to a stack's nats-server with the right to manage keys and streams.
    pub(crate) fn admin(address: &str, seed: String) -> Result<Self, AccessError> {
        Self::of_stack(address, ADMIN, seed)
    }

    fn of_stack(address: &str, user: &str, seed: String) -> Result<Self, AccessError> {
        let proof = Proof::nkey("the running stack's own seed", seed);
        let servers = vec![parse_server(address)?];
        let access = emberline_nats_access::NatsAccess::new(servers, user.to_owned(), proof);
        Ok(Self { access, domain: JetStreamDomain::default() })
    }

    /// The servers.
    pub(crate) fn servers(&self) -> &[ServerAddr] {
        self.access.servers()
    }

    /// What TLS needs besides their names.
    pub(crate) fn tls(&self) -> &TlsFiles {
        self.access.tls()
    }

    /// The user's name in NATS.
    pub(crate) fn user(&self) -> &str {
        self.access.user()
    }

    /// The domain in which the streams are.
    pub(crate) fn domain(&self) -> &JetStreamDomain {
        &self.domain
    }

    /// What every connection is made with.
    pub(crate) fn options(&self) -> ConnectOptions {
        let options = self.access.options().name("emberline");
        options.connection_timeout(TIMEOUT).request_timeout(Some(TIMEOUT))
    }

    /// Connects, and checks that the server is new enough and has JetStream enabled.
    pub(crate) async fn connect(&self) -> Result<NatsConnection, AccessError> {
        let address = self.access.address();
        let client = self.access.connect(self.options()).await?;
        let info = client.server_info();
        if !is_supported_nats(&info.version) {
            return Err(AccessError::TooOld { address, version: info.version });
        }
        // A leaf node needs none of its own.
        if !info.jetstream && !self.domain.is_named() {
            return Err(AccessError::NoJetStream { address });
        }
        Ok(NatsConnection { client, domain: self.domain.clone() })
    }
}
