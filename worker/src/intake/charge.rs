//! Charges a job to its key: publishes the tokens that it used to `USAGE`, and corrects what was counted
//! for it in advance in `LIMITS`.
//!
//! All of it is sent before the client learns of the job's end, so that the client's next request finds
//! correct counters, and confirmed before the job's message is acknowledged, however long that takes: until
//! then the job is in its queue, so that a crash in between leads to another try. Message ids derived from the
//! job's account make each message count once, whichever worker sends it and how often.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::ErrorCode as NatsCode;
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use emberline_inference::clock;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::counter::INCREMENT_HEADER;
use emberline_protocol::event::{EventKind, Timings, Usage};
use emberline_protocol::job::{Account, Job};
use emberline_protocol::key::KeyId;
use emberline_protocol::subject::{self, JobId};
use emberline_protocol::usage::{Outcome, UsageEvent};

use crate::nats::{self, Nats};

/// Pauses after a message that was not stored: the first one, and the longest. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// What to do about a charge that finds `USAGE` full: of the streams of a charge, only that one refuses messages.
const USAGE_FULL: &str = "the job's charge can't be stored, because the stream USAGE is full; the job stays queued until \
    there is room. Export what is there with `emberline usage export --name NAME --output FILE`, then remove what is old \
    with `emberline nats setup --usage-age 90d`, or allow more with `--usage-bytes 4GiB`";

/// What a job used, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct JobTotals {
    pub(super) usage: Usage,
    pub(super) timings: Timings,
    pub(super) outcome: Outcome,
}

impl JobTotals {
    /// As a job's last event says.
    pub(super) fn of(last: &EventKind) -> Self {
        let nothing = (Usage::default(), Timings::default());
        let ((usage, timings), outcome) = match last {
            EventKind::Done { usage, timings, .. } => ((*usage, *timings), Outcome::Done),
            EventKind::Error(error) => {
                ((error.usage.unwrap_or_default(), Timings::default()), Outcome::Failed(error.code))
            }
            _ => (nothing, Outcome::Cancelled),
        };
        Self { usage, timings, outcome }
    }

    /// For a job that was stopped after it had used this much.
    pub(super) fn stopped(usage: Usage, outcome: Outcome) -> Self {
        Self { usage, timings: Timings::default(), outcome }
    }
}

type Answer = <PublishAckFuture as IntoFuture>::IntoFuture;

/// A job's charge, until it is stored.
pub(super) struct Charge {
    nats: Nats,
    job: JobId,
    model: String,
    key: Option<KeyId>,
    totals: JobTotals,
    /// Messages not known to be stored, in order.
    unconfirmed: VecDeque<(String, PublishMessage)>,
    /// Pending acknowledgements of the first of them; the others are not sent yet.
    answers: VecDeque<Answer>,
}

impl Charge {
    /// The charge of `job`; empty for a job without an account.
    pub(super) fn new(nats: Nats, job: &Job, totals: &JobTotals) -> Self {
        let unconfirmed =
            job.account.as_ref().map(|account| messages(job, account, totals, clock::unix_ms()));
        let unconfirmed = unconfirmed.unwrap_or_default().into();
        Self {
            nats,
            job: job.id.clone(),
            model: job.model.clone(),
            key: job.account.as_ref().map(|account| account.key.clone()),
            totals: *totals,
            unconfirmed,
            answers: VecDeque::new(),
        }
    }

    /// Sends all messages, without waiting for acknowledgements.
    pub(super) async fn send(&mut self) {
        if let Err(error) = self.send_rest().await {
            tracing::warn!(job = %self.job, %error, "a charge was not sent; trying again");
        }
    }

    /// Waits until all messages are stored; tries for as long as that takes.
    pub(super) async fn confirm(&mut self) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.advance().await {
            if is_stream_full(&error) {
                tracing::error!(job = %self.job, %error, "{USAGE_FULL}");
            } else {
                tracing::warn!(job = %self.job, %error, "a charge was not stored; sending it again");
            }
            self.answers.clear();
            self.nats.recheck();
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(LAST_PAUSE);
        }
    }

    /// Logs a charge that this worker can't have stored, with everything that it says.
    pub(super) fn report_unconfirmed(&self) {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.totals.usage;
        tracing::error!(
            job = %self.job,
            model = %self.model,
            key = self.key.as_ref().map(KeyId::as_str),
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            outcome = ?self.totals.outcome,
            unconfirmed = ?self.unconfirmed.iter().map(|(subject, _)| subject).collect::<Vec<_>>(),
            "nats-server has not confirmed the job's charge; the worker that gets the job next sends it again"
        );
    }

    async fn send_rest(&mut self) -> Result<(), PublishError> {
        while let Some((subject, message)) = self.unconfirmed.get(self.answers.len()) {
            let sent = self.nats.jetstream().send_publish(subject.clone(), message.clone());
            self.answers.push_back(sent.await?.into_future());
        }
        Ok(())
    }

    async fn advance(&mut self) -> Result<(), PublishError> {
        self.send_rest().await?;
        while let Some(answer) = self.answers.front_mut() {
            answer.await?;
            self.answers.pop_front();
            self.unconfirmed.pop_front();
        }
        Ok(())
    }
}

