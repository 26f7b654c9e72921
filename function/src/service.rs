//! The way of a request: one request in, one response out.
//!
//! A preflight is answered at once. Any other request finds its endpoint in the table
//! ([`crate::endpoints::router`]), its sender is identified if the endpoint needs a key, its body is read if the
//! endpoint takes one, and the endpoint's handler does the rest.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::error::{ApiError, ErrorCode};
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::access::keys::identify;
use crate::endpoints::endpoint::Handler;
use crate::endpoints::router::{self, Route, RouteError};
use crate::http::body::{LimitedBody, read_json};
use crate::http::reply;
use crate::http::response_headers::ResponseHeaders;
use crate::instance::Instance;
use crate::platform::Host;
use crate::request::ClientRequest;
use crate::response::Reply;

/// What is read of a request's body after its answer, if anything is left of it.
#[derive(Debug, Clone, Copy)]
struct Remainder {
    max_bytes: usize,
    max_time: Duration,
}

impl Remainder {
    /// Of a request without a valid key: what has most likely been sent when the answer is.
    const SMALL: Self = Self { max_bytes: 64 * 1024, max_time: Duration::from_millis(250) };
    /// Of the holder of a key.
    const WHOLE: Self = Self { max_bytes: 32 * 1024 * 1024, max_time: Duration::from_secs(5) };
}

/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The body of a request while it arrives.
pub type IncomingBody = Pin<Box<dyn http_body::Body<Data = Bytes, Error = String>>>;

/// Answers one request.
pub async fn serve(instance: &Rc<Instance>, request: http::Request<IncomingBody>) -> Reply {
    let host = &instance.host;
    let arrived_ns = host.monotonic_ns();
    let (head, mut body) = request.into_parts();
    let origins = instance.config.origins(host).await;
    let id = reply::request_id(&head.headers, host.random_u128());
    let mut plain = origins.grant(&head.headers);
    plain.insert(reply::X_REQUEST_ID, id);
    let mut headers = ResponseHeaders::new(plain);
    let mut remainder = Remainder::SMALL;
    let reply = match origins.preflight(&head.method, &head.headers) {
        Some(preflight) => Ok(Reply::Whole(preflight)),
        None => answer(instance, head, arrived_ns, &mut body, &mut headers, &mut remainder).await,
    };
    let mut reply = match reply {
        Ok(streamed @ Reply::Streamed(_)) => return streamed,
        Ok(Reply::Whole(reply)) => reply,
        Err(error) => reply::error(&error),
    };
    discard(host, body, remainder);
    reply.headers_mut().extend(headers.to_map());
    Reply::Whole(reply)
}

async fn answer(
    instance: &Rc<Instance>,
    head: Parts,
    arrived_ns: u64,
    body: &mut IncomingBody,
    headers: &mut ResponseHeaders,
    remainder: &mut Remainder,
) -> Result<Reply, ApiError> {
    let Route { endpoint, id } = match router::find(&head.method, head.uri.path()) {
        Ok(route) => route,
        Err(error) => return no_endpoint(error, &head),
    };
    match &endpoint.handler {
        Handler::Fixed(handler) => Ok(handler()),
        Handler::Public(handler) => handler(instance).await,
        Handler::Keyed(handler) => {
            let request = authenticated(instance, head, endpoint.path, arrived_ns).await?;
            *remainder = Remainder::WHOLE;
            let reply = handler(&request, headers).await;
            with_rate_limits(&request, headers, reply).await
        }
        Handler::WithId(handler) => {
            let request = authenticated(instance, head, endpoint.path, arrived_ns).await?;
            *remainder = Remainder::WHOLE;
            let reply = handler(&request, headers, &id).await;
            with_rate_limits(&request, headers, reply).await
        }
        Handler::WithBody(_, handler) => {
            let request = authenticated(instance, head, endpoint.path, arrived_ns).await?;
            *remainder = Remainder::WHOLE;
            let reply = match read_body(&request, body).await {
                Ok(body) => handler(&request, headers, body.bytes()).await,
                Err(error) => Err(error),
            };
            with_rate_limits(&request, headers, reply).await
        }
    }
}

fn no_endpoint(error: RouteError, head: &Parts) -> Result<Reply, ApiError> {
    let message = error.clone().into_api(&head.method, head.uri.path());
    match error {
        RouteError::NotFound => Err(message),
        RouteError::MethodNotAllowed(allow) => Ok(Reply::Whole(reply::method_not_allowed(&allow, &message))),
    }
}

/// The request with its settings and its sender.
async fn authenticated(
    instance: &Rc<Instance>,
    head: Parts,
    endpoint: &'static str,
    arrived_ns: u64,
) -> Result<ClientRequest, ApiError> {
    let config = instance.config.read(&instance.host).await?;
    instance.memory.set_max(config.instance_memory);
    let bus = instance.bus(&config.nats);
    let (keys, limits) = (&config.keys, config.default_limits);
    let caller = identify(&bus, &instance.keys, &instance.served, &head.headers, keys, limits).await?;
    let query = head.uri.query().map(str::to_owned);
    let (instance, headers) = (Rc::clone(instance), head.headers);
    Ok(ClientRequest { instance, bus, config, caller, headers, query, endpoint, arrived_ns })
}

async fn read_body(request: &ClientRequest, body: &mut IncomingBody) -> Result<LimitedBody, ApiError> {
    let limit = request.at_most(request.config.request_timeout().min(BODY_TIME));
    let read = read_json(body, &request.headers, request.config.max_body_bytes, &request.instance.memory);
    request.host().within(limit, read).await.unwrap_or_else(|| {
        let seconds = limit.as_secs();
        let message = format!("The body did not arrive in time ({seconds} seconds). Send it again.");
        Err(ApiError::new(ErrorCode::InvalidJson, message))
    })
}

/// Adds to `headers` what is left of the key's limits, for a complete reply.
async fn with_rate_limits(
    request: &ClientRequest,
    headers: &mut ResponseHeaders,
    reply: Result<Reply, ApiError>,
) -> Result<Reply, ApiError> {
    match &reply {
        // The headers of a stream have been taken.
        Ok(Reply::Streamed(_)) => {}
        // NATS would not answer.
        Err(error) if error.code == ErrorCode::BusUnavailable => {}
        _ => request.admitter().set_headers(headers).await,
    }
    reply
}

/// Reads what is left of a body and drops it, while the answer goes out: a client that is still sending when the
/// connection closes sees that, and not the answer. The answer does not wait for it, since until its head is sent
/// the request holds one of the few places of its instance.
fn discard(host: &Host, mut body: IncomingBody, remainder: Remainder) {
    if body.is_end_stream() {
        return;
    }
    let reading = async move {
        let mut bytes = 0_usize;
        while bytes < remainder.max_bytes
            && let Some(Ok(frame)) = body.frame().await
        {
            bytes = bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    let limited = Rc::clone(host);
    host.spawn(Box::pin(async move {
        limited.within(remainder.max_time, reading).await;
    }));
}
