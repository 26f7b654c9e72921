//! What an endpoint declares: its method and path, who may use it, its description and its handler.

use emberline_api::schema::Components;
use emberline_protocol::error::ApiError;
use futures::future::LocalBoxFuture;
use http::Method;
use serde_json::{Value, json};

use crate::http::response_headers::ResponseHeaders;
use crate::instance::Instance;
use crate::request::ClientRequest;
use crate::response::Reply;

/// One method of one path.
pub struct Endpoint {
    /// `GET` also answers `HEAD`.
    pub method: Method,
    /// As clients write it. `{id}` stands for one segment, and `{id*}` for all that is left. A path that begins
    /// with `/v1` is found without that, too.
    pub path: &'static str,
    /// The name of the operation in OpenAPI.
    pub id: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// In the path, the query and the headers.
    pub parameters: &'static [Parameter],
    /// The schema of a successful answer; `None` if there is none.
    pub answer: Option<Schema>,
    /// The schema of each event of a stream, if the client may ask for one.
    pub event: Option<Schema>,
    /// Error statuses beside those that every endpoint has.
    pub errors: &'static [u16],
    /// What answers it.
    pub handler: Handler,
}

/// What a handler gives back.
pub type Answer<'a> = LocalBoxFuture<'a, Result<Reply, ApiError>>;

/// What answers an endpoint. All but the first two need a key.
pub enum Handler {
    /// For everybody, without any settings.
    Fixed(fn() -> Reply),
    /// For everybody.
    Public(for<'a> fn(&'a Instance) -> Answer<'a>),
    /// For holders of a key.
    Keyed(for<'a> fn(&'a ClientRequest, &'a mut ResponseHeaders) -> Answer<'a>),
    /// For holders of a key, with the id in the path.
    WithId(for<'a> fn(&'a ClientRequest, &'a mut ResponseHeaders, &'a str) -> Answer<'a>),
    /// For holders of a key, with a body.
    WithBody(RequestBody, for<'a> fn(&'a ClientRequest, &'a mut ResponseHeaders, &'a [u8]) -> Answer<'a>),
}

/// Adds a type to the schemas of the document; a reference to it.
pub type Schema = fn(&mut Components) -> Value;

/// A body, and a good example of one.
pub struct RequestBody {
    /// Its schema.
    pub schema: Schema,
    /// An example in JSON.
    pub example: &'static str,
}

impl Endpoint {
    /// Whether it is for holders of a key only.
    pub fn needs_key(&self) -> bool {
        !matches!(self.handler, Handler::Fixed(_) | Handler::Public(_))
    }

    /// Its body, if it takes one.
    pub fn request_body(&self) -> Option<&RequestBody> {
        match &self.handler {
            Handler::WithBody(body, _) => Some(body),
            _ => None,
        }
    }
}

/// A value beside the body.
#[derive(Debug, Clone, Copy)]
pub enum Parameter {
    /// `{id}` in the path.
    Id,
    /// The header `Idempotency-Key`.
    IdempotencyKey,
    /// The header `x-request-timeout`.
    RequestTimeout,
    /// `stream` in the query.
    Stream,
    /// `starting_after` in the query.
    StartingAfter,
}

impl Parameter {
    /// As OpenAPI describes it.
    pub fn describe(self) -> Value {
        let (name, place, description, schema) = match self {
            Self::Id => ("id", "path", "Which one.", json!({"type": "string", "minLength": 1})),
            Self::IdempotencyKey => (
                "Idempotency-Key",
                "header",
                "A repeat with the same key and body gets the answer of the first request.",
                json!({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"}),
            ),
            Self::RequestTimeout => (
                "x-request-timeout",
                "header",
                "How many seconds the client waits, if that is less than the server would work on it.",
                json!({"type": "number", "exclusiveMinimum": 0}),
            ),
            Self::Stream => {
                ("stream", "query", "Answer as server-sent events.", json!({"enum": ["true", "false"]}))
            }
            Self::StartingAfter => (
                "starting_after",
                "query",
                "With `stream=true`: the sequence number of the last event that was heard.",
                json!({"type": "integer", "minimum": 0}),
            ),
        };
        let is_required = matches!(self, Self::Id);
        json!({
            "name": name, "in": place, "description": description, "required": is_required, "schema": schema,
        })
    }
}

/// Error statuses wherever a body is read and a model is used.
pub const WITH_MODEL: &[u16] = &[400, 403, 404, 413, 415, 429, 502, 503, 504];
/// The same where an `Idempotency-Key` may be reused.
pub const WITH_REPEATS: &[u16] = &[400, 403, 404, 409, 413, 415, 429, 502, 503, 504];
/// Error statuses of requests for a stored response.
pub const WITH_STORED_RESPONSE: &[u16] = &[400, 404, 409, 429, 502, 503, 504];
