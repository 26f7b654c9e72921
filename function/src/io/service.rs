//! The entry: one request in, one response out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use emberline_api::models::{Health, Version};
use emberline_protocol::error::{ApiError, ErrorCode};
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::wasip3::http::types::{ErrorCode as HttpError, Response};

use super::clock::{monotonic_ns, random_u128, within};
use super::context::{Answer, Body, Context, Parts, identify};
use super::{chat, completions, embeddings, log, responses, tokens};
use crate::config::{CORS_VARIABLE, Config, VARIABLES};
use crate::endpoints::openapi;
use crate::endpoints::router::{Route, RouteError};
use crate::http::cors::Origins;
use crate::http::reply;

/// Most bytes of a refused request that are read for its client's sake, and for how long.
const DISCARD_BYTES: usize = 32 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Answers one request.
pub(super) async fn serve(request: Request) -> Result<Response, HttpError> {
    let arrived_ns = monotonic_ns();
    let (head, mut body) = request.into_parts();
    let origins = read_origins().await;
    let id = reply::request_id(&head.headers, random_u128());
    let mut plain = origins.grant(&head.headers);
    plain.insert(reply::X_REQUEST_ID, id);
    let (answer, headers) = match origins.preflight(&head.method, &head.headers) {
        Some(preflight) => (Ok(Answer::Whole(preflight)), plain),
        None => answer(head, arrived_ns, &mut body, plain).await,
    };
    let answer = match answer {
        Ok(Answer::Streamed(response)) => return Ok(response),
        Ok(Answer::Whole(reply)) => reply,
        Err(error) => reply::error(&error),
    };
    // A client that is still sending when the connection closes sees that, and not the answer.
    within(DISCARD_TIME, discard(&mut body)).await;
    let mut answer = answer.map(Full::new);
    answer.headers_mut().extend(headers);
    answer.into_response()
}

/// The answer, and the headers that it is to carry beside `plain` ones; a stream has them already.
async fn answer(
    head: Parts,
    arrived_ns: u64,
    body: &mut Body,
    plain: HeaderMap,
) -> (Result<Answer, ApiError>, HeaderMap) {
    let route = match find(&head) {
        Ok(route) => route,
        Err(answer) => return (answer, plain),
    };
    match route {
        Route::Health => return (Ok(Answer::json(&Health { status: "ok" })), plain),
        Route::OpenApi => return (Ok(Answer::Whole(reply::json(200, openapi::document()))), plain),
        Route::Version => return (Ok(Answer::json(&Version { version: env!("CARGO_PKG_VERSION") })), plain),
        _ => {}
    }
    let identified = async {
        let config = read_config().await?;
        let caller = match route.needs_key() {
            true => Some(identify(&head.headers, &config).await?),
            false => None,
        };
        Ok((config, caller))
    };
    match identified.await {
        Err(error) => (Err(error), plain),
        Ok((config, None)) => (open(&route, &config).await, plain),
        Ok((config, Some(caller))) => {
            let context = Context::new(head, route.endpoint(), arrived_ns, config, caller, plain);
            let answer = dispatch(&route, &context, body).await;
            match &answer {
                // A stream's headers are on their way.
                Ok(Answer::Streamed(_)) => {}
                // NATS would not tell.
                Err(error) if error.code == ErrorCode::BusUnavailable => {}
                _ => context.tell_limits().await,
            }
            (answer, context.headers())
        }
    }
}

fn find(head: &Parts) -> Result<Route, Result<Answer, ApiError>> {
    let (method, path) = (&head.method, head.uri.path());
    Route::find(method, path).map_err(|error| {
        let message = error.clone().into_api(method, path);
        match error {
            RouteError::NotFound => Err(message),
            RouteError::MethodNotAllowed(allow) => {
                Ok(Answer::Whole(reply::method_not_allowed(allow, &message)))
            }
        }
    })
}

/// Endpoints for everybody.
async fn open(route: &Route, config: &Config) -> Result<Answer, ApiError> {
    match route {
        Route::Ready => {
            let served = super::bus::served(&config.nats).await.map_err(|error| {
                log("heartbeats", &error);
                ApiError::from(&error)
            });
            Ok(Answer::json(&served?.ready()?))
        }
        _ => Err(reply::internal_error()),
    }
}

/// Endpoints for holders of a key.
async fn dispatch(route: &Route, context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let names = &context.config.names;
    match route {
        Route::Chat => chat::serve(context, body).await,
        Route::Responses => responses::create(context, body).await,
        Route::InputTokens => tokens::count_input(context, body).await,
        Route::Response(id) if context.head.method == http::Method::DELETE => {
            responses::delete(context, id).await
        }
        Route::Response(id) => responses::retrieve(context, id).await,
        Route::CancelResponse(id) => responses::cancel(context, id).await,
        Route::Completions => completions::serve(context, body).await,
        Route::Embeddings => embeddings::serve(context, body).await,
        Route::Tokenize => tokens::tokenize(context, body).await,
        Route::Detokenize => tokens::detokenize(context, body).await,
        Route::Models => Ok(Answer::json(&context.served().await?.list(names, &context.caller))),
        Route::Model(model) => {
            context.caller.check_model(model, names)?;
            Ok(Answer::json(&context.served().await?.find(model, names)?))
        }
        Route::Health | Route::Ready | Route::OpenApi | Route::Version => Err(reply::internal_error()),
    }
}

/// Whose pages may use the API; what can't be read allows nobody.
async fn read_origins() -> Origins {
    let origins = spin_sdk::variables::get(CORS_VARIABLE).await.unwrap_or_default();
    Origins::parse(&origins).unwrap_or_default()
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

/// Reads what is left of a body and forgets it.
async fn discard(body: &mut Body) {
    let mut bytes = 0_usize;
    while bytes < DISCARD_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes = bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
    }
}
