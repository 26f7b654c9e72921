//! A worker's lease on a job: JetStream leaves the job to it as long as it says often enough that it goes on.
//!
//! JetStream matches an acknowledgement by the message's sequence alone. One from a worker whose lease has
//! run out would remove, or requeue, a job that another worker has by then. So a worker that was cut off or
//! asleep is in doubt: it sends nothing more about the job before the job's log has said that no other
//! attempt has begun.

use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::nats::{ACK_WAIT, Nats};

/// How often a running job sends an in-progress acknowledgement.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Without an in-progress acknowledgement for this long, JetStream may be about to redeliver the job.
const DOUBT_AFTER: Duration = ACK_WAIT.saturating_sub(PROGRESS_INTERVAL);

/// The lease on the job of one message.
pub(super) struct Lease<'a> {
    message: &'a Message,
    connected: watch::Receiver<bool>,
    progress: Interval,
    /// When JetStream last received an in-progress acknowledgement, as far as this worker knows.
    renewed: Instant,
    in_doubt: bool,
}

impl<'a> Lease<'a> {
    /// The lease on a message that has just been delivered.
    pub(super) fn new(nats: &Nats, message: &'a Message) -> Self {
        let mut progress = tokio::time::interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { message, connected: nats.connected(), progress, renewed: Instant::now(), in_doubt: false }
    }

    /// Whether another worker may have the job.
    pub(super) fn is_in_doubt(&mut self) -> bool {
        // The time also passes while the machine is suspended.
        self.in_doubt |= self.renewed.elapsed() > DOUBT_AFTER || self.connected.has_changed().unwrap_or(true);
        self.in_doubt
    }

    /// Whether there is a connection now.
    pub(super) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until there is a connection. If it is lost later, that is a new reason for doubt.
    pub(super) async fn connection(&mut self) {
        if self.connected.wait_for(|up| *up).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The log has said over this connection that no other worker has the job.
    pub(super) fn confirm(&mut self) {
        (self.renewed, self.in_doubt) = (Instant::now(), false);
    }

    /// Waits until the lease is to be renewed, or until the connection is lost or made again.
    pub(super) async fn renewal(&mut self) {
        tokio::select! {
            _ = self.progress.tick() => {}
            changed = self.connected.changed() => {
                self.in_doubt = true;
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Renews the lease, unless it is in doubt.
    pub(super) async fn renew(&mut self) {
        if !self.is_in_doubt() && send(self.message, AckKind::Progress).await && self.is_connected() {
            self.renewed = Instant::now();
        }
    }

    /// Does `work` and renews the lease meanwhile.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.renewal() => self.renew().await,
            }
        }
    }

    /// Has JetStream deliver the job again at once.
    pub(super) async fn give_back(self) {
        send(self.message, AckKind::Nak(None)).await;
    }
}

/// Sends an acknowledgement of this kind; returns whether it was sent.
async fn send(message: &Message, kind: AckKind) -> bool {
    let sent = message.ack_with(kind).await;
    if let Err(error) = &sent {
        tracing::warn!(subject = %message.subject, %error, "an acknowledgement was not sent");
    }
    sent.is_ok()
}
