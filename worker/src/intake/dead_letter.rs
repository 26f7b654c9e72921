//! Messages that are given up: stored for `emberline jobs`, and taken off the queue.

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{AckKind, Message};
use emberline_protocol::dead_letter::{self, Prompts};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::EventKind;
use emberline_protocol::job::Job;
use emberline_protocol::subject;

use super::Intake;
use super::lease::Lease;
use super::log_writer::LogWriter;
use super::message::{Refusal, id_of};

/// Stores a message that is given up in the stream of dead letters; `job` is what it holds, if that can be read.
pub(super) async fn store(
    intake: &Intake,
    message: &Message,
    job: Option<&Job>,
    reason: &str,
    attempts: u32,
) -> Result<(), PublishError> {
    // The subject is emberline.jobs.<model>.<lane>.
    let model = message.subject.split('.').nth(2).unwrap_or_default();
    let prompts = intake.dead_letter_prompts;
    let payload = match job {
        Some(job) if prompts != Prompts::Keep => prompts.of_job(job),
        _ => prompts.of_bytes(&message.payload),
    };
    let mut letter = PublishMessage::build()
        .payload(payload.into())
        .header(dead_letter::REASON_HEADER, reason)
        .header(dead_letter::ATTEMPTS_HEADER, attempts.to_string())
        .header(dead_letter::QUEUED_ON_HEADER, message.subject.as_str());
    if prompts != Prompts::Keep {
        letter = letter.header(dead_letter::PROMPTS_HEADER, prompts.as_str());
    }
    if let Some(id) = id_of(&message.message) {
        letter = letter.message_id(id);
    }
    let jetstream = intake.nats.jetstream();
    jetstream.send_publish(subject::dead(model), letter).await?.await?;
    Ok(())
}

/// Ends the log of a message that can't be run with an error, and removes it from the queue.
pub(super) async fn refuse(intake: &Intake, message: &Message, refusal: &Refusal) {
    let id = id_of(&message.message);
    tracing::error!(job = ?id, subject = %message.subject, %refusal, "refused a message");
    let mut lease = Lease::new(&intake.nats, message);
    if let Err(error) = lease.during(store(intake, message, None, &refusal.to_string(), 0)).await {
        tracing::error!(%error, "a message can't be stored as a dead letter; it is delivered again");
        return;
    }
    if let Some(id) = id {
        let text = format!("The job could not be read by the worker: {refusal}.");
        let mut log = LogWriter::of_unreadable(intake.nats.clone(), id.clone());
        let error = ApiError::new(ErrorCode::InternalError, text);
        log.append_end(vec![EventKind::Error(error.into())]).await;
        if let Err(error) = lease.during(log.complete()).await {
            tracing::warn!(job = %id, %error, "the error was not stored for the relay");
        }
    }
    if let Err(error) = message.double_ack_with(AckKind::Term).await {
        tracing::warn!(%error, "a refused message was not removed from the queue");
    }
}
