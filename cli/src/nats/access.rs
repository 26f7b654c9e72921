//! Connects to the NATS of a stack: as the user `worker` to look at it, as `admin` to administer it.

use std::ops::Deref;
use std::time::Duration;

use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectOptions};
use clap::Args;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::subject::{self, JobId, MIN_NATS_VERSION};

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
    /// Address of nats-server [default: the running stack's]
    #[arg(long, value_name = "ADDRESS", requires = "nats_password")]
    pub(crate) nats: Option<String>,
    /// Password of the user `worker`
    #[arg(long, env = "EMBERLINE_NATS_PASSWORD", hide_env_values = true)]
    pub(crate) nats_password: Option<String>,
    #[command(flatten)]
    domain: DomainArgs,
}

/// Options that name the stack to administer, if it is not the one that runs with this cache folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    /// Address of nats-server; of a cluster, several separated by commas [default: the running stack's]
    #[arg(long, value_name = "ADDRESS", global = true)]
    nats: Option<String>,
    /// Password of the user `admin`
    #[arg(long, env = "EMBERLINE_ADMIN_PASSWORD", hide_env_values = true, global = true)]
    admin_password: Option<String>,
    #[command(flatten)]
    pub(crate) domain: DomainArgs,
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
        global = true
    )]
    pub(crate) nats_jetstream_domain: JetStreamDomain,
}

/// The address of nats-server, and a user with a password.
#[derive(Debug, Clone)]
pub(crate) struct NatsAccess {
    pub(crate) address: String,
    user: &'static str,
    password: String,
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
    #[error("--nats needs the password of the user `admin`: set EMBERLINE_ADMIN_PASSWORD")]
    NoPassword,
    #[error(
        "the running stack does not tell the password of the user `{0}`; give --nats and EMBERLINE_NATS_PASSWORD"
    )]
    NotRecorded(&'static str),
    #[error(transparent)]
    RunningStack(#[from] RunningStackError),
    #[error("nats-server at {address}: {reason}")]
    Connect { address: String, reason: String },
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
        self.nats.is_some()
    }

    /// The same as another user than `worker`.
    pub(crate) fn resolve_as(&self, user: &'static str, cache: &Cache) -> Result<NatsAccess, AccessError> {
        if let (Some(address), Some(password)) = (self.nats.clone(), self.nats_password.clone()) {
            let access = NatsAccess { user, ..NatsAccess::worker(address, password) };
            return Ok(access.in_domain(&self.domain));
        }
        let stack = running_stack::find(cache)?.ok_or(AccessError::NoStack)?;
        match user {
            WORKER => Ok(NatsAccess::worker(stack.nats, stack.worker_password)),
            ADMIN => Ok(NatsAccess::admin(stack.nats, stack.admin_password)),
            other => Err(AccessError::NotRecorded(other)),
        }
    }
}

impl AdminArgs {
    /// Access to the stack that the options name, or to the running one.
    pub(crate) fn resolve(&self, cache: &Cache) -> Result<NatsAccess, AccessError> {
        if let Some(address) = self.nats.clone() {
            let password = self.admin_password.clone().ok_or(AccessError::NoPassword)?;
            return Ok(NatsAccess::admin(address, password).in_domain(&self.domain));
        }
        let stack = running_stack::find(cache)?.ok_or(AccessError::NoStack)?;
        Ok(NatsAccess::admin(stack.nats, stack.admin_password))
    }
}

impl NatsAccess {
    /// Access with the rights of a worker.
    pub(crate) fn worker(address: String, password: String) -> Self {
        Self { address, user: WORKER, password, domain: JetStreamDomain::default() }
    }

    /// Access with the right to manage keys and streams.
    pub(crate) fn admin(address: String, password: String) -> Self {
        Self { address, user: ADMIN, password, domain: JetStreamDomain::default() }
    }

    /// The same, with the streams in the domain that the options name.
    fn in_domain(self, args: &DomainArgs) -> Self {
        Self { domain: args.nats_jetstream_domain.clone(), ..self }
    }

    /// The addresses of the servers.
    pub(crate) fn servers(&self) -> Vec<&str> {
        self.address.split(',').map(str::trim).collect()
    }

    /// The user's name in NATS.
    pub(crate) fn user(&self) -> &str {
        self.user
    }

    /// The domain in which the streams are.
    pub(crate) fn domain(&self) -> &JetStreamDomain {
        &self.domain
    }

    /// What every connection is made with.
    pub(crate) fn options(&self) -> ConnectOptions {
        ConnectOptions::with_user_and_password(self.user.to_owned(), self.password.clone())
            .name("emberline")
            // deploy/nats.conf lets each user subscribe to its own inboxes only.
            .custom_inbox_prefix(subject::inbox_prefix(self.user))
            .connection_timeout(TIMEOUT)
            .request_timeout(Some(TIMEOUT))
    }

    /// Connects, and checks that the server is new enough and has JetStream enabled.
    pub(crate) async fn connect(&self) -> Result<NatsConnection, AccessError> {
        let address = self.address.clone();
        let client = self
            .options()
            .connect(self.servers())
            .await
            .map_err(|e| AccessError::Connect { address: address.clone(), reason: e.to_string() })?;
        let info = client.server_info();
        if !subject::is_supported_nats(&info.version) {
            return Err(AccessError::TooOld { address, version: info.version });
        }
        // A leaf node needs none of its own.
        if !info.jetstream && !self.domain.is_named() {
            return Err(AccessError::NoJetStream { address });
        }
        Ok(NatsConnection { client, domain: self.domain.clone() })
    }
}
