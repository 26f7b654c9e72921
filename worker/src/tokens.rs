//! Answers requests to turn text into a model's tokens and back, beside its jobs and without a
//! queue: each worker that serves the model takes a share of them.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use emberline_inference::engine::Frontend;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::subject::{self, TOKENS_QUEUE};
use emberline_protocol::tokens::TokensReply;
use futures::StreamExt;
use tokio::sync::{Semaphore, watch};

use crate::intake::{Phase, reached};
use crate::nats::{Bus, BusError};

/// Requests that are worked on at once; the others wait.
const AT_ONCE: usize = 4;

/// Listens for requests about `model`.
pub async fn listen(bus: &Bus, model: &str) -> Result<Subscriber, BusError> {
    bus.queue_subscribe(subject::tokens(model), TOKENS_QUEUE).await
}

/// Answers requests until the model drains.
pub async fn serve(
    bus: Bus,
    mut requests: Subscriber,
    frontend: Arc<dyn Frontend>,
    mut phase: watch::Receiver<Phase>,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut draining = false;
    loop {
        let request = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Draining), if !draining => {
                draining = true;
                // What has come until now is answered.
                if let Err(error) = requests.unsubscribe().await {
                    tracing::warn!(%error, "others are not given the requests for tokens");
                }
                continue;
            }
            request = requests.next() => request,
        };
        let (Some(request), Ok(place)) = (request, Arc::clone(&places).acquire_owned().await) else { return };
        let (bus, frontend) = (bus.clone(), Arc::clone(&frontend));
        tokio::spawn(async move {
            answer(&bus, frontend, request).await;
            drop(place);
        });
    }
}

async fn answer(bus: &Bus, frontend: Arc<dyn Frontend>, request: Message) {
    let Some(reply) = request.reply else { return };
    let converted = tokio::task::spawn_blocking(move || {
        let request = serde_json::from_slice(&request.payload).map_err(|error| {
            let message = format!("The worker can't read this request: {error}. Upgrade the worker.");
            ApiError::new(ErrorCode::InternalError, message)
        })?;
        frontend.convert(request)
    });
    // The panic has said why in the log.
    let internal = |_| ApiError::new(ErrorCode::InternalError, "The tokens could not be counted.");
    let answer = match converted.await.map_err(internal).flatten() {
        Ok(answer) => answer,
        Err(error) => TokensReply::Error(error.into()),
    };
    let payload = answer.encode(bus.client().server_info().max_payload);
    if let Err(error) = bus.client().publish(reply, payload.into()).await {
        tracing::warn!(%error, "a request for tokens was not answered");
    }
}
