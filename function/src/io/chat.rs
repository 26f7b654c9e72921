//! `POST /v1/chat/completions`.

use std::time::Duration;

use emberline_shared::chat::{ChatRequest, Envelope};
use emberline_shared::error::ApiError;

use super::clock::{monotonic_ns, random_u64, random_u128, unix_ms};
use super::context::{Answer, Body, Context};
use super::exchange::Exchange;
use super::{answer, log};
use crate::job::{self, Occasion};
use crate::relay::Output;
use crate::reply;
use crate::sse::Frames;

pub(super) async fn serve(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let (config, now_ms, now_ns) = (&context.config, unix_ms(), monotonic_ns());
    let timeout = Duration::from_secs(config.request_timeout_s);
    let request = ChatRequest::parse(&context.read_body(body).await?)?;
    let served = context.served().await?;
    let model = config.names.admit(&request.model, &served.names())?;
    let model = served.get(&model).ok_or_else(reply::internal_error)?;

    let limits = job::limits(&request, model);
    let account = context.admit(job::most_tokens(limits)).await?;
    let occasion = Occasion {
        now_ms,
        timeout_s: config.request_timeout_s,
        id_bits: random_u128(),
        seed: random_u64(),
        account,
    };
    let job = job::new_job(&request, &model.name, occasion);
    let deadline_ns = now_ns.saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    let mut exchange = Exchange::begin(&config.nats, &job, limits, deadline_ns).await?;

    // The first event decides the status.
    let acceptance = match exchange.next().await {
        Ok(Output::Accepted(acceptance)) => acceptance,
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
        fingerprint: acceptance.fingerprint,
        metadata: request.metadata,
    };
    if !request.stream {
        return Ok(Answer::Whole(reply::json(200, answer::whole(exchange, &envelope, limits).await?)));
    }
    let frames = Frames { envelope, include_usage: request.include_usage };
    let response = answer::stream(exchange, frames, limits, &context.headers()).map_err(|error| {
        log("response", error);
        reply::internal_error()
    })?;
    Ok(Answer::Streamed(response))
}
