//! One job, from its publication to its last event.
//!
//! A connection that is lost on the way is made again ([`Reconnecting`]); events that were missed meanwhile are
//! read from the job's event log, which is the truth in any case.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::{ALIVE_INTERVAL_S, Control, Orphan, PROBE_INTERVAL_MS, SentQuestion};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::FinishReason;
use emberline_protocol::job::Job;
use emberline_protocol::subject::{JobId, control, live, orphans, sent};
use watermelon_proto::{MessageBase, ServerMessage, StatusCode, Subject, SubscriptionId};

use super::job;
use super::reconnecting::{ConnectionEvent, Reconnecting};
use super::schedule::StreamEnd;
use super::stored_request::StoredJob;
use crate::memory::{Held, Reservation};
use crate::nats::bus::Bus;
use crate::nats::connection::{BusError, Connection, REPLY_TIMEOUT, direct_get_subject, subject};
use crate::nats::jetstream::{self, Ack, Batch, Progress};
use crate::platform::{Host, Timer, add_ns, report};
use crate::relay::{Fault, Output, OutputLimits, Relay, read_chunk};

const ALIVE_INTERVAL: Duration = Duration::from_secs(ALIVE_INTERVAL_S);
const PROBE_INTERVAL: Duration = Duration::from_millis(PROBE_INTERVAL_MS);
/// How long events may be missing: longer than nats-server takes to find a leader or to start again.
const GAP_TIME: Duration = Duration::from_secs(60);
/// Pauses before the log is read again because events are missing: the first one, and the longest.
/// Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to tell the worker that the job is cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a job is published at most if NATS does not confirm it.
const PUBLICATIONS: u32 = 3;

/// How much more than its size an event takes while its log is read: it is there as it came, and as an event.
const READ_COPIES: usize = 3;

/// A read of the job's event log that is under way.
struct LogRead {
    inbox: Subject,
    batch: Batch,
    /// Of the batches before this one.
    chunks: Vec<Chunk>,
    /// Size of all that came.
    bytes: usize,
    asked_ns: u64,
    /// Replies can be lost like any message.
    limit: Timer,
}

/// Events that are missing.
struct Gap {
    since_ns: u64,
    /// When the log is read again.
    retry: Option<Timer>,
    pause: Duration,
}

/// A published job, and what is known of it.
pub struct JobStream {
    host: Host,
    connection: Reconnecting,
    /// Names the job in the log.
    context: String,
    /// The job goes on if nobody listens.
    is_background: bool,
    relay: Relay,
    /// An error is the stream's own; a job's failure is an output.
    outputs: VecDeque<Result<Output, ApiError>>,
    subscription: SubscriptionId,
    /// The subscription to questions of workers that take the job over.
    questions: SubscriptionId,
    acknowledgement: Option<Subject>,
    /// The job, to be published if its event log is empty.
    unpublished: Option<MessageBase>,
    live: Subject,
    /// The stream and the subject of the event log.
    log: (&'static str, Subject),
    control: Subject,
    sent: Subject,
    /// For the worker that takes the job when nobody waits for it any more.
    withdrawal: Option<MessageBase>,
    end: Timer,
    /// What the client is told then.
    end_error: ApiError,
    alive: Timer,
    /// An event has come since `alive` last fired.
    heard: bool,
    job: JobId,
    orphans: Subject,
    probe: Timer,
    /// An event has come since `probe` last fired.
    heard_lately: bool,
    /// Where NATS says that the worker is not there.
    probe_inbox: Option<Subject>,
    log_read: Option<LogRead>,
    gap: Option<Gap>,
    /// Size of the events that wait for a gap to be closed.
    waiting_bytes: usize,
    held: Held,
}

/// A job that is queued.
pub(super) struct Published {
    /// Its events.
    pub(super) stream: JobStream,
    /// What is queued is the job as an earlier try of the same request published it, with that try's account.
    pub(super) of_earlier_try: bool,
}

/// A job that is not known to be queued.
pub(super) struct NotPublished {
    /// Why.
    pub(super) error: ApiError,
    /// It may be queued nevertheless.
    pub(super) may_be_queued: bool,
    /// Its events, if there is a connection for them.
    pub(super) stream: Option<JobStream>,
}

impl JobStream {
    /// Publishes `job` and waits until it is stored. The stream fails at `end`.
    pub(super) async fn publish(
        bus: &Bus,
        job: &Job,
        limits: OutputLimits,
        end: &StreamEnd,
        memory: &Rc<Reservation>,
    ) -> Result<Published, NotPublished> {
        let context = format!("job {}", job.id);
        let fail = |error: BusError| {
            report(&context, &error);
            ApiError::from(&error)
        };
        let listened = StoredJob::of(job);
        let until_ns = bus.host().after(REPLY_TIMEOUT);
        let mut failure = BusError::Closed;
        let mut idle = bus.idle();
        for publication in 0..PUBLICATIONS {
            // One whose confirmation was lost may have been stored.
            let may_be_queued = publication > 0;
            let not_published = |error: ApiError| NotPublished { error, may_be_queued, stream: None };
            let connection = match idle.take() {
                Some(connection) => Ok(connection),
                None => bus.connect_unless_resting().await,
            };
            let connection = connection.map_err(fail).map_err(not_published)?;
            let message = job::message(job, connection.max_payload()).map_err(not_published)?;
            let stream = Self::listen(connection, bus, &listened, limits, end, memory.part());
            let mut stream = stream.map_err(fail).map_err(not_published)?;
            match stream.store(bus, message, until_ns).await {
                Ok(ack) => {
                    let was_queued = ack == Ack::Before;
                    if was_queued || publication > 0 {
                        // A worker may have taken it before this connection was there.
                        stream.recheck().map_err(not_published)?;
                    }
                    return Ok(Published { stream, of_earlier_try: was_queued && publication == 0 });
                }
                // The connection may have died while it waited. The job's id makes a second
                // publication of the same job harmless.
                Err(error @ (BusError::Closed | BusError::Refused(_))) => failure = error,
                Err(BusError::Publish(error)) => {
                    stream.release();
                    return Err(not_published(fail(BusError::Publish(error))));
                }
                Err(error) => {
                    let error = fail(error);
                    return Err(NotPublished { error, may_be_queued: true, stream: Some(stream) });
                }
            }
        }
        Err(NotPublished { error: fail(failure), may_be_queued: true, stream: None })
    }

