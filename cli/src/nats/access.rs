//! Connects to the NATS of a stack: as the user `worker` to look at it, as `admin` to administer it.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use clap::Args;
use emberline_protocol::subject::{self, JobId, MIN_NATS_VERSION};

use crate::cache::Cache;
use crate::running_stack::{self, RunningStackError};

/// How long connecting and each request may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Options that name the stack to look at, if it is not the one that runs with this cache folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArgs {
    /// Address of nats-server [default: the running stack's]
    #[arg(long, value_name = "ADDRESS", requires = "nats_password")]
    pub(crate) nats: Option<String>,
    /// Password of the user `worker`
    #[arg(long, env = "EMBERLINE_NATS_PASSWORD", hide_env_values = true)]
    pub(crate) nats_password: Option<String>,
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
}

/// The address of nats-server, and a user with a password.
#[derive(Debug, Clone)]
pub(crate) struct NatsAccess {
    pub(crate) address: String,
    user: &'static str,
    password: String,
}

/// Why a stack's NATS can't be reached or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("no stack is running with this cache folder; start one with `make up`, or name one with --nats")]
    NoStack,
    #[error("--nats needs the password of the user `admin`: set EMBERLINE_ADMIN_PASSWORD")]
    NoPassword,
    #[error(transparent)]
    RunningStack(#[from] RunningStackError),
    #[error("nats-server at {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("nats-server at {address} is {version}; Emberline needs {}.{} or newer", MIN_NATS_VERSION.0, MIN_NATS_VERSION.1)]
    TooOld { address: String, version: String },
    #[error("nats-server at {address} has JetStream off; start it with deploy/nats.conf")]
    NoJetStream { address: String },
    #[error("reading the stream {stream} failed: {reason}")]
    Read { stream: &'static str, reason: String },
    #[error("the event log of job {0} does not end with timings")]
    NoTimings(JobId),
}

impl AccessArgs {
    /// Access to the stack that the options name, or to the running one.
    pub(crate) fn resolve(&self, cache: &Cache) -> Result<NatsAccess, AccessError> {
        if let (Some(address), Some(password)) = (self.nats.clone(), self.nats_password.clone()) {
            return Ok(NatsAccess::worker(address, password));
        }
        let stack = running_stack::find(cache)?.ok_or(AccessError::NoStack)?;
        Ok(NatsAccess::worker(stack.nats, stack.worker_password))
    }
}

impl AdminArgs {
    /// Access to the stack that the options name, or to the running one.
    pub(crate) fn resolve(&self, cache: &Cache) -> Result<NatsAccess, AccessError> {
        if let Some(address) = self.nats.clone() {
            let password = self.admin_password.clone().ok_or(AccessError::NoPassword)?;
            return Ok(NatsAccess::admin(address, password));
        }
        let stack = running_stack::find(cache)?.ok_or(AccessError::NoStack)?;
        Ok(NatsAccess::admin(stack.nats, stack.admin_password))
    }
}

impl NatsAccess {
    /// Access with the rights of a worker.
    pub(crate) fn worker(address: String, password: String) -> Self {
        Self { address, user: "worker", password }
    }

    /// Access with the right to manage keys and streams.
    pub(crate) fn admin(address: String, password: String) -> Self {
        Self { address, user: "admin", password }
    }

    /// Connects, and checks that the server is new enough and has JetStream enabled.
    pub(crate) async fn connect(&self) -> Result<Client, AccessError> {
        let address = self.address.clone();
        let servers: Vec<&str> = address.split(',').map(str::trim).collect();
        let client = ConnectOptions::with_user_and_password(self.user.to_owned(), self.password.clone())
            .name("emberline")
            // deploy/nats.conf lets each user subscribe to its own inboxes only.
            .custom_inbox_prefix(subject::inbox_prefix(self.user))
            .connection_timeout(TIMEOUT)
            .request_timeout(Some(TIMEOUT))
            .connect(servers)
            .await
            .map_err(|e| AccessError::Connect { address: address.clone(), reason: e.to_string() })?;
        let info = client.server_info();
        if !subject::is_supported_nats(&info.version) {
            return Err(AccessError::TooOld { address, version: info.version });
        }
        if !info.jetstream {
            return Err(AccessError::NoJetStream { address });
        }
        Ok(client)
    }
}
