//! The entry: one request in, one response out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use emberline_shared::chat::{ChatRequest, Envelope};
use emberline_shared::error::{ApiError, ErrorCode};
use http_body_util::{BodyExt, Full};
use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::wasip3::http::types::{ErrorCode as HttpError, Response};
use spin_sdk::wasip3::http_compat::IncomingRequestBody;

use super::clock::{monotonic_ns, random_u64, random_u128, unix_ms, within};
use super::connection::BusError;
use super::exchange::Exchange;
use super::{answer, bus, log};
use crate::auth::authenticate;
use crate::body::{LimitedBody, check_length, check_type};
use crate::config::{Config, VARIABLES};
use crate::job::{self, Occasion};
use crate::relay::Output;
use crate::reply;
use crate::route::{Route, RouteError};
use crate::sse::Frames;

type Parts = http::request::Parts;
type Body = IncomingRequestBody;

/// What an endpoint answers with.
enum Answer {
    /// Complete.
    Whole(http::Response<Bytes>),
    /// Its body is still being written.
    Streamed(Response),
}

/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Most bytes of a refused request that are read for its client's sake, and for how long.
const DISCARD_BYTES: usize = 32 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Answers one request.
pub(super) async fn serve(request: Request) -> Result<Response, HttpError> {
    let (head, mut body) = request.into_parts();
    let id = reply::request_id(&head.headers, random_u128());
    let answer = match route(&head, &mut body, &id).await {
        Ok(Answer::Streamed(response)) => return Ok(response),
        Ok(Answer::Whole(reply)) => reply,
        Err(error) => reply::error(&error),
    };
    // A client that is still sending when the connection closes sees that, and not the answer.
    within(DISCARD_TIME, discard(&mut body)).await;
    let mut answer = answer.map(Full::new);
    answer.headers_mut().insert(reply::X_REQUEST_ID, id);
    answer.into_response()
}

async fn route(head: &Parts, body: &mut Body, id: &http::HeaderValue) -> Result<Answer, ApiError> {
    let (method, path) = (&head.method, head.uri.path());
    let route = match Route::find(method, path) {
        Ok(Route::Health) => return json(&serde_json::json!({ "status": "ok" })),
        Ok(route) => route,
        Err(error) => {
            let message = error.clone().into_api(method, path);
            return match error {
                RouteError::NotFound => Err(message),
                RouteError::MethodNotAllowed(allow) => {
                    Ok(Answer::Whole(reply::method_not_allowed(allow, &message)))
                }
            };
        }
    };
    let config = read_config().await?;
    if route.needs_key() {
        authenticate(&head.headers, &config.keys)?;
    }
    match route {
        Route::Chat => chat(head, body, &config, id).await,
        Route::Models => json(&served(&config).await?.list(&config.names)),
        Route::Model(model) => json(&served(&config).await?.find(&model, &config.names)?),
        Route::Ready => json(&served(&config).await?.ready()?),
        Route::Health => json(&serde_json::json!({ "status": "ok" })),
    }
}

fn json(body: &serde_json::Value) -> Result<Answer, ApiError> {
    Ok(Answer::Whole(reply::json(200, body.to_string())))
}

async fn read_config() -> Result<Config, ApiError> {
    let mut values = BTreeMap::new();
    for name in VARIABLES {
        match spin_sdk::variables::get(name).await {
            Ok(value) => {
                values.insert(name, value);
            }
            Err(error) => log("configuration", format_args!("variable '{name}': {error}")),
        }
    }
    Config::parse(&values).map_err(|error| {
        log("configuration", error);
        reply::internal_error()
    })
}

async fn served(config: &Config) -> Result<std::rc::Rc<crate::models::Served>, ApiError> {
    bus::served(&config.nats).await.map_err(|error: BusError| {
        log("heartbeats", &error);
        ApiError::from(&error)
    })
}

async fn chat(
    head: &Parts,
    body: &mut Body,
    config: &Config,
    id: &http::HeaderValue,
) -> Result<Answer, ApiError> {
    let (now_ms, now_ns) = (unix_ms(), monotonic_ns());
    let timeout = Duration::from_secs(config.request_timeout_s);
    let request = read_request(head, body, config.max_body_bytes, timeout.min(BODY_TIME)).await?;
    let served = served(config).await?;
    let model = config.names.admit(&request.model, &served.names())?;
    let model = served.get(&model).ok_or_else(reply::internal_error)?;

    let occasion =
        Occasion { now_ms, timeout_s: config.request_timeout_s, id_bits: random_u128(), seed: random_u64() };
    let job = job::new_job(&request, &model.name, occasion);
    let limits = job::limits(&request, model);
    let deadline_ns = now_ns.saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    let mut exchange = Exchange::begin(&config.nats, &job, limits, deadline_ns).await?;

    // The first event decides the status.
    let fingerprint = match exchange.next().await {
        Ok(Output::Accepted { fingerprint }) => fingerprint,
        Ok(Output::Failed(error)) => {
            exchange.release();
            return Err(error);
        }
        Ok(_) => {
            exchange.cancel().await;
            return Err(reply::internal_error());
        }
        Err(error) => {
            exchange.cancel().await;
            return Err(error);
        }
    };
    let envelope = Envelope {
        job: job.id,
        created: job.created.div_euclid(1000),
        model: request.model,
        fingerprint,
        metadata: request.metadata,
    };
    if !request.stream {
        return Ok(Answer::Whole(reply::json(200, answer::whole(exchange, &envelope, limits).await?)));
    }
    let frames = Frames { envelope, include_usage: request.include_usage };
    let response = answer::stream(exchange, frames, limits, id).map_err(|error| {
        log("response", error);
        reply::internal_error()
    })?;
    Ok(Answer::Streamed(response))
}

async fn read_request(
    head: &Parts,
    body: &mut Body,
    max_bytes: u64,
    limit: Duration,
) -> Result<ChatRequest, ApiError> {
    check_type(&head.headers)?;
    check_length(&head.headers, max_bytes)?;
    let body = within(limit, read_body(body, max_bytes)).await.unwrap_or_else(|| {
        let seconds = limit.as_secs();
        let message = format!("The body did not arrive in time ({seconds} seconds). Send it again.");
        Err(ApiError::new(ErrorCode::InvalidJson, message))
    })?;
    ChatRequest::parse(&body)
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

/// Reads what is left of a body and forgets it.
async fn discard(body: &mut Body) {
    let mut bytes = 0_usize;
    while bytes < DISCARD_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes = bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
    }
}
