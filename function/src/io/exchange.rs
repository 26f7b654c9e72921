//! One job, from its publication to its last event.
//!
//! A connection that is lost on the way is made again ([`link`]); what was missed meanwhile is read
//! from the job's log, which is the truth in any case.

mod link;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use emberline_protocol::control::{ALIVE_INTERVAL_S, Control};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{Event, FinishReason};
use emberline_protocol::job::Job;
use emberline_protocol::subject::control;
use link::{Link, News};
use spin_sdk::wasip3::spawn;
use watermelon_proto::{MessageBase, ServerMessage, Subject, SubscriptionId};

use super::clock::{Timer, after, monotonic_ns, until, within};
use super::connection::{BusError, Connection, REPLY_TIMEOUT, direct_get_subject, subject};
use super::{bus, log};
use crate::config::Endpoint;
use crate::generation::job;
use crate::nats::jetstream::{self, Batch, Progress};
use crate::relay::{Fault, Limits, Output, Relay, read_event};

const ALIVE_INTERVAL: Duration = Duration::from_secs(ALIVE_INTERVAL_S);
/// How long events may be missing: longer than nats-server takes to find a leader or to start again.
const GAP_TIME: Duration = Duration::from_secs(60);
/// Pauses before the log is read again because events are missing: the first one, and the longest.
/// Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long saying goodbye may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a job is published that NATS did not confirm.
const PUBLICATIONS: u32 = 3;

/// A read of the job's event log that is under way.
struct LogRead {
    inbox: Subject,
    batch: Batch,
    /// Of the batches before this one.
    events: Vec<Event>,
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

/// A published job and what is known of it.
pub(super) struct Exchange {
    link: Link,
    /// Names the job in the log.
    context: String,
    /// It goes on though nobody listens.
    goes_on: bool,
    relay: Relay,
    /// An error is the exchange's own; a job's failure is an output.
    outputs: VecDeque<Result<Output, ApiError>>,
    subscription: SubscriptionId,
    acknowledgement: Option<Subject>,
    /// The job, to be published if its log knows nothing of it.
    unpublished: Option<MessageBase>,
    stream: &'static str,
    events: Subject,
    control: Subject,
    deadline: Timer,
    alive: Timer,
    /// An event came since the last look at `alive`.
    heard: bool,
    log_read: Option<LogRead>,
    gap: Option<Gap>,
}

impl Exchange {
    /// Publishes `job` and waits until it is stored. Its answer is of use until the monotonic
    /// clock comes to `deadline_ns`.
    pub(super) async fn begin(
        endpoint: &Endpoint,
        job: &Job,
        limits: Limits,
        deadline_ns: u64,
    ) -> Result<Self, ApiError> {
        let context = format!("job {}", job.id);
        let fail = |error: BusError| {
            log(&context, &error);
            ApiError::from(&error)
        };
        let until_ns = after(monotonic_ns(), REPLY_TIMEOUT);
        let mut failure = BusError::Closed;
        let mut idle = bus::idle(endpoint);
        for publication in 0..PUBLICATIONS {
            let connection = match idle.take() {
                Some(connection) => connection,
                None => bus::connect_unless_resting(endpoint).await.map_err(fail)?,
            };
            let message = job::message(job, connection.max_payload())?;
            let mut exchange = Self::listen(connection, endpoint, job, limits, deadline_ns).map_err(fail)?;
            match exchange.publish(endpoint, message, until_ns).await {
                Ok(()) => {
                    if publication > 0 {
                        // A worker may have taken it before this connection was there.
                        exchange.doubt()?;
                    }
                    return Ok(exchange);
                }
                // The connection may have died while it waited. The job's id makes a second
                // publication of the same job harmless.
                Err(error @ (BusError::Closed | BusError::Refused(_))) => failure = error,
                Err(BusError::Publish(error)) => {
                    exchange.release();
                    return Err(fail(BusError::Publish(error)));
                }
                Err(error) => {
                    // It may be stored all the same.
                    spawn(exchange.stop());
                    return Err(fail(error));
                }
            }
        }
        Err(fail(failure))
    }

