//! `POST /tokenize`, `POST /detokenize` and `POST /v1/responses/input_tokens`: a question to a worker,
//! without a job.

use std::time::Duration;

use bytes::Bytes;
use emberline_api::responses::InputTokensRequest;
use emberline_api::tokenize::{self, TokenRequest};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::tokens::TokensReply;
use watermelon_proto::ServerMessage;

use super::connection::{BusError, Connection, subject};
use super::context::{Answer, Body, Context};
use super::{bus, log};
use crate::config::Endpoint;
use crate::http::reply;

/// Longest time to wait for a worker's answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);

pub(super) async fn tokenize(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let request = TokenRequest::parse_tokenize(&context.read_body(body).await?)?;
    ask(context, request, tokenize::answer).await
}

pub(super) async fn detokenize(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let request = TokenRequest::parse_detokenize(&context.read_body(body).await?)?;
    ask(context, request, tokenize::answer).await
}

pub(super) async fn count_input(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let request = InputTokensRequest::parse(&context.read_body(body).await?)?;
    ask(context, request, InputTokensRequest::answer).await
}

async fn ask(
    context: &Context,
    request: TokenRequest,
    write: fn(TokensReply) -> Result<String, ApiError>,
) -> Result<Answer, ApiError> {
    let TokenRequest { model, request, relaxed, paths } = request;
    context.relax(&relaxed);
    let config = &context.config;
    let name = context.model(&model).await?.name;
    let question = serde_json::to_vec(&request).map_err(|_| reply::internal_error())?;
    let message = ask_worker(&config.nats, &name, question.into()).await.map_err(|error| {
        log("tokens", &error);
        match error {
            AskError::TooLarge => {
                let message = "The text is larger than the message bus takes. Send parts of it.";
                ApiError::new(ErrorCode::RequestTooLarge, message)
            }
            AskError::Bus(BusError::NoResponders(_)) => {
                let message = format!("No worker serves '{model}' at the moment. Try again shortly.");
                ApiError::field(ErrorCode::NoWorker, "model", message)
            }
            AskError::Bus(error) => ApiError::from(&error),
        }
    })?;
    let answer: TokensReply = serde_json::from_slice(&message.base.payload).map_err(|error| {
        log("tokens", error);
        ApiError::new(ErrorCode::WorkerFailed, "The worker's answer could not be used. Try again.")
    })?;
    if let TokensReply::Tokenized { relaxed, .. } = &answer {
        context.relax(&paths.relaxed(relaxed));
    }
    let body = write(answer).map_err(|error| paths.error(error))?;
    Ok(Answer::Whole(reply::json(200, body)))
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the question is larger than the server's max_payload")]
    TooLarge,
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Asks over an idle connection if there is one; the question may be asked twice, since that one
/// may have died while it waited.
async fn ask_worker(endpoint: &Endpoint, model: &str, question: Bytes) -> Result<ServerMessage, AskError> {
    if let Some(connection) = bus::idle(endpoint) {
        match ask_over(connection, endpoint, model, &question).await {
            Err(AskError::Bus(BusError::Closed | BusError::Refused(_))) => {}
            other => return other,
        }
    }
    let connection = bus::connect_unless_resting(endpoint).await?;
    ask_over(connection, endpoint, model, &question).await
}

async fn ask_over(
    mut connection: Connection,
    endpoint: &Endpoint,
    model: &str,
    question: &Bytes,
) -> Result<ServerMessage, AskError> {
    if question.len() > connection.max_payload() {
        return Err(AskError::TooLarge);
    }
    let answer = connection
        .ask(subject(emberline_protocol::subject::tokens(model))?, question.clone(), ANSWER_TIME)
        .await;
    match &answer {
        Ok(_) | Err(BusError::NoResponders(_)) => bus::give_back(endpoint, connection),
        Err(BusError::Timeout(_)) => bus::rest(endpoint),
        Err(_) => {}
    }
    Ok(answer?)
}
