//! Answers requests to convert text to a model's tokens and back, without the jobs' queue: each worker that serves
//! the model takes a share of them.
//!
//! What arrives is read at once and waits in a bounded [`queue`]: a request for which that has no room is answered
//! with [`ErrorCode::Overloaded`].

mod queue;

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use emberline_inference::clock;
use emberline_inference::engine::Preprocessor;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::malformed::Malformed;
use emberline_protocol::subject::{self, WORKERS_QUEUE};
use emberline_protocol::tokens::TokensReply;
use futures::StreamExt;
use tokio::sync::{Semaphore, watch};

use self::queue::TokensQueue;
use crate::intake::{Phase, reached};
use crate::nats::{Nats, NatsError};

/// Most requests at the same time; the others wait.
const AT_ONCE: usize = 4;

/// Subscribes to the requests for `model`.
pub async fn listen(nats: &Nats, model: &str) -> Result<Subscriber, NatsError> {
    nats.queue_subscribe(subject::tokens(model), WORKERS_QUEUE).await
}

/// Answers requests until the model drains.
pub async fn serve(
    nats: Nats,
    mut requests: Subscriber,
    preprocessor: Arc<dyn Preprocessor>,
    mut phase: watch::Receiver<Phase>,
) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut queue = TokensQueue::default();
    let (mut draining, mut closed) = (false, false);
    while !(closed && queue.is_empty()) {
        tokio::select! {
            () = reached(&mut phase, Phase::Draining), if !draining => {
                draining = true;
                // Requests that have arrived are still answered.
                if let Err(error) = requests.unsubscribe().await {
                    tracing::warn!(%error, "can't unsubscribe from requests for tokens; other workers get fewer of them");
                }
            }
            request = requests.next(), if !closed => match request.map(|request| queue.push(request)) {
                Some(Ok(())) => {}
                Some(Err(refused)) => refuse(&nats, *refused).await,
                None => closed = true,
            },
            permit = Arc::clone(&permits).acquire_owned(), if !queue.is_empty() => {
                let Some(request) = queue.pop(clock::unix_ms()) else { continue };
                let (nats, preprocessor) = (nats.clone(), Arc::clone(&preprocessor));
                tokio::spawn(async move {
                    answer(&nats, preprocessor, request).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn refuse(nats: &Nats, request: Message) {
    let message = "Too many texts wait to be turned into tokens. Try again shortly.";
    let error = ApiError::new(ErrorCode::Overloaded, message);
    reply(nats, request.reply, &TokensReply::Error(error.into())).await;
}

async fn answer(nats: &Nats, preprocessor: Arc<dyn Preprocessor>, request: Message) {
    let Message { reply: to, payload, .. } = request;
    let converted = tokio::task::spawn_blocking(move || {
        let request = serde_json::from_slice(&payload).map_err(Malformed::from).map_err(|error| {
            let message = format!("The worker can't read this request: {error}. Upgrade the worker.");
            ApiError::new(ErrorCode::InternalError, message)
        })?;
        preprocessor.convert(request)
    });
    // The panic hook has logged why.
    let internal = |_| ApiError::new(ErrorCode::InternalError, "The tokens could not be counted.");
    let answer = match converted.await.map_err(internal).flatten() {
        Ok(answer) => answer,
        Err(error) => TokensReply::Error(error.into()),
    };
    reply(nats, to, &answer).await;
}

async fn reply(nats: &Nats, to: Option<async_nats::Subject>, answer: &TokensReply) {
    let Some(to) = to else { return };
    let payload = answer.encode(nats.client().max_payload());
    if let Err(error) = nats.client().publish(to, payload.into()).await {
        tracing::warn!(%error, "the answer to a request for tokens was not sent");
    }
}
