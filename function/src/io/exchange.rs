//! One job, from its publication to its last event.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use emberline_shared::control::{ALIVE_INTERVAL_S, Control};
use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::Event;
use emberline_shared::job::Job;
use emberline_shared::subject::control;
use watermelon_proto::{MessageBase, ServerMessage, Subject, SubscriptionId};

use super::clock::{Timer, within};
use super::connection::{BusError, Connection, REPLY_TIMEOUT, direct_get_subject, subject};
use super::{bus, log};
use crate::config::Endpoint;
use crate::job;
use crate::nats::jetstream::{self, Batch, Progress};
use crate::relay::{Fault, Limits, Output, Relay, read_event};

const ALIVE_INTERVAL: Duration = Duration::from_secs(ALIVE_INTERVAL_S);
/// How long the log may lag behind the subscription before it is read again.
const LOG_LAG: Duration = Duration::from_millis(100);
/// How many reads of the log in a row may be of no use.
const MAX_LOG_READS: u32 = 50;
/// How long saying goodbye may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A read of the job's event log that is under way.
struct LogRead {
    inbox: Subject,
    batch: Batch,
    /// Of the batches before this one.
    events: Vec<Event>,
    /// Replies can be lost like any message.
    limit: Timer,
}

/// A published job and what is known of it.
pub(super) struct Exchange {
    connection: Connection,
    endpoint: Endpoint,
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
    /// When to try again to close a gap, and how many reads have been of no use.
    log_retry: Option<Timer>,
    log_reads: u32,
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
        let fail = |error: &BusError| {
            log(&context, error);
            ApiError::from(error)
        };
        if let Some(connection) = bus::idle(endpoint) {
            match Self::publish(connection, endpoint, job, limits, deadline_ns).await? {
                Ok(exchange) => return Ok(exchange),
                // The connection may have died while it waited. The job's id makes a second
                // publication of the same job harmless.
                Err(BusError::Closed | BusError::Refused(_)) => {}
                Err(error) => return Err(fail(&error)),
            }
        }
        let connection = Connection::open(endpoint).await.map_err(|error| fail(&error))?;
        let published = Self::publish(connection, endpoint, job, limits, deadline_ns).await?;
        published.map_err(|error| fail(&error))
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
        let connection = Connection::open(endpoint).await.map_err(fail)?;
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
        Ok(Self {
            connection,
            endpoint: endpoint.clone(),
            context: format!("job {}", job.id),
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
            log_retry: None,
            log_reads: 0,
        })
    }

    async fn publish(
        connection: Connection,
        endpoint: &Endpoint,
        job: &Job,
        limits: Limits,
        deadline_ns: u64,
    ) -> Result<Result<Self, BusError>, ApiError> {
        let message = job::message(job, connection.max_payload())?;
        let listening = Self::listen(connection, endpoint, job, limits, deadline_ns);
        let published = listening.and_then(|mut exchange| {
            exchange.queue(message)?;
            Ok(exchange)
        });
        let mut exchange = match published {
            Ok(exchange) => exchange,
            Err(error) => return Ok(Err(error)),
        };
        let stored = within(REPLY_TIMEOUT, poll_fn(|cx| exchange.poll_stored(cx))).await;
        match stored {
            Some(Ok(Ok(()))) => Ok(Ok(exchange)),
            Some(Ok(Err(error))) => {
                log(&exchange.context, &error);
                exchange.release();
                Err(ApiError::from(&error))
            }
            Some(Err(error)) => Ok(Err(error)),
            None => {
                exchange.stop().await;
                Ok(Err(BusError::Timeout("publishing a job")))
            }
        }
    }

    fn queue(&mut self, message: MessageBase) -> Result<(), BusError> {
        let inbox = self.connection.new_inbox()?;
        self.connection.publish(MessageBase { reply_subject: Some(inbox.clone()), ..message });
        self.acknowledgement = Some(inbox);
        Ok(())
    }

    /// Waits for the acknowledgement; the first events may come before it.
    fn poll_stored(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<(), jetstream::PublishError>, BusError>> {
        loop {
            match self.connection.poll_message(cx) {
                Poll::Ready(Ok(message)) if self.acknowledgement.as_ref() == Some(&message.base.subject) => {
                    self.acknowledgement = None;
                    return Poll::Ready(Ok(jetstream::read_ack(&message)));
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
            if self.alive.poll(cx).is_ready() {
                self.alive = Timer::after(ALIVE_INTERVAL);
                if !self.goes_on {
                    self.send_control(Control::Alive);
                }
                // Should the last events have been lost, nothing would tell: look after a silence.
                if !std::mem::take(&mut self.heard) && self.log_read.is_none() {
                    self.read_log(1)?;
                }
                continue;
            }
            if self.log_retry.as_mut().is_some_and(|retry| retry.poll(cx).is_ready()) {
                self.log_retry = None;
                self.read_log(1)?;
                continue;
            }
            if self.log_read.as_mut().is_some_and(|read| read.limit.poll(cx).is_ready()) {
                self.log_read = None;
                self.count_log_read("the event log could not be read in time")?;
                self.read_log(1)?;
                continue;
            }
            match self.connection.poll_message(cx) {
                Poll::Ready(Ok(message)) => self.on_message(message)?,
                Poll::Ready(Err(error)) => {
                    log(&self.context, &error);
                    return Poll::Ready(Err(ApiError::from(&error)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn on_message(&mut self, message: ServerMessage) -> Result<(), ApiError> {
        if message.subscription_id == self.subscription {
            self.heard = true;
            let outputs = read_event(&message.base.payload).and_then(|event| self.relay.on_event(event));
            self.tell(outputs)?;
            if self.relay.has_gap() && self.log_read.is_none() && self.log_retry.is_none() {
                self.read_log(1)?;
            }
            return Ok(());
        }
        if self.acknowledgement.as_ref() == Some(&message.base.subject) {
            self.acknowledgement = None;
            return jetstream::read_ack(&message).map_err(|error| {
                log(&self.context, &error);
                ApiError::from(&error)
            });
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
        self.outputs.extend(outputs.into_iter().map(Ok));
        Ok(())
    }

    fn faulty(&self, fault: &Fault) -> ApiError {
        log(&self.context, fault);
        ApiError::from(fault)
    }

    /// Asks for the event log from stream sequence `from` on.
    fn read_log(&mut self, from: u64) -> Result<(), ApiError> {
        let request = self.connection.new_inbox().and_then(|inbox| {
            let target = direct_get_subject(self.stream)?;
            let payload = jetstream::next_by_subject(self.events.as_str(), from);
            self.connection.request(target, Some(inbox.clone()), payload);
            Ok(inbox)
        });
        let inbox = request.map_err(|error| {
            log(&self.context, &error);
            ApiError::from(&error)
        })?;
        let events = self.log_read.take().map(|read| read.events).unwrap_or_default();
        self.log_read =
            Some(LogRead { inbox, batch: Batch::default(), events, limit: Timer::after(REPLY_TIMEOUT) });
        Ok(())
    }

    fn on_stored(&mut self, mut read: LogRead, message: ServerMessage) -> Result<(), ApiError> {
        let progress = read.batch.push(message).map_err(|error| {
            log(&self.context, &error);
            jetstream::bus_unavailable()
        })?;
        if progress == Progress::Pending {
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
        if let Some(message) = self.unpublished.take().filter(|_| read.events.is_empty()) {
            self.queue(message).map_err(|error| {
                log(&self.context, &error);
                ApiError::from(&error)
            })?;
        }
        let outputs = self.relay.rebuild(&read.events);
        self.tell(outputs)?;
        if !self.relay.has_gap() {
            self.log_reads = 0;
            return Ok(());
        }
        self.count_log_read("events are missing from the log")?;
        self.log_retry = Some(Timer::after(LOG_LAG));
        Ok(())
    }

    /// Counts a read that was of no use, for `reason`; one too many is an error.
    fn count_log_read(&mut self, reason: &str) -> Result<(), ApiError> {
        self.log_reads = self.log_reads.saturating_add(1);
        if self.log_reads > MAX_LOG_READS {
            log(&self.context, reason);
            return Err(ApiError::new(ErrorCode::WorkerFailed, "Parts of the answer were lost. Try again."));
        }
        Ok(())
    }

    /// Steers the worker.
    pub(super) fn send_control(&mut self, control: Control) {
        let payload = serde_json::to_vec(&control).unwrap_or_default();
        self.connection.request(self.control.clone(), None, payload);
    }

    /// Ends the exchange of a job that has ended.
    pub(super) fn release(mut self) {
        self.connection.unsubscribe(self.subscription);
        bus::give_back(&self.endpoint, self.connection);
    }

    /// Ends the exchange of a job whose answer nobody waits for here: the worker frees its slot,
    /// unless the job goes on though nobody listens.
    pub(super) async fn cancel(self) {
        if self.goes_on { self.release() } else { self.stop().await }
    }

    /// Ends the exchange and the job.
    pub(super) async fn stop(mut self) {
        self.send_control(Control::Cancel);
        let sent = within(CANCEL_TIMEOUT, self.connection.flush()).await;
        if !matches!(sent, Some(Ok(()))) {
            log(&self.context, "the worker could not be told to stop; it will notice the silence");
        }
    }
}