    /// Joins a job that was published before: reads its event log from the beginning and goes on live. If the log
    /// is empty, the job is published `again`, if that is given; the queue ignores it if it is still there, by its
    /// id.
    pub(super) async fn join(
        bus: &Bus,
        job: &StoredJob,
        limits: OutputLimits,
        end: &StreamEnd,
        again: Option<&Job>,
        memory: &Rc<Reservation>,
    ) -> Result<Self, ApiError> {
        let context = format!("job {}", job.id);
        let fail = |error: BusError| {
            report(&context, &error);
            ApiError::from(&error)
        };
        // A new connection: one that died while it waited would show that only later.
        let connection = bus.connect_unless_resting().await.map_err(fail)?;
        let message = again.map(|job| job::message(job, connection.max_payload())).transpose()?;
        let held = memory.part();
        let mut stream = Self::listen(connection, bus, job, limits, end, held).map_err(fail)?;
        stream.unpublished = message;
        stream.read_log(1)?;
        Ok(stream)
    }

    /// Subscribes to the events of a job.
    fn listen(
        mut connection: Connection,
        bus: &Bus,
        job: &StoredJob,
        limits: OutputLimits,
        end: &StreamEnd,
        held: Held,
    ) -> Result<Self, BusError> {
        let (stream, events) = job.log();
        let (live, control) = (subject(live(&job.id))?, subject(control(&job.id))?);
        let sent = subject(sent(&job.id))?;
        let withdrawal = job::withdrawal(job)?;
        let subscription = connection.new_subscription(live.clone());
        let questions = connection.new_subscription(sent.clone());
        let context = format!("job {}", job.id);
        Ok(Self {
            host: bus.host().clone(),
            connection: Reconnecting::new(connection, bus, &context),
            context,
            is_background: job.background.is_some(),
            relay: Relay::new(limits),
            outputs: VecDeque::new(),
            subscription,
            questions,
            acknowledgement: None,
            unpublished: None,
            live,
            log: (stream, subject(events)?),
            control,
            sent,
            withdrawal,
            end: bus.host().timer(bus.host().left_until(end.at_ns)),
            end_error: end.error.clone(),
            alive: bus.host().timer(ALIVE_INTERVAL),
            heard: false,
            job: job.id.clone(),
            orphans: subject(orphans(&job.model))?,
            probe: bus.host().timer(PROBE_INTERVAL),
            heard_lately: false,
            probe_inbox: None,
            log_read: None,
            gap: None,
            waiting_bytes: 0,
            held,
        })
    }

