//! `/v1/responses`: making them, and asking for those that are kept.

use std::time::Duration;

use emberline_api::responses::{DeletedResponse, ResponsesRequest};
use emberline_protocol::control::Control;
use emberline_protocol::error::{ApiError, ErrorCode};

use super::clock::{unix_ms, within};
use super::context::{Answer, Body, Context};
use super::generation::{self, Generation, Wish};
use super::{answer, kept as store, log};
use crate::endpoints::responses::{Query, Story, Telling, job_of, not_found, response_id};
use crate::generation::stored_request;
use crate::generation::stored_request::record::Record;
use crate::http::reply;
use crate::relay::{Output, Relay};

/// How long a worker may take to say that it has stopped.
const CANCEL_TIME: Duration = Duration::from_secs(3);
/// How long after its deadline a job that has not ended is given up, in milliseconds.
const OVERDUE_MS: u64 = 60_000;

/// `POST /v1/responses`
pub(super) async fn create(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let body = context.read_body(body).await?;
    let request = ResponsesRequest::parse(&body)?;
    let outline = request.outline;
    context.relax(&outline.relaxed);
    let wish = Wish {
        body: &body,
        model: request.model,
        seed: request.seed,
        requests: vec![request.generation],
        outline: Some(outline.clone()),
        paths: outline.paths.clone(),
    };
    let queued = generation::queue(context, wish).await?;
    let is_background = outline.background;
    let mut story = Story::new(queued.first.id.clone(), queued.first.created, queued.model.clone(), outline);
    if is_background && !request.stream {
        queued.jobs.cancel().await;
        return match queued.repeated {
            Some(record) => Ok(told(&read(context, &record).await?)),
            None => Ok(told(&story)),
        };
    }
    // Whoever made a background response is to know its id at once; its status can tell of errors.
    if is_background {
        let telling = Telling::new(story, None, queued.limits);
        return answer::stream(queued.jobs, telling, &context.headers());
    }
    let Generation { jobs, limits, acceptances, head_ns, .. } = queued.accepted(context).await?;
    acceptances.into_iter().for_each(|acceptance| story.push(Output::Accepted(acceptance)));
    if request.stream {
        return answer::stream(jobs, Telling::new(story, None, limits), &context.headers());
    }
    answer::whole(jobs, story, head_ns, &context.headers()).await
}

/// `GET /v1/responses/{id}`
pub(super) async fn retrieve(context: &Context, id: &str) -> Result<Answer, ApiError> {
    let query = Query::parse(context.head.uri.query())?;
    let record = find(context, id).await?;
    record.outline.iter().for_each(|outline| context.relax(&outline.relaxed));
    if !query.stream {
        return Ok(told(&read(context, &record).await?));
    }
    let (jobs, limits) = generation::join(context, &record, &kept::paths(&record), false, u64::MAX).await?;
    let story = Story::of(record).ok_or_else(|| not_found(id))?;
    context.tell_limits().await;
    answer::stream(jobs, Telling::new(story, query.starting_after, limits), &context.headers())
}

/// `POST /v1/responses/{id}/cancel`
pub(super) async fn cancel(context: &Context, id: &str) -> Result<Answer, ApiError> {
    let record = find(context, id).await?;
    record.outline.iter().for_each(|outline| context.relax(&outline.relaxed));
    Ok(told(&stop(context, record).await?))
}

/// `DELETE /v1/responses/{id}`
pub(super) async fn delete(context: &Context, id: &str) -> Result<Answer, ApiError> {
    let record = find(context, id).await?;
    let job = record.job.clone();
    stop(context, record).await?;
    store::delete(&context.config.nats, &job).await?;
    let deleted = DeletedResponse { id: response_id(&job.id), object: "response", deleted: true };
    Ok(Answer::json(&deleted))
}

/// The record of a response that the caller's key has made.
async fn find(context: &Context, id: &str) -> Result<Record, ApiError> {
    let job = job_of(id).ok_or_else(|| not_found(id))?;
    let record = store::record(&context.config.nats, &job).await?;
    let is_theirs = |record: &Record| record.key == context.caller.key && record.outline.is_some();
    record.filter(is_theirs).ok_or_else(|| not_found(id))
}

/// The response as its log tells it now.
async fn read(context: &Context, record: &Record) -> Result<Story, ApiError> {
    let events = store::event_log(&context.config.nats, &record.job).await?;
    let id = response_id(&record.job.id);
    let mut relay = Relay::new(kept::limits(record));
    let outputs = relay.rebuild(&events).map_err(|fault| {
        log(&id, &fault);
        ApiError::from(&fault)
    })?;
    // A log whose beginning is gone tells nothing; one that says only who took the job, nothing yet.
    if outputs.is_empty() && relay.has_gap() {
        return Err(not_found(&id));
    }
    let mut story = Story::of(record.clone()).ok_or_else(|| not_found(&id))?;
    let paths = kept::paths(record);
    for output in outputs.into_iter().map(|output| output.called_by(&paths)) {
        if let Output::Accepted(acceptance) = &output {
            context.relax(&acceptance.relaxed);
        }
        story.push(output);
    }
    if record.standing.cancelled {
        story.cancel();
    }
    if !story.is_over() && unix_ms() > record.job.deadline.saturating_add(OVERDUE_MS) {
        story.fail(ApiError::new(ErrorCode::Timeout, "The response was not complete in time."));
    }
    Ok(story)
}

/// Ends a response that is not over.
async fn stop(context: &Context, mut record: Record) -> Result<Story, ApiError> {
    let story = read(context, &record).await?;
    if story.is_over() {
        return Ok(story);
    }
    // A worker that takes the job from now on sees this; one that has it hears the control message.
    record.standing.cancelled = true;
    store::replace(&context.config.nats, &record).await?;
    let (mut jobs, _) = generation::join(context, &record, &kept::paths(&record), false, u64::MAX).await?;
    jobs.send_control(Control::Cancel);
    let mut story = Story::of(record).ok_or_else(reply::internal_error)?;
    let ended = within(CANCEL_TIME, async {
        while !story.is_over()
            && let Ok(output) = jobs.next().await
        {
            story.push(output);
        }
    });
    ended.await;
    jobs.cancel().await;
    story.cancel();
    Ok(story)
}

fn told(story: &Story) -> Answer {
    Answer::json(&story.response())
}
