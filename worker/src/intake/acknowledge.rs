//! Acknowledgements to JetStream: in progress while a job runs; what ends a job is in `job`.

use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How often a running job sends an in-progress acknowledgement.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Runs `work` while sending in-progress acknowledgements, so that JetStream does not redeliver the job.
pub(super) async fn with_progress<T>(message: &Message, work: impl Future<Output = T>) -> T {
    let mut progress = progress_interval();
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = progress.tick() => {
                send_ack(message, AckKind::Progress).await;
            }
        }
    }
}

/// Ticks whenever an in-progress acknowledgement is due.
pub(super) fn progress_interval() -> Interval {
    let mut progress = tokio::time::interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    progress
}

/// Sends an acknowledgement of this kind; returns whether it was sent.
pub(super) async fn send_ack(message: &Message, kind: AckKind) -> bool {
    let sent = message.ack_with(kind).await;
    if let Err(error) = &sent {
        tracing::warn!(subject = %message.subject, %error, "an acknowledgement was not sent");
    }
    sent.is_ok()
}