    /// Joins a job that was published before: reads its log from the beginning and goes on live.
    /// One of which the log says nothing is published `again`; if it is still in the queue, that
    /// knows its id.
    pub(super) async fn join(
        endpoint: &Endpoint,
        job: &Job,
        limits: Limits,
        deadline_ns: u64,
        again: bool,
    ) -> Result<Self, ApiError> {
        let context = format!("job {}", job.id);
        let fail = |error: BusError| {
            log(&context, &error);
            ApiError::from(&error)
        };
        // A new connection: one that died while it waited would show that only later.
        let connection = bus::connect_unless_resting(endpoint).await.map_err(fail)?;
        let message = again.then(|| job::message(job, connection.max_payload())).transpose()?;
        let mut exchange = Self::listen(connection, endpoint, job, limits, deadline_ns).map_err(fail)?;
        exchange.unpublished = message;
        exchange.read_log(1)?;
        Ok(exchange)
    }

    /// Subscribes to the job's events.
    fn listen(
        mut connection: Connection,
        endpoint: &Endpoint,
        job: &Job,
        limits: Limits,
        deadline_ns: u64,
    ) -> Result<Self, BusError> {
        let (stream, events) = job.log();
        let (events, control) = (subject(events)?, subject(control(&job.id))?);
        let subscription = connection.new_subscription(events.clone());
        let context = format!("job {}", job.id);
        Ok(Self {
            link: Link::new(connection, endpoint, &context),
            context,
            goes_on: job.background.is_some(),
            relay: Relay::new(limits),
            outputs: VecDeque::new(),
            subscription,
            acknowledgement: None,
            unpublished: None,
            stream,
            events,
            control,
            deadline: Timer::at(deadline_ns),
            alive: Timer::after(ALIVE_INTERVAL),
            heard: false,
            log_read: None,
            gap: None,
        })
    }

    /// Publishes the job and waits until it is stored, but not beyond `until_ns`.
    async fn publish(
        &mut self,
        endpoint: &Endpoint,
        message: MessageBase,
        until_ns: u64,
    ) -> Result<(), BusError> {
        self.queue(message)?;
        let stored = until(until_ns, poll_fn(|cx| self.poll_stored(cx))).await;
        stored.unwrap_or_else(|| {
            bus::rest(endpoint);
            Err(BusError::Timeout("publishing a job"))
        })
    }

    /// Publishes the job over the connection that there is.
    fn queue(&mut self, message: MessageBase) -> Result<(), BusError> {
        let Some(connection) = self.link.up() else { return Ok(()) };
        let inbox = connection.new_inbox()?;
        connection.publish(MessageBase { reply_subject: Some(inbox.clone()), ..message });
        self.acknowledgement = Some(inbox);
        Ok(())
    }

