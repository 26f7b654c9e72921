//! A request whose sender is known: what the handlers of the endpoints work with.

use std::rc::Rc;
use std::time::Duration;

use emberline_protocol::error::ApiError;
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::key::DEFAULT_STORED_BYTES;
use http::HeaderMap;

use crate::access::caller::Caller;
use crate::admission::Admitter;
use crate::admission::served_models::{Destination, ServedModels};
use crate::admission::stored_quota::StoredQuota;
use crate::config::Config;
use crate::http::reply;
use crate::instance::Instance;
use crate::nats::bus::Bus;
use crate::platform::{Host, add_ns, report};

/// How long before the host cuts a request its answer ends. The host began to count before the function saw the
/// request, and what is written last has to reach the client.
pub const CUT_MARGIN: Duration = Duration::from_secs(2);

/// See the module.
pub struct ClientRequest {
    /// What it shares with other requests.
    pub instance: Rc<Instance>,
    /// NATS.
    pub bus: Bus,
    /// The settings.
    pub config: Rc<Config>,
    /// Who sent it.
    pub caller: Caller,
    /// Its headers.
    pub headers: HeaderMap,
    /// What follows the question mark.
    pub query: Option<String>,
    /// The path of its endpoint, however the client wrote it.
    pub endpoint: &'static str,
    /// When it came, on the monotonic clock.
    pub arrived_ns: u64,
}

impl ClientRequest {
    /// The host that it is served on.
    pub fn host(&self) -> &Host {
        &self.instance.host
    }

    /// When its answer has to end, on the monotonic clock, because the host cuts it a little later; `None` if the host
    /// cuts no requests.
    pub fn cut_ns(&self) -> Option<u64> {
        let limit = self.config.request_time_limit?;
        Some(add_ns(self.arrived_ns, limit.saturating_sub(CUT_MARGIN)))
    }

    /// No more than `wait`, and no longer than the host lets its answer take.
    pub fn at_most(&self, wait: Duration) -> Duration {
        self.cut_ns().map_or(wait, |cut_ns| wait.min(self.host().left_until(cut_ns)))
    }

    /// What is served now.
    pub async fn served(&self) -> Result<Rc<ServedModels>, ApiError> {
        self.instance.served.read(&self.bus).await.map_err(|error| {
            report("heartbeats", &error);
            ApiError::from(&error)
        })
    }

    /// The model that the client means by `requested`, if its key may use it and a worker serves it.
    pub async fn model(&self, requested: &str) -> Result<ServedModel, ApiError> {
        let names = &self.config.names;
        self.caller.check_model(requested, names)?;
        let served = self.served().await?;
        let model = served.admit(requested, names)?;
        served.get(&model).cloned().ok_or_else(reply::internal_error)
    }

    /// Where jobs for the model `requested` go, if the client's key may use it: to a worker, or to one that has
    /// yet to start, if the configuration has requests wait for it.
    pub async fn destination(&self, requested: &str) -> Result<Destination, ApiError> {
        let names = &self.config.names;
        self.caller.check_model(requested, names)?;
        self.served().await?.destination(requested, names, self.config.no_worker_wait_s > 0)
    }

    /// Counts what this request uses.
    pub fn admitter(&self) -> Admitter<'_> {
        Admitter {
            bus: &self.bus,
            seen: &self.instance.counters,
            served: &self.instance.served,
            key: &self.caller.key,
            limits: &self.caller.limits,
            job_life_ms: self.config.job_life_ms(),
            queue_limit: self.config.queue_limit,
        }
    }

    /// Counts what is stored of this request.
    pub fn stored_quota(&self) -> StoredQuota {
        StoredQuota {
            key: self.caller.key.clone(),
            limit: self.caller.limits.stored_bytes.unwrap_or(DEFAULT_STORED_BYTES),
            life_ms: self.config.stored_life_ms(),
        }
    }
}
