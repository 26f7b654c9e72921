//! `/v1/responses`: making responses, and asking for those that are stored.
//!
//! The body is [`ResponsesRequest`]; [`ResponseState`] is a response as far as its job has come, and
//! [`ResponseStream`] writes it as a stream.

mod event;
mod query;
mod state;
mod stream;

use std::time::Duration;

use emberline_api::responses::{DeletedResponse, Response, ResponseEvent, ResponsesRequest};
use emberline_api::schema::Components;
use emberline_protocol::control::Control;
use emberline_protocol::error::{ApiError, ErrorCode};
use http::Method;
use serde_json::Value;

pub use self::event::Event;
pub use self::query::Query;
pub use self::state::{ResponseState, not_found};
pub use self::stream::ResponseStream;
use super::endpoint::{Endpoint, Handler, Parameter, RequestBody, WITH_REPEATS, WITH_STORED_RESPONSE};
use crate::generation::stored_request::{Found, Stored, StoredRequest, job_of, response_id, store};
use crate::generation::{self, Generation, GenerationSpec};
use crate::http::reply;
use crate::http::response_headers::ResponseHeaders;
use crate::platform::report;
use crate::relay::{Output, Relay};
use crate::request::ClientRequest;
use crate::response::{Reply, streamed_reply};

/// How long a worker may take to say that it has stopped.
const CANCEL_TIME: Duration = Duration::from_secs(3);
/// How long after its deadline a job that has not ended is given up, in milliseconds.
const OVERDUE_MS: u64 = 60_000;

fn response_schema(components: &mut Components) -> Value {
    components.answer::<Response<'static>>()
}

fn event_schema(components: &mut Components) -> Value {
    components.answer::<ResponseEvent>()
}

pub(super) static CREATE: Endpoint = Endpoint {
    method: Method::POST,
    path: "/v1/responses",
    id: "createResponse",
    summary: "A response to a conversation, which may go on in the background",
    parameters: &[Parameter::IdempotencyKey, Parameter::RequestTimeout],
    answer: Some(response_schema),
    event: Some(event_schema),
    errors: WITH_REPEATS,
    handler: Handler::WithBody(
        RequestBody {
            schema: ResponsesRequest::schema,
            example: r#"{"model": "vllm-primary", "input": "What is machine learning?"}"#,
        },
        |request, headers, body| Box::pin(create(request, headers, body)),
    ),
};

pub(super) static RETRIEVE: Endpoint = Endpoint {
    method: Method::GET,
    path: "/v1/responses/{id}",
    id: "retrieveResponse",
    summary: "A background response, as far as it is; or the rest of its stream",
    parameters: &[Parameter::Id, Parameter::Stream, Parameter::StartingAfter],
    answer: Some(response_schema),
    event: Some(event_schema),
    errors: WITH_STORED_RESPONSE,
    handler: Handler::WithId(|request, headers, id| Box::pin(retrieve(request, headers, id))),
};

pub(super) static DELETE: Endpoint = Endpoint {
    method: Method::DELETE,
    path: "/v1/responses/{id}",
    id: "deleteResponse",
    summary: "Forgets a background response",
    parameters: &[Parameter::Id],
    answer: Some(|components| components.answer::<DeletedResponse>()),
    event: None,
    errors: WITH_STORED_RESPONSE,
    handler: Handler::WithId(|request, headers, id| Box::pin(delete(request, headers, id))),
};

pub(super) static CANCEL: Endpoint = Endpoint {
    method: Method::POST,
    path: "/v1/responses/{id}/cancel",
    id: "cancelResponse",
    summary: "Ends a background response",
    parameters: &[Parameter::Id],
    answer: Some(response_schema),
    event: None,
    errors: WITH_STORED_RESPONSE,
    handler: Handler::WithId(|request, headers, id| Box::pin(cancel(request, headers, id))),
};

async fn create(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    body: &[u8],
) -> Result<Reply, ApiError> {
    let request = ResponsesRequest::parse(body)?;
    let response = request.spec;
    headers.relax(&response.relaxed);
    let spec = GenerationSpec {
        body,
        model: request.model,
        seed: request.seed,
        requests: vec![request.generation],
        response: Some(response.clone()),
        paths: response.paths.clone(),
        whole: !request.stream && !response.background,
    };
    let queued = generation::queue(client, headers, spec).await?;
    let is_background = response.background;
    let (id, created) = (queued.first.id.clone(), queued.first.created);
    let mut state = ResponseState::new(id, created, queued.model.clone(), response);
    if is_background && !request.stream {
        queued.jobs.cancel().await;
        return match queued.repeated {
            Some(stored) => Ok(whole(&read(client, headers, &stored).await?)),
            None => Ok(whole(&state)),
        };
    }
    // The client needs the id of a background response at once; the response's status can report errors.
    if is_background {
        let writer = ResponseStream::new(state, None, queued.limits);
        return Ok(streamed_reply::stream(client.host(), queued.jobs, writer, headers.to_map()));
    }
    let generation = queued.accepted(client, headers).await?;
    let Generation { jobs, limits, acceptances, head_ns, .. } = generation;
    acceptances.into_iter().for_each(|acceptance| state.push(Output::Accepted(acceptance)));
    let headers = headers.to_map();
    if request.stream {
        let writer = ResponseStream::new(state, None, limits);
        return Ok(streamed_reply::stream(client.host(), jobs, writer, headers));
    }
    streamed_reply::whole(client.host(), jobs, state, head_ns, headers).await
}

