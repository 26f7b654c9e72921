//! A connection that is made again when it is lost.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use watermelon_proto::ServerMessage;

use crate::config::Endpoint;
use crate::io::clock::{after, monotonic_ns};
use crate::io::connection::{BusError, Connection};
use crate::io::{bus, log};

/// How long there may be no server that lets us in and speaks.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pauses before connecting again: the first one, and the longest. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, BusError>>>>;

enum State {
    Up(Connection),
    Down(Connecting),
}

/// What a [`Link`] tells.
pub(super) enum News {
    /// A message has come.
    Message(ServerMessage),
    /// There is a new connection, without subscriptions. Messages may have been missed.
    Renewed,
}

/// A connection that is made again when it is lost.
pub(super) struct Link {
    endpoint: Endpoint,
    /// Names its owner in the log.
    context: String,
    state: State,
    /// When a connection was lost after which no message has come.
    lost_ns: Option<u64>,
    pause: Duration,
    /// When the last message came.
    heard_ns: u64,
}

impl Link {
    /// Begins with a connection that works.
    pub(super) fn new(connection: Connection, endpoint: &Endpoint, context: &str) -> Self {
        Self {
            endpoint: endpoint.clone(),
            context: context.to_owned(),
            state: State::Up(connection),
            lost_ns: None,
            pause: FIRST_PAUSE,
            heard_ns: monotonic_ns(),
        }
    }

    /// The connection, unless it is lost.
    pub(super) fn up(&mut self) -> Option<&mut Connection> {
        match &mut self.state {
            State::Up(connection) => Some(connection),
            State::Down(_) => None,
        }
    }

    /// Whether a message has come since then.
    pub(super) fn has_heard_since(&self, then_ns: u64) -> bool {
        self.heard_ns > then_ns
    }

    /// Gives the connection up, because of `error`, for another one.
    pub(super) fn lose(&mut self, error: &BusError) {
        log(&self.context, format_args!("{error}; connecting again"));
        self.lost_ns.get_or_insert_with(monotonic_ns);
        let (endpoint, pause) = (self.endpoint.clone(), self.pause);
        self.pause = pause.saturating_mul(2).min(LAST_PAUSE);
        self.state = State::Down(Box::pin(async move {
            spin_sdk::time::sleep(pause).await;
            bus::connect(&endpoint).await
        }));
    }

    /// The next message or connection; stopping to poll loses nothing. An error is the end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<News, BusError>> {
        loop {
            let error = match &mut self.state {
                State::Up(connection) => match connection.poll_message(cx) {
                    Poll::Ready(Ok(message)) => {
                        (self.lost_ns, self.pause) = (None, FIRST_PAUSE);
                        self.heard_ns = monotonic_ns();
                        return Poll::Ready(Ok(News::Message(message)));
                    }
                    Poll::Ready(Err(error)) => error,
                    Poll::Pending => return Poll::Pending,
                },
                State::Down(connecting) => match connecting.as_mut().poll(cx) {
                    Poll::Ready(Ok(connection)) => {
                        self.state = State::Up(connection);
                        return Poll::Ready(Ok(News::Renewed));
                    }
                    Poll::Ready(Err(error)) => error,
                    Poll::Pending => return Poll::Pending,
                },
            };
            if self.lost_ns.is_some_and(|lost_ns| monotonic_ns() > after(lost_ns, PATIENCE)) {
                return Poll::Ready(Err(error));
            }
            self.lose(&error);
        }
    }

    /// The connection, or a new one if there is none; for a last word.
    pub(super) async fn into_connection(self) -> Result<Connection, BusError> {
        match self.state {
            State::Up(connection) => Ok(connection),
            State::Down(_) => bus::connect_unless_resting(&self.endpoint).await,
        }
    }

    /// Keeps the connection for other requests.
    pub(super) fn release(self) {
        if let State::Up(connection) = self.state {
            bus::give_back(&self.endpoint, connection);
        }
    }
}
