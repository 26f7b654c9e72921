//! `GET /health`, `GET /ready` and `GET /version`: for everybody, without a key.

use emberline_api::models::{Health, Readiness, Version};
use emberline_protocol::error::ApiError;
use http::Method;

use super::endpoint::{Endpoint, Handler};
use crate::instance::Instance;
use crate::platform::report;
use crate::response::Reply;

pub(super) static HEALTH: Endpoint = Endpoint {
    method: Method::GET,
    path: "/health",
    id: "health",
    summary: "Whether the function runs",
    parameters: &[],
    answer: Some(|components| components.answer::<Health>()),
    event: None,
    errors: &[],
    handler: Handler::Fixed(|| Reply::json(&Health { status: "ok" })),
};

pub(super) static READY: Endpoint = Endpoint {
    method: Method::GET,
    path: "/ready",
    id: "ready",
    summary: "Whether a worker serves a model",
    parameters: &[],
    answer: Some(|components| components.answer::<Readiness>()),
    event: None,
    errors: &[503],
    handler: Handler::Public(|instance| Box::pin(ready(instance))),
};

pub(super) static VERSION: Endpoint = Endpoint {
    method: Method::GET,
    path: "/version",
    id: "version",
    summary: "The function's version",
    parameters: &[],
    answer: Some(|components| components.answer::<Version>()),
    event: None,
    errors: &[],
    handler: Handler::Fixed(|| Reply::json(&Version { version: env!("CARGO_PKG_VERSION") })),
};

async fn ready(instance: &Instance) -> Result<Reply, ApiError> {
    let config = instance.config.read(&instance.host).await?;
    let served = instance.served.read(&instance.bus(&config.nats)).await.map_err(|error| {
        report("heartbeats", &error);
        ApiError::from(&error)
    })?;
    Ok(Reply::json(&served.ready()?))
}