/// Whether a stream refused a message because it is at one of its limits.
fn is_stream_full(error: &PublishError) -> bool {
    nats::refusal(error).is_some_and(|refusal| {
        refusal.error_code() == NatsCode::STREAM_STORE_FAILED && refusal.to_string().starts_with("maximum")
    })
}

/// The messages of a charge; those for the counters of concurrent jobs come first.
fn messages(job: &Job, account: &Account, totals: &JobTotals, now_ms: u64) -> Vec<(String, PublishMessage)> {
    let Usage { prompt_tokens, completion_tokens, .. } = totals.usage;
    let used = u64::from(prompt_tokens) + u64::from(completion_tokens);
    let corrections = account.settlement(used, now_ms).into_iter().map(|(bucket, amount)| {
        let message = PublishMessage::build()
            .header(INCREMENT_HEADER, amount.to_string())
            .message_id(account.correction_id(&job.id, bucket.counter));
        (bucket.subject(), message)
    });
    let event = UsageEvent {
        v: PROTOCOL_VERSION,
        job: job.id.clone(),
        key: account.key.clone(),
        model: job.model.clone(),
        usage: totals.usage,
        timings: totals.timings,
        created: job.created,
        finished: now_ms,
        outcome: totals.outcome,
    };
    // Can't fail: string keys, and serde_json writes NaN and infinities as null.
    let event = serde_json::to_vec(&event).unwrap_or_default();
    let event = PublishMessage::build().payload(event.into()).message_id(account.settlement_id(&job.id));
    corrections.chain([(subject::usage(&account.key), event)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::counter::{Bucket, Counter, Owner};
    use emberline_protocol::error::{ApiError, ErrorCode};
    use emberline_protocol::event::ErrorEvent;
    use emberline_protocol::job::GenerationRequest;
    use emberline_protocol::lane::Lane;

    const NOW: u64 = 180_000;

    fn subjects_and_amounts(reserved: u64, usage: Usage) -> Vec<(String, String)> {
        let key = KeyId::of_key(b"abc");
        let bucket = |counter, number| {
            let owner = match counter {
                Counter::ModelJobs => Owner::model("m"),
                _ => Owner::Key(key.clone()),
            };
            Bucket { owner, counter, number }.subject()
        };
        let account = Account {
            key: key.clone(),
            reserved_tokens: reserved,
            token_counters: vec![bucket(Counter::TokensMinute, 1), "emberline.jobs.m.0".into()],
            job_counters: vec![bucket(Counter::Jobs, 99), bucket(Counter::ModelJobs, 99)],
            lane: Lane::default(),
            admission: None,
        };
        let job = Job {
            v: PROTOCOL_VERSION,
            id: JobId::from_random(7),
            model: "m".into(),
            created: 0,
            deadline: 0,
            request: GenerationRequest::default(),
            seed: 0,
            background: None,
            account: None,
        };
        let totals = JobTotals::stopped(usage, Outcome::Done);
        let messages = messages(&job, &account, &totals, NOW).into_iter();
        let amount = |message: PublishMessage| {
            let message = message.outbound_message("x");
            let headers = message.headers.unwrap();
            headers.get(INCREMENT_HEADER).map_or_else(String::new, |value| value.to_string())
        };
        messages.map(|(subject, message)| (subject.replace(key.as_str(), "K"), amount(message))).collect()
    }

    #[test]
    fn what_was_counted_in_advance_is_corrected() {
        let usage = Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 5 };
        let pair = |subject: &str, amount: &str| (subject.to_owned(), amount.to_owned());
        let job = pair("emberline.limits.K.jobs.99", "-1");
        let model = pair("emberline.limits.m.model_jobs.99", "-1");
        let told = pair("emberline.usage.K", "");
        let less = pair("emberline.limits.K.tokens_minute.1", "-5");
        assert_eq!(subjects_and_amounts(20, usage), [job.clone(), model.clone(), less, told.clone()]);
        let more = pair("emberline.limits.K.tokens_minute.3", "5");
        assert_eq!(subjects_and_amounts(10, usage), [job.clone(), model.clone(), more, told.clone()]);
        assert_eq!(subjects_and_amounts(15, usage), [job, model, told]);
    }

    #[test]
    fn the_last_event_tells_the_outcome() {
        let error = ApiError::new(ErrorCode::Timeout, "late");
        let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 };
        let failed = JobTotals::of(&EventKind::Error(error.clone().into()));
        assert_eq!((failed.usage, failed.outcome), (Usage::default(), Outcome::Failed(ErrorCode::Timeout)));
        let failed = JobTotals::of(&EventKind::Error(ErrorEvent::after(error, usage)));
        assert_eq!((failed.usage, failed.outcome), (usage, Outcome::Failed(ErrorCode::Timeout)));
        let done = JobTotals::of(&EventKind::Done { usage, timings: Timings::default(), at: None });
        assert_eq!((done.usage, done.outcome), (usage, Outcome::Done));
    }
}