    /// Waits for the acknowledgement; the first events may come before it.
    fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BusError>> {
        loop {
            let Some(connection) = self.link.up() else { return Poll::Ready(Err(BusError::Closed)) };
            match connection.poll_message(cx) {
                Poll::Ready(Ok(message)) if self.acknowledgement.as_ref() == Some(&message.base.subject) => {
                    self.acknowledgement = None;
                    return Poll::Ready(jetstream::read_ack(&message).map_err(BusError::from));
                }
                Poll::Ready(Ok(message)) => {
                    // The job may run all the same, so what went wrong is told by `next`.
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

    /// The next thing to tell the client; stopping to poll loses nothing. After an error,
    /// [`Exchange::cancel`] is in order.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, ApiError>> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Poll::Ready(output);
            }
            if self.deadline.poll(cx).is_ready() {
                let message = "The answer was not complete in time. Ask for less or try again later.";
                return Poll::Ready(Err(ApiError::new(ErrorCode::Timeout, message)));
            }
            if self.poll_timers(cx)? {
                continue;
            }
            match self.link.poll(cx) {
                Poll::Ready(Ok(News::Message(message))) => self.on_message(message)?,
                Poll::Ready(Ok(News::Renewed)) => self.listen_again()?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Does what it is time for; whether there was anything.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Result<bool, ApiError> {
        if self.alive.poll(cx).is_ready() {
            self.alive = Timer::after(ALIVE_INTERVAL);
            if !self.goes_on {
                self.send_control(Control::Alive);
            }
            // Should the last events have been lost, nothing would tell: look after a silence.
            if !std::mem::take(&mut self.heard) && self.log_read.is_none() {
                self.read_log(1)?;
            }
        } else if self.gap.as_mut().and_then(|gap| gap.retry.as_mut()).is_some_and(|r| r.poll(cx).is_ready())
        {
            if let Some(gap) = &mut self.gap {
                gap.retry = None;
            }
            self.read_log(1)?;
        } else if let Some(read) = self.log_read.take_if(|read| read.limit.poll(cx).is_ready()) {
            if !self.link.has_heard_since(read.asked_ns) {
                self.link.lose(&BusError::Timeout("reading an event log"));
            } else {
                self.try_later("its event log could not be read in time")?;
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Goes on with a new connection.
    fn listen_again(&mut self) -> Result<(), ApiError> {
        let Some(connection) = self.link.up() else { return Ok(()) };
        self.subscription = connection.new_subscription(self.events.clone());
        (self.log_read, self.acknowledgement) = (None, None);
        if !self.goes_on {
            self.send_control(Control::Alive);
        }
        self.doubt()
    }

    /// Reads the log before anything else is believed.
    fn doubt(&mut self) -> Result<(), ApiError> {
        self.relay.doubt();
        self.read_log(1)
    }

    fn on_message(&mut self, message: ServerMessage) -> Result<(), ApiError> {
        if message.subscription_id == self.subscription {
            self.heard = true;
            let outputs = read_event(&message.base.payload).and_then(|event| self.relay.on_event(event));
            self.tell(outputs)?;
            if self.relay.has_gap() && self.log_read.is_none() && self.gap.is_none() {
                self.read_log(1)?;
            }
            return Ok(());
        }
        if self.acknowledgement.as_ref() == Some(&message.base.subject) {
            (self.acknowledgement, self.unpublished) = (None, None);
            return jetstream::read_ack(&message).map_err(|error| self.failed(&error.into()));
        }
        match self.log_read.take() {
            Some(read) if read.inbox == message.base.subject => self.on_stored(read, message),
            other => {
                self.log_read = other;
                Ok(())
            }
        }
    }

    fn tell(&mut self, outputs: Result<Vec<Output>, Fault>) -> Result<(), ApiError> {
        let outputs = outputs.map_err(|fault| self.faulty(&fault))?;
        if !outputs.is_empty()
            && let Some(gap) = &mut self.gap
        {
            (gap.since_ns, gap.pause) = (monotonic_ns(), FIRST_PAUSE);
        }
        for output in outputs {
            // Whoever cancels an answer does not listen any more, unless it is kept: this worker has
            // heard nothing from here for too long.
            if !self.goes_on && matches!(output, Output::Finish { reason: FinishReason::Cancelled, .. }) {
                self.outputs.push_back(Err(jetstream::bus_unavailable()));
                break;
            }
            self.outputs.push_back(Ok(output));
        }
        Ok(())
    }

    fn faulty(&self, fault: &Fault) -> ApiError {
        log(&self.context, fault);
        ApiError::from(fault)
    }

    fn failed(&self, error: &BusError) -> ApiError {
        log(&self.context, error);
        ApiError::from(error)
    }

    /// Asks for the event log from stream sequence `from` on; without a connection, its return does.
    fn read_log(&mut self, from: u64) -> Result<(), ApiError> {
        let events = self.log_read.take().map(|read| read.events).unwrap_or_default();
        let Some(connection) = self.link.up() else { return Ok(()) };
        let request = connection.new_inbox().and_then(|inbox| {
            let target = direct_get_subject(self.stream)?;
            let payload = jetstream::next_by_subject(self.events.as_str(), from);
            connection.request(target, Some(inbox.clone()), payload);
            Ok(inbox)
        });
        let inbox = request.map_err(|error| self.failed(&error))?;
        self.log_read = Some(LogRead {
            inbox,
            batch: Batch::default(),
            events,
            asked_ns: monotonic_ns(),
            limit: Timer::after(REPLY_TIMEOUT),
        });
        Ok(())
    }

    fn on_stored(&mut self, mut read: LogRead, message: ServerMessage) -> Result<(), ApiError> {
        let progress = match read.batch.push(message) {
            Ok(progress) => progress,
            Err(error) => return self.try_later(error),
        };
        if progress == Progress::Pending {
            read.limit = Timer::after(REPLY_TIMEOUT);
            self.log_read = Some(read);
            return Ok(());
        }
        for payload in std::mem::take(&mut read.batch).into_payloads() {
            read.events.push(read_event(&payload).map_err(|fault| self.faulty(&fault))?);
        }
        if let Progress::More(from) = progress {
            self.log_read = Some(read);
            return self.read_log(from);
        }
        if read.events.is_empty()
            && self.acknowledgement.is_none()
            && let Some(message) = self.unpublished.clone()
        {
            self.queue(message).map_err(|error| self.failed(&error))?;
        }
        let outputs = self.relay.rebuild(&read.events);
        self.tell(outputs)?;
        if self.relay.has_gap() {
            return self.try_later("events are missing from the log");
        }
        self.gap = None;
        Ok(())
    }

    /// Has the log read again a little later, for `reason`, unless that has lasted too long.
    fn try_later(&mut self, reason: impl std::fmt::Display) -> Result<(), ApiError> {
        let now_ns = monotonic_ns();
        let gap = self.gap.get_or_insert_with(|| Gap { since_ns: now_ns, retry: None, pause: FIRST_PAUSE });
        if now_ns > after(gap.since_ns, GAP_TIME) {
            log(&self.context, reason);
            return Err(ApiError::new(ErrorCode::WorkerFailed, "Parts of the answer were lost. Try again."));
        }
        gap.retry = Some(Timer::after(gap.pause));
        gap.pause = gap.pause.saturating_mul(2).min(LAST_PAUSE);
        Ok(())
    }

    /// Steers the worker.
    pub(super) fn send_control(&mut self, control: Control) {
        let payload = serde_json::to_vec(&control).unwrap_or_default();
        if let Some(connection) = self.link.up() {
            connection.request(self.control.clone(), None, payload);
        }
    }

    /// Ends the exchange of a job that has ended.
    pub(super) fn release(mut self) {
        if let Some(connection) = self.link.up() {
            connection.unsubscribe(self.subscription);
        }
        self.link.release();
    }

    /// Ends the exchange of a job whose answer nobody waits for here: the worker frees its slot,
    /// unless the job goes on though nobody listens.
    pub(super) async fn cancel(self) {
        if self.goes_on { self.release() } else { self.stop().await }
    }

    /// Ends the exchange and the job.
    pub(super) async fn stop(self) {
        let said = job::farewell(&self.control, &self.events, self.goes_on, self.relay.is_taken());
        let sent = async {
            let mut connection = self.link.into_connection().await?;
            said.into_iter().for_each(|word| connection.publish(word));
            connection.flush().await
        };
        if !matches!(within(CANCEL_TIMEOUT, sent).await, Some(Ok(()))) {
            log(&self.context, "nobody could be told to stop; the worker will notice the silence");
        }
    }
}