    /// Publishes the job and waits until it is stored, but not beyond `until_ns`.
    async fn store(&mut self, bus: &Bus, message: MessageBase, until_ns: u64) -> Result<Ack, BusError> {
        self.queue(message)?;
        let stored = bus.host().until(until_ns, poll_fn(|cx| self.poll_stored(cx))).await;
        stored.unwrap_or_else(|| {
            bus.rest();
            Err(BusError::Timeout("publishing a job"))
        })
    }

    /// Publishes the job over the connection that there is.
    fn queue(&mut self, message: MessageBase) -> Result<(), BusError> {
        let Some(connection) = self.connection.connected() else { return Ok(()) };
        let inbox = connection.new_inbox()?;
        connection.publish(MessageBase { reply_subject: Some(inbox.clone()), ..message });
        self.acknowledgement = Some(inbox);
        Ok(())
    }

    /// Waits for the acknowledgement; the first events may come before it.
    fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ack, BusError>> {
        loop {
            let Some(connection) = self.connection.connected() else {
                return Poll::Ready(Err(BusError::Closed));
            };
            match connection.poll_message(cx) {
                Poll::Ready(Ok(message)) if self.acknowledgement.as_ref() == Some(&message.base.subject) => {
                    self.acknowledgement = None;
                    return Poll::Ready(jetstream::read_ack(&message).map_err(BusError::from));
                }
                Poll::Ready(Ok(message)) => {
                    // The job may run nevertheless, so the error is an output.
                    if let Err(error) = self.on_message(message) {
                        self.outputs.push_back(Err(error));
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Names the job in the log.
    pub(super) fn context(&self) -> &str {
        &self.context
    }

    /// Whether a worker has the job, or had it.
    pub(super) fn is_taken(&self) -> bool {
        self.relay.is_taken()
    }

    /// The next output for the client; stopping to poll loses nothing. After an error,
    /// call [`JobStream::cancel`].
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, ApiError>> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Poll::Ready(output);
            }
            if self.end.poll(cx).is_ready() {
                return Poll::Ready(Err(self.end_error.clone()));
            }
            if self.poll_timers(cx)? {
                continue;
            }
            match self.connection.poll(cx) {
                Poll::Ready(Ok(ConnectionEvent::Message(message))) => self.on_message(message)?,
                Poll::Ready(Ok(ConnectionEvent::Reconnected)) => self.on_reconnected()?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Does what is due; whether there was anything.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Result<bool, ApiError> {
        if self.alive.poll(cx).is_ready() {
            self.alive = self.host.timer(ALIVE_INTERVAL);
            self.send_alive();
            // If the last events were lost, nothing else would show it.
            if !std::mem::take(&mut self.heard) && self.log_read.is_none() {
                self.read_log(1)?;
            }
        } else if self.probe.poll(cx).is_ready() {
            self.probe = self.host.timer(PROBE_INTERVAL);
            if !std::mem::take(&mut self.heard_lately) && self.relay.ack().is_some() {
                self.send_probe()?;
            }
        } else if self.gap.as_mut().and_then(|gap| gap.retry.as_mut()).is_some_and(|r| r.poll(cx).is_ready())
        {
            if let Some(gap) = &mut self.gap {
                gap.retry = None;
            }
            self.read_log(1)?;
        } else if let Some(read) = self.log_read.take_if(|read| read.limit.poll(cx).is_ready()) {
            if !self.connection.has_heard_since(read.asked_ns) {
                self.connection.on_connection_lost(&BusError::Timeout("reading an event log"));
            } else {
                self.try_later("its event log could not be read in time", jetstream::bus_unavailable)?;
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Subscribes again over the new connection.
    fn on_reconnected(&mut self) -> Result<(), ApiError> {
        let Some(connection) = self.connection.connected() else { return Ok(()) };
        self.subscription = connection.new_subscription(self.live.clone());
        self.questions = connection.new_subscription(self.sent.clone());
        (self.log_read, self.acknowledgement, self.probe_inbox) = (None, None, None);
        self.send_alive();
        self.recheck()
    }

    /// Has the event log read before any further event counts, since some may have been missed.
    fn recheck(&mut self) -> Result<(), ApiError> {
        self.relay.recheck();
        self.read_log(1)
    }

    fn on_message(&mut self, message: ServerMessage) -> Result<(), ApiError> {
        let attempt = self.relay.attempt();
        let done = self.take_message(message);
        if self.relay.attempt() > attempt {
            // A worker that has heard nothing yet bears less silence: a cut that begins now would end the job.
            self.send_alive();
        }
        // What was only passed on is not held any more.
        let read = self.log_read.as_ref().map_or(0, |read| read.bytes.saturating_mul(READ_COPIES));
        let buffered = self.connection.connected().map_or(0, |connection| connection.buffered());
        let held = [self.relay.held_bytes(), self.waiting_bytes, read, buffered];
        let counted = self.held.set(held.into_iter().fold(0, usize::saturating_add));
        done.and(counted.map_err(|error| {
            report(&self.context, error);
            error.into()
        }))
    }

    fn take_message(&mut self, message: ServerMessage) -> Result<(), ApiError> {
        if message.subscription_id == self.subscription {
            (self.heard, self.heard_lately) = (true, true);
            let outputs = read_chunk(&message.base.payload).and_then(|chunk| self.relay.on_chunk(chunk));
            let waits = self.relay.has_gap();
            self.waiting_bytes =
                if waits { self.waiting_bytes.saturating_add(message.base.payload.len()) } else { 0 };
            self.push_outputs(outputs)?;
            if self.relay.has_gap() && self.log_read.is_none() && self.gap.is_none() {
                self.read_log(1)?;
            }
            return Ok(());
        }
        if message.subscription_id == self.questions {
            self.answer(message.base);
            return Ok(());
        }
        if self.probe_inbox.as_ref() == Some(&message.base.subject) {
            self.probe_inbox = None;
            if message.status_code == Some(StatusCode::NO_RESPONDERS) {
                self.report_orphan();
            }
            return Ok(());
        }
        if self.acknowledgement.as_ref() == Some(&message.base.subject) {
            (self.acknowledgement, self.unpublished) = (None, None);
            return jetstream::read_ack(&message).map(drop).map_err(|error| self.failed(&error.into()));
        }
        match self.log_read.take() {
            Some(read) if read.inbox == message.base.subject => self.on_stored(read, message),
            other => {
                self.log_read = other;
                Ok(())
            }
        }
    }

    /// Looks whether the worker is there. Until NATS has answered, all probes name one inbox: the answer to the first
    /// may take longer than the pause before the next.
    fn send_probe(&mut self) -> Result<(), ApiError> {
        let Some(connection) = self.connection.connected() else { return Ok(()) };
        let inbox = self.probe_inbox.take().map_or_else(|| connection.new_inbox(), Ok);
        let payload = serde_json::to_vec(&Control::Probe).unwrap_or_default();
        match inbox {
            Ok(inbox) => {
                connection.request(self.control.clone(), Some(inbox.clone()), payload);
                self.probe_inbox = Some(inbox);
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Asks a worker of the model to give the job back in the name of the one that is not there.
    fn report_orphan(&mut self) {
        let Some(ack) = self.relay.ack().map(str::to_owned) else { return };
        let orphan = Orphan { v: PROTOCOL_VERSION, job: self.job.clone(), ack };
        let payload = serde_json::to_vec(&orphan).unwrap_or_default();
        if let Some(connection) = self.connection.connected() {
            connection.request(self.orphans.clone(), None, payload);
        }
    }

    /// Answers a worker that takes the job over.
    fn answer(&mut self, question: MessageBase) {
        let Ok(asked) = serde_json::from_slice::<SentQuestion>(&question.payload) else { return };
        let sent = serde_json::to_vec(&self.relay.sent(&asked)).unwrap_or_default();
        if let (Some(connection), Some(reply)) = (self.connection.connected(), question.reply_subject) {
            connection.request(reply, None, sent);
        }
    }

    fn push_outputs(&mut self, outputs: Result<Vec<Output>, Fault>) -> Result<(), ApiError> {
        let outputs = outputs.map_err(|fault| self.faulty(&fault))?;
        if !outputs.is_empty()
            && let Some(gap) = &mut self.gap
        {
            (gap.since_ns, gap.pause) = (self.host.monotonic_ns(), FIRST_PAUSE);
        }
        for output in outputs {
            // A client that cancels does not listen any more, unless the job runs in the background. So
            // this worker has received nothing from here for too long.
            if !self.is_background && matches!(output, Output::Finish { reason: FinishReason::Cancelled, .. })
            {
                self.outputs.push_back(Err(jetstream::bus_unavailable()));
                break;
            }
            self.outputs.push_back(Ok(output));
        }
        Ok(())
    }

    fn faulty(&self, fault: &Fault) -> ApiError {
        report(&self.context, fault);
        ApiError::from(fault)
    }

    fn failed(&self, error: &BusError) -> ApiError {
        report(&self.context, error);
        ApiError::from(error)
    }

    /// Asks for the event log from stream sequence `from` on. Without a connection nothing is done:
    /// [`JobStream::on_reconnected`] reads the log.
    fn read_log(&mut self, from: u64) -> Result<(), ApiError> {
        let (chunks, bytes) = self.log_read.take().map(|read| (read.chunks, read.bytes)).unwrap_or_default();
        let Some(connection) = self.connection.connected() else { return Ok(()) };
        let request = connection.new_inbox().and_then(|inbox| {
            let (stream, subject) = &self.log;
            let target = direct_get_subject(stream)?;
            let payload = jetstream::next_by_subject(subject.as_str(), from);
            connection.request(target, Some(inbox.clone()), payload);
            Ok(inbox)
        });
        let inbox = request.map_err(|error| self.failed(&error))?;
        self.log_read = Some(LogRead {
            inbox,
            batch: Batch::default(),
            chunks,
            bytes,
            asked_ns: self.host.monotonic_ns(),
            limit: self.host.timer(REPLY_TIMEOUT),
        });
        Ok(())
    }

    fn on_stored(&mut self, mut read: LogRead, message: ServerMessage) -> Result<(), ApiError> {
        read.bytes = read.bytes.saturating_add(message.base.payload.len());
        let progress = match read.batch.push(message) {
            Ok(progress) => progress,
            Err(error) => return self.try_later(error, jetstream::bus_unavailable),
        };
        if progress == Progress::Pending {
            read.limit = self.host.timer(REPLY_TIMEOUT);
            self.log_read = Some(read);
            return Ok(());
        }
        for payload in std::mem::take(&mut read.batch).into_payloads() {
            read.chunks.push(read_chunk(&payload).map_err(|fault| self.faulty(&fault))?);
        }
        if let Progress::More(from) = progress {
            self.log_read = Some(read);
            return self.read_log(from);
        }
        if read.chunks.is_empty()
            && self.acknowledgement.is_none()
            && let Some(message) = self.unpublished.clone()
        {
            self.queue(message).map_err(|error| self.failed(&error))?;
        }
        let outputs = self.relay.rebuild(&read.chunks);
        self.push_outputs(outputs)?;
        if self.relay.has_gap() {
            return self.try_later("events are missing from the log", events_lost);
        }
        self.gap = None;
        Ok(())
    }

    /// Has the log read again a little later, for `reason`. If that has lasted too long, it is the end with
    /// `failure`, unless no worker has the job yet: then no event can be missing.
    fn try_later(
        &mut self,
        reason: impl std::fmt::Display,
        failure: impl FnOnce() -> ApiError,
    ) -> Result<(), ApiError> {
        let now_ns = self.host.monotonic_ns();
        let gap = self.gap.get_or_insert_with(|| Gap { since_ns: now_ns, retry: None, pause: FIRST_PAUSE });
        if self.relay.is_taken() && now_ns > add_ns(gap.since_ns, GAP_TIME) {
            report(&self.context, reason);
            return Err(failure());
        }
        gap.retry = Some(self.host.timer(gap.pause));
        gap.pause = gap.pause.saturating_mul(2).min(LAST_PAUSE);
        Ok(())
    }

    /// Tells the worker that somebody waits, if it needs to know.
    fn send_alive(&mut self) {
        if !self.is_background {
            self.send_control(Control::Alive);
        }
    }

    /// Publishes a control message for the worker.
    pub(super) fn send_control(&mut self, control: Control) {
        let payload = serde_json::to_vec(&control).unwrap_or_default();
        if let Some(connection) = self.connection.connected() {
            connection.request(self.control.clone(), None, payload);
        }
    }

    /// Ends the stream of a job that has ended.
    pub(super) fn release(mut self) {
        if let Some(connection) = self.connection.connected() {
            connection.unsubscribe(self.subscription);
            connection.unsubscribe(self.questions);
        }
        self.connection.release();
    }

    /// Ends the stream of a job whose answer nobody waits for here: the worker frees its slot, unless the job
    /// runs in the background.
    pub(super) async fn cancel(self) {
        if self.is_background { self.release() } else { self.stop().await }
    }

    /// Ends the stream and the job.
    pub(super) async fn stop(self) {
        let withdrawal = self.withdrawal.filter(|_| !self.relay.is_taken());
        let messages = withdrawal.into_iter().chain([job::cancel(&self.control)]);
        let sent = async {
            let mut connection = self.connection.into_connection().await?;
            messages.for_each(|message| connection.publish(message));
            connection.confirm().await
        };
        if !matches!(self.host.within(CANCEL_TIMEOUT, sent).await, Some(Ok(()))) {
            report(
                &self.context,
                "the worker could not be told to stop; it will when it hears nothing for some time",
            );
        }
    }
}

fn events_lost() -> ApiError {
    ApiError::new(ErrorCode::WorkerFailed, "Parts of the answer were lost. Try again.")
}
