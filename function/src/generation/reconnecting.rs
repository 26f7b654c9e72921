//! A connection that is made again when it is lost.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use watermelon_proto::ServerMessage;

use crate::nats::bus::Bus;
use crate::nats::connection::{BusError, Connection};
use crate::platform::{add_ns, report};

/// How long no server may accept a connection and send something before that is an error.
const RECONNECT_TIME: Duration = Duration::from_secs(30);
/// Pauses before connecting again: the first one, and the longest. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, BusError>>>>;

enum LinkState {
    Connected(Connection),
    Connecting(Connecting),
}

/// What a [`Reconnecting`] connection brings.
pub(super) enum ConnectionEvent {
    /// A message.
    Message(ServerMessage),
    /// There is a new connection, without subscriptions. Messages may have been missed.
    Reconnected,
}

/// A connection that is made again when it is lost.
pub(super) struct Reconnecting {
    bus: Bus,
    /// Names its owner in the log.
    context: String,
    state: LinkState,
    /// When a connection was lost after which no message has come.
    lost_ns: Option<u64>,
    pause: Duration,
    /// When the last message came.
    heard_ns: u64,
}

impl Reconnecting {
    /// Begins with a connection that works.
    pub(super) fn new(connection: Connection, bus: &Bus, context: &str) -> Self {
        Self {
            bus: bus.clone(),
            context: context.to_owned(),
            state: LinkState::Connected(connection),
            lost_ns: None,
            pause: FIRST_PAUSE,
            heard_ns: bus.host().monotonic_ns(),
        }
    }

    /// The connection, unless it is lost.
    pub(super) fn connected(&mut self) -> Option<&mut Connection> {
        match &mut self.state {
            LinkState::Connected(connection) => Some(connection),
            LinkState::Connecting(_) => None,
        }
    }

    /// Whether a message has come since then.
    pub(super) fn has_heard_since(&self, then_ns: u64) -> bool {
        self.heard_ns > then_ns
    }

    /// Gives the connection up because of `error`, and begins to connect again.
    pub(super) fn on_connection_lost(&mut self, error: &BusError) {
        report(&self.context, format_args!("{error}; connecting again"));
        let now_ns = self.bus.host().monotonic_ns();
        self.lost_ns.get_or_insert(now_ns);
        let (bus, pause) = (self.bus.clone(), self.pause);
        self.pause = pause.saturating_mul(2).min(LAST_PAUSE);
        self.state = LinkState::Connecting(Box::pin(async move {
            bus.host().sleep(pause).await;
            bus.connect().await
        }));
    }

    /// The next message or connection; stopping to poll loses nothing. An error is the end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<ConnectionEvent, BusError>> {
        loop {
            let error = match &mut self.state {
                LinkState::Connected(connection) => match connection.poll_message(cx) {
                    Poll::Ready(Ok(message)) => {
                        (self.lost_ns, self.pause) = (None, FIRST_PAUSE);
                        self.heard_ns = self.bus.host().monotonic_ns();
                        return Poll::Ready(Ok(ConnectionEvent::Message(message)));
                    }
                    Poll::Ready(Err(error)) => error,
                    Poll::Pending => return Poll::Pending,
                },
                LinkState::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                    Poll::Ready(Ok(connection)) => {
                        self.state = LinkState::Connected(connection);
                        return Poll::Ready(Ok(ConnectionEvent::Reconnected));
                    }
                    Poll::Ready(Err(error)) => error,
                    Poll::Pending => return Poll::Pending,
                },
            };
            let now_ns = self.bus.host().monotonic_ns();
            if self.lost_ns.is_some_and(|lost_ns| now_ns > add_ns(lost_ns, RECONNECT_TIME)) {
                return Poll::Ready(Err(error));
            }
            self.on_connection_lost(&error);
        }
    }

    /// The connection, or a new one if there is none; for a last message.
    pub(super) async fn into_connection(self) -> Result<Connection, BusError> {
        match self.state {
            LinkState::Connected(connection) => Ok(connection),
            LinkState::Connecting(_) => self.bus.connect_unless_resting().await,
        }
    }

    /// Keeps the connection for other requests.
    pub(super) fn release(self) {
        if let LinkState::Connected(connection) = self.state {
            self.bus.give_back(connection);
        }
    }
}