async fn retrieve(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    id: &str,
) -> Result<Reply, ApiError> {
    let query = Query::parse(client.query.as_deref())?;
    let stored = find(client, id).await?.request;
    stored.spec.iter().for_each(|spec| headers.relax(&spec.relaxed));
    if !query.stream {
        return Ok(whole(&read(client, headers, &stored).await?));
    }
    let (jobs, limits) = generation::join(client, &stored).await?;
    let state = ResponseState::of(*stored).ok_or_else(|| not_found(id))?;
    client.admitter().set_headers(headers).await;
    let writer = ResponseStream::new(state, query.starting_after, limits);
    Ok(streamed_reply::stream(client.host(), jobs, writer, headers.to_map()))
}

async fn cancel(client: &ClientRequest, headers: &mut ResponseHeaders, id: &str) -> Result<Reply, ApiError> {
    let found = find(client, id).await?;
    found.request.spec.iter().for_each(|spec| headers.relax(&spec.relaxed));
    Ok(whole(&stop(client, headers, found).await?))
}

async fn delete(client: &ClientRequest, headers: &mut ResponseHeaders, id: &str) -> Result<Reply, ApiError> {
    let found = find(client, id).await?;
    let job = found.request.job.clone();
    stop(client, headers, found).await?;
    store::delete(&client.bus, &job).await?;
    store::erase_log(&client.bus, &job.id).await;
    let deleted = DeletedResponse { id: response_id(&job.id), object: "response", deleted: true };
    Ok(Reply::json(&deleted))
}

/// The stored request of a response that the client's key has made.
async fn find(client: &ClientRequest, id: &str) -> Result<Found, ApiError> {
    let job = job_of(id).ok_or_else(|| not_found(id))?;
    match store::read(&client.bus, &job).await? {
        Stored::Found(found) if found.request.key == client.caller.key && found.request.spec.is_some() => {
            Ok(found)
        }
        _ => Err(not_found(id)),
    }
}

/// The response as its event log has it now.
async fn read(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    stored: &StoredRequest,
) -> Result<ResponseState, ApiError> {
    let _memory = generation::reserve_stored(client, stored, true)?;
    let events = store::event_log(&client.bus, &stored.job).await?;
    let id = response_id(&stored.job.id);
    let mut relay = Relay::new(stored.output_limits());
    let outputs = relay.rebuild(&events).map_err(|fault| {
        report(&id, &fault);
        ApiError::from(&fault)
    })?;
    // A log whose beginning is gone gives no output; one that says only who took the job has none yet.
    if outputs.is_empty() && relay.has_gap() {
        return Err(not_found(&id));
    }
    let mut state = ResponseState::of(stored.clone()).ok_or_else(|| not_found(&id))?;
    let paths = stored.paths();
    for output in outputs.into_iter().map(|output| output.called_by(&paths)) {
        if let Output::Accepted(acceptance) = &output {
            headers.relax(&acceptance.relaxed);
        }
        state.push(output);
    }
    if stored.cancel.cancelled {
        state.cancel();
    }
    if !state.is_over() && client.host().unix_ms() > stored.job.deadline.saturating_add(OVERDUE_MS) {
        state.fail(ApiError::new(ErrorCode::Timeout, "The response was not complete in time."));
    }
    Ok(state)
}

/// Ends a response that is not over.
async fn stop(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    found: Found,
) -> Result<ResponseState, ApiError> {
    let state = read(client, headers, &found.request).await?;
    if state.is_over() {
        return Ok(state);
    }
    // A worker that takes the job from now on reads this; one that has it gets the control message.
    let id = response_id(&found.request.job.id);
    let stored = store::cancel(&client.bus, found).await?.ok_or_else(|| not_found(&id))?;
    let (mut jobs, _) = generation::join(client, &stored).await?;
    jobs.send_control(Control::Cancel);
    let mut state = ResponseState::of(stored).ok_or_else(reply::internal_error)?;
    let ended = client.host().within(CANCEL_TIME, async {
        while !state.is_over()
            && let Ok(output) = jobs.next().await
        {
            state.push(output);
        }
    });
    ended.await;
    jobs.cancel().await;
    state.cancel();
    Ok(state)
}

fn whole(state: &ResponseState) -> Reply {
    Reply::json(&state.response())
}
