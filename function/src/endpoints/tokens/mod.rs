//! `POST /tokenize`, `POST /detokenize` and `POST /v1/responses/input_tokens`: a request to a worker, without a job.

use std::time::Duration;

use emberline_api::responses::{InputTokens, InputTokensRequest};
use emberline_api::tokenize::{self, DetokenizeAnswer, TokenRequest, TokenizeAnswer};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::malformed::Malformed;
use emberline_protocol::subject;
use emberline_protocol::tokens::{DEADLINE_HEADER, TokensReply, TokensRequest};
use http::Method;
use watermelon_proto::MessageBase;
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};

use super::endpoint::{Endpoint, Handler, RequestBody, WITH_MODEL};
use crate::http::reply;
use crate::http::response_headers::ResponseHeaders;
use crate::nats::connection::{self, BusError};
use crate::platform::report;
use crate::request::ClientRequest;
use crate::response::Reply;

pub(super) static COUNT_INPUT: Endpoint = Endpoint {
    method: Method::POST,
    path: "/v1/responses/input_tokens",
    id: "countInputTokens",
    summary: "How many tokens the input of a response has",
    parameters: &[],
    answer: Some(|components| components.answer::<InputTokens>()),
    event: None,
    errors: WITH_MODEL,
    handler: Handler::WithBody(
        RequestBody {
            schema: InputTokensRequest::schema,
            example: r#"{"model": "vllm-primary", "input": "What is machine learning?"}"#,
        },
        |request, headers, body| {
            Box::pin(ask(request, headers, InputTokensRequest::parse(body), InputTokensRequest::answer))
        },
    ),
};

pub(super) static TOKENIZE: Endpoint = Endpoint {
    method: Method::POST,
    path: "/tokenize",
    id: "tokenize",
    summary: "The tokens of a text or a conversation",
    parameters: &[],
    answer: Some(|components| components.answer::<TokenizeAnswer>()),
    event: None,
    errors: WITH_MODEL,
    handler: Handler::WithBody(
        RequestBody {
            schema: TokenRequest::tokenize_schema,
            example: r#"{"model": "vllm-primary", "prompt": "Hello, world!"}"#,
        },
        |request, headers, body| {
            Box::pin(ask(request, headers, TokenRequest::parse_tokenize(body), tokenize::answer))
        },
    ),
};

pub(super) static DETOKENIZE: Endpoint = Endpoint {
    method: Method::POST,
    path: "/detokenize",
    id: "detokenize",
    summary: "The text of tokens",
    parameters: &[],
    answer: Some(|components| components.answer::<DetokenizeAnswer>()),
    event: None,
    errors: WITH_MODEL,
    handler: Handler::WithBody(
        RequestBody {
            schema: TokenRequest::detokenize_schema,
            example: r#"{"model": "vllm-primary", "tokens": [1, 2, 3]}"#,
        },
        |request, headers, body| {
            Box::pin(ask(request, headers, TokenRequest::parse_detokenize(body), tokenize::answer))
        },
    ),
};

/// Longest time to wait for a worker's answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Room for a question's headers within `max_payload`, which counts them, too.
const HEADERS: usize = 256;

/// Sends the request that was read from a body to a worker; `write` makes the body of the answer.
async fn ask(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    parsed: Result<TokenRequest, ApiError>,
    write: fn(TokensReply) -> Result<String, ApiError>,
) -> Result<Reply, ApiError> {
    let TokenRequest { model, request, relaxed, paths } = parsed?;
    headers.relax(&relaxed);
    let name = client.model(&model).await?.name;
    let admitter = client.admitter();
    let admission = admitter.admit_request(headers).await?;
    let answered = match convert(client, &model, &name, &request).await {
        Ok(TokensReply::Error(error)) => Err(error.into()),
        answered => answered,
    };
    match answered {
        Ok(answer) => {
            admission.commit();
            if let TokensReply::Tokenized { relaxed, .. } = &answer {
                headers.relax(&paths.relaxed(relaxed));
            }
            let body = write(answer).map_err(|error| paths.error(error))?;
            Ok(Reply::Whole(reply::json(200, body)))
        }
        Err(error) => {
            // What nobody has served counts for nothing.
            if error.code.status() == 503 {
                admitter.give_back(admission, headers).await;
            } else {
                admission.commit();
            }
            Err(paths.error(error))
        }
    }
}

/// Has a worker answer `request`. `model` is how the client calls the model, `name` its own name.
async fn convert(
    client: &ClientRequest,
    model: &str,
    name: &str,
    request: &TokensRequest,
) -> Result<TokensReply, ApiError> {
    let wait = client.at_most(ANSWER_TIME);
    let question = question(name, request, client.host().unix_ms(), wait)?;
    let asked = client.bus.with_connection(async |connection| {
        if question.payload.len().saturating_add(HEADERS) > connection.max_payload() {
            return Err(BusError::TooLarge);
        }
        connection.ask(question.clone(), wait).await
    });
    let message = asked.await.map_err(|error| {
        report("tokens", &error);
        match error {
            BusError::TooLarge => {
                let message = "The text is larger than the message bus takes. Send parts of it.";
                ApiError::new(ErrorCode::RequestTooLarge, message)
            }
            BusError::NoResponders(_) => {
                let message = format!("No worker serves '{model}' at the moment. Try again shortly.");
                ApiError::field(ErrorCode::NoWorker, "model", message)
            }
            BusError::Silence => {
                let seconds = wait.as_secs();
                let message =
                    format!("No worker answered in {seconds} seconds. Send less text, or try again.");
                ApiError::new(ErrorCode::Timeout, message)
            }
            error => ApiError::from(&error),
        }
    })?;
    serde_json::from_slice(&message.base.payload).map_err(|error| {
        report("tokens", Malformed::from(error));
        ApiError::new(ErrorCode::WorkerFailed, "The worker's answer could not be used. Try again.")
    })
}

/// The message that asks any worker of the model `name` at `now_ms`, for an answer within `wait`.
fn question(
    name: &str,
    request: &TokensRequest,
    now_ms: u64,
    wait: Duration,
) -> Result<MessageBase, ApiError> {
    let payload = serde_json::to_vec(request).map_err(|_| reply::internal_error())?.into();
    let subject = connection::subject(subject::tokens(name)).map_err(|_| reply::internal_error())?;
    let deadline = now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let deadline = HeaderValue::try_from(deadline.to_string()).map_err(|_| reply::internal_error())?;
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(DEADLINE_HEADER), deadline);
    Ok(MessageBase { subject, reply_subject: None, headers, payload })
}
