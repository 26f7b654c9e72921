//! Answers requests to convert text to a model's tokens and back, without the queue: each worker that
//! serves the model takes a share of them.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use emberline_inference::engine::Preprocessor;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::subject::{self, WORKERS_QUEUE};
use emberline_protocol::tokens::TokensReply;
use futures::StreamExt;
use tokio::sync::{Semaphore, watch};

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
    let mut draining = false;
    loop {
        let request = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Draining), if !draining => {
                draining = true;
                // Requests that have arrived are still answered.
                if let Err(error) = requests.unsubscribe().await {
                    tracing::warn!(%error, "can't unsubscribe from requests for tokens; other workers get fewer of them");
                }
                continue;
            }
            request = requests.next() => request,
        };
        let (Some(request), Ok(permit)) = (request, Arc::clone(&permits).acquire_owned().await) else {
            return;
        };
        let (nats, preprocessor) = (nats.clone(), Arc::clone(&preprocessor));
        tokio::spawn(async move {
            answer(&nats, preprocessor, request).await;
            drop(permit);
        });
    }
}

async fn answer(nats: &Nats, preprocessor: Arc<dyn Preprocessor>, request: Message) {
    let Some(reply) = request.reply else { return };
    let converted = tokio::task::spawn_blocking(move || {
        let request = serde_json::from_slice(&request.payload).map_err(|error| {
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
    let payload = answer.encode(nats.client().server_info().max_payload);
    if let Err(error) = nats.client().publish(reply, payload.into()).await {
        tracing::warn!(%error, "the answer to a request for tokens was not sent");
    }
}
