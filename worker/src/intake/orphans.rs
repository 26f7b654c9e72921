//! Jobs of workers that are gone: a relay that hears nothing more finds that nobody listens to its job's control
//! messages, and one worker of the model gives the job back in the name of the one that had it. So it need not wait
//! until that one's acknowledgement is overdue.

use std::time::Duration;

use async_nats::{Message, RequestErrorKind, Subscriber};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::control::{Control, ORPHAN_GRACE_MS, Orphan};
use emberline_protocol::subject::{self, JobId, WORKERS_QUEUE};
use futures::StreamExt;
use tokio::sync::watch;

use super::{Phase, reached};
use crate::nats::{Nats, NatsError};

/// How long NATS may take to say that nobody is there.
const PROBE_TIME: Duration = Duration::from_millis(200);
/// Most orphans that are looked at at the same time; the others wait.
const AT_ONCE: usize = 16;

/// Subscribes to the orphans of `model`.
pub(crate) async fn listen(nats: &Nats, model: &str) -> Result<Subscriber, NatsError> {
    nats.queue_subscribe(subject::orphans(model), WORKERS_QUEUE).await
}

/// Gives orphans of `model` back until it drains.
pub(crate) async fn give_back(
    nats: Nats,
    model: String,
    orphans: Subscriber,
    mut phase: watch::Receiver<Phase>,
) {
    let acks = subject::job_acks(&model);
    let looked_at = orphans.for_each_concurrent(AT_ONCE, |message| look_at(&nats, &acks, message));
    tokio::select! {
        () = looked_at => {}
        () = reached(&mut phase, Phase::Draining) => {}
    }
}

async fn look_at(nats: &Nats, acks: &[String], message: Message) {
    let Ok(Orphan { v: PROTOCOL_VERSION, job, ack }) = serde_json::from_slice(&message.payload) else {
        return tracing::warn!(subject = %message.subject, "ignored a message that does not name an orphaned job");
    };
    if !acks.iter().any(|beginning| ack.starts_with(beginning)) {
        return tracing::warn!(%job, %ack, "ignored an orphan of another model");
    }
    // Its worker may have lost its connection for a moment.
    if !is_abandoned(nats, &job).await {
        return;
    }
    tokio::time::sleep(Duration::from_millis(ORPHAN_GRACE_MS)).await;
    if !is_abandoned(nats, &job).await {
        return;
    }
    tracing::warn!(%job, "its worker is gone; giving the job back in its name");
    if let Err(error) = nats.client().publish(ack, "-NAK".into()).await {
        tracing::warn!(%job, %error, "the job was not given back; it is delivered again by itself");
    }
}

/// Whether nobody listens to the control messages of `job`.
async fn is_abandoned(nats: &Nats, job: &JobId) -> bool {
    // Can't fail: a name only.
    let probe = serde_json::to_vec(&Control::Probe).unwrap_or_default();
    let asked = nats.client().request(subject::control(job), probe.into());
    // A worker that is there says nothing.
    match tokio::time::timeout(PROBE_TIME, asked).await {
        Ok(Err(error)) => error.kind() == RequestErrorKind::NoResponders,
        Ok(Ok(_)) | Err(_) => false,
    }
}
