//! What the handlers of one request share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::relaxed::Relaxed;
use http::HeaderMap;
use http_body_util::BodyExt;
use spin_sdk::wasip3::http::types::Response;
use spin_sdk::wasip3::http_compat::IncomingRequestBody;

use super::clock::{unix_ms, within};
use super::connection::BusError;
use super::{bus, log};
use crate::access::caller::{Caller, Credential};
use crate::admission::queue::Backlog;
use crate::admission::rate_limit::Increments;
use crate::admission::served_models::{Destination, Served};
use crate::config::Config;
use crate::http::body::{LimitedBody, check_encoding, check_length, check_plain, check_type};
use crate::http::reply;

pub(super) type Parts = http::request::Parts;
pub(super) type Body = IncomingRequestBody;

/// What an endpoint answers with.
pub(super) enum Answer {
    /// Complete.
    Whole(http::Response<Bytes>),
    /// Its body is still being written.
    Streamed(Response),
}

impl Answer {
    /// A complete answer in JSON.
    pub(super) fn json(body: &impl serde::Serialize) -> Self {
        Self::Whole(reply::json(200, serde_json::to_vec(body).unwrap_or_default()))
    }
}

/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A request whose sender is known.
pub(super) struct Context {
    pub(super) head: Parts,
    /// What it is for, however its path is written.
    pub(super) endpoint: &'static str,
    /// When it came, on the monotonic clock.
    pub(super) arrived_ns: u64,
    pub(super) config: Config,
    pub(super) caller: Caller,
    /// Headers that every answer to this request carries.
    headers: RefCell<HeaderMap>,
    /// They say how the key stands.
    pub(super) limits_told: Cell<bool>,
    /// What has been counted for it and may have to be given back.
    pub(super) counted: RefCell<Increments>,
    /// How long the queue is that its jobs were admitted to.
    pub(super) backlog: RefCell<Option<Backlog>>,
    /// What the answer does without.
    relaxed: RefCell<Relaxed>,
}

/// Finds out who sent a request.
pub(super) async fn identify(headers: &HeaderMap, config: &Config) -> Result<Caller, ApiError> {
    let key = Credential::find(headers)?;
    if let Some(caller) = Caller::configured(&key, &config.keys, config.default_limits) {
        return Ok(caller);
    }
    let record = bus::key(&config.nats, key).await.map_err(|error| {
        log("keys", &error);
        ApiError::from(&error)
    })?;
    Caller::recorded(record, config.default_limits, unix_ms())
}

impl Context {
    pub(super) fn new(
        head: Parts,
        endpoint: &'static str,
        arrived_ns: u64,
        config: Config,
        caller: Caller,
        headers: HeaderMap,
    ) -> Self {
        let (headers, limits_told) = (RefCell::new(headers), Cell::new(false));
        let (counted, backlog, relaxed) = (RefCell::default(), RefCell::default(), RefCell::default());
        Self { head, endpoint, arrived_ns, config, caller, headers, limits_told, counted, backlog, relaxed }
    }

    /// Adds headers that every answer to this request is to carry.
    pub(super) fn tell(&self, headers: HeaderMap) {
        self.headers.borrow_mut().extend(headers);
    }

    /// Has every answer to this request name what it does without.
    pub(super) fn relax(&self, relaxed: &Relaxed) {
        self.relaxed.borrow_mut().extend(relaxed);
    }

    /// Headers that every answer to this request carries.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = self.headers.borrow().clone();
        headers.extend(reply::relaxed(&self.relaxed.borrow()));
        headers
    }

    /// The model that a request means, if its key may use it and a worker serves it.
    pub(super) async fn model(&self, requested: &str) -> Result<ServedModel, ApiError> {
        let names = &self.config.names;
        self.caller.check_model(requested, names)?;
        let served = self.served().await?;
        let model = names.admit(requested, &served.names())?;
        served.get(&model).cloned().ok_or_else(reply::internal_error)
    }

    /// Where jobs for the model that a request means go, if its key may use it: to a worker, or to one
    /// that is to start yet, if the configuration has requests wait for it.
    pub(super) async fn destination(&self, requested: &str) -> Result<Destination, ApiError> {
        let names = &self.config.names;
        self.caller.check_model(requested, names)?;
        self.served().await?.destination(requested, names, self.config.no_worker_wait_s > 0)
    }

    /// What is served now.
    pub(super) async fn served(&self) -> Result<Rc<Served>, ApiError> {
        bus::served(&self.config.nats).await.map_err(|error: BusError| {
            log("heartbeats", &error);
            ApiError::from(&error)
        })
    }

    /// Reads a JSON body.
    pub(super) async fn read_body(&self, body: &mut Body) -> Result<Vec<u8>, ApiError> {
        let max_bytes = self.config.max_body_bytes;
        let limit = self.config.request_timeout().min(BODY_TIME);
        check_type(&self.head.headers)?;
        check_encoding(&self.head.headers)?;
        check_length(&self.head.headers, max_bytes)?;
        let body = within(limit, read_body(body, max_bytes)).await.unwrap_or_else(|| {
            let seconds = limit.as_secs();
            let message = format!("The body did not arrive in time ({seconds} seconds). Send it again.");
            Err(ApiError::new(ErrorCode::InvalidJson, message))
        })?;
        check_plain(&body)?;
        Ok(body)
    }
}

async fn read_body(incoming: &mut Body, max: u64) -> Result<Vec<u8>, ApiError> {
    let mut body = LimitedBody::new(max);
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| {
            log("request body", error);
            ApiError::new(ErrorCode::InvalidJson, "The body broke off before its end. Send it again.")
        })?;
        if let Some(chunk) = frame.data_ref() {
            body.push(chunk)?;
        }
    }
    Ok(body.into_bytes())
}
