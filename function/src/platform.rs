//! What the function needs of the host that it runs on: settings, clocks, randomness, connections and tasks.
//!
//! [`crate::wasi`] implements [`Platform`] for Spin; the tests implement it with tokio. Everything else is the
//! same on both. Tasks of one instance can't wake each other on Spin, so nothing here waits for another
//! request; what requests share is plain data ([`crate::instance`]).

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, LocalBoxFuture, select};

use crate::nats::address::ServerUrl;

/// The other end of a byte stream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// Bytes in both directions. To stop polling and to poll again later loses nothing.
pub trait ByteStream {
    /// Sends `unsent`; ready when all of it was handed over.
    fn poll_flush(&mut self, cx: &mut Context<'_>, unsent: &mut Vec<u8>) -> Poll<Result<(), Closed>>;

    /// Passes the next received bytes to `sink`.
    fn poll_read(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<Result<(), Closed>>;

    /// Makes the stream ready to move to another task. Bytes that had arrived go to `sink`.
    fn park(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed>;
}

/// The body of a response while it is written. Dropping it ends the body.
pub trait BodySink {
    /// Ready when nothing is being written any more; then begins to write what `next` gives, until that is
    /// nothing.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        next: &mut dyn FnMut() -> Option<Vec<u8>>,
    ) -> Poll<Result<(), Closed>>;
}

/// The host.
pub trait Platform {
    /// The value of a setting ([`crate::config::VARIABLES`]).
    fn variable(&self, name: &'static str) -> LocalBoxFuture<'static, Result<String, String>>;

    /// Opens a TCP connection, without a limit of time.
    fn connect(&self, address: SocketAddr) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>>;

    /// The addresses of a name. Not every host looks names up.
    fn look_up(&self, name: String) -> LocalBoxFuture<'static, Result<Vec<IpAddr>, String>>;

    /// Sends an HTTP request to an edge, whose body and the response's are the two directions of the stream. Ready
    /// when the response has begun, without a limit of time.
    fn exchange(&self, edge: ServerUrl) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>>;

    /// Unix milliseconds.
    fn unix_ms(&self) -> u64;

    /// Nanoseconds of a clock that never goes back.
    fn monotonic_ns(&self) -> u64;

    /// Ends after `wait`.
    fn sleep(&self, wait: Duration) -> LocalBoxFuture<'static, ()>;

    /// 64 random bits, fit for secrets.
    fn random_u64(&self) -> u64;

    /// Runs `task` though nobody waits for it.
    fn spawn(&self, task: LocalBoxFuture<'static, ()>);
}

/// A shared handle to the host.
pub type Host = Rc<dyn Platform>;

impl dyn Platform {
    /// 128 random bits, fit for secrets.
    pub fn random_u128(&self) -> u128 {
        (u128::from(self.random_u64()) << 64) | u128::from(self.random_u64())
    }

    /// Waits for `future` no longer than `limit`.
    pub async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        match select(pin!(future), self.sleep(limit)).await {
            Either::Left((value, _)) => Some(value),
            Either::Right(_) => None,
        }
    }

    /// Waits for `future` until [`Platform::monotonic_ns`] has come to `at_ns`.
    pub async fn until<T>(&self, at_ns: u64, future: impl Future<Output = T>) -> Option<T> {
        self.within(self.left_until(at_ns), future).await
    }

    /// [`Platform::monotonic_ns`] after a while.
    pub fn after(&self, wait: Duration) -> u64 {
        add_ns(self.monotonic_ns(), wait)
    }

    /// How long it takes until [`Platform::monotonic_ns`] comes to `at_ns`; zero if it has.
    pub fn left_until(&self, at_ns: u64) -> Duration {
        Duration::from_nanos(at_ns.saturating_sub(self.monotonic_ns()))
    }

    /// A timer that fires once, after `wait`.
    pub fn timer(&self, wait: Duration) -> Timer {
        Timer(Some(self.sleep(wait)))
    }
}

/// `ns` nanoseconds, and `wait`.
pub fn add_ns(ns: u64, wait: Duration) -> u64 {
    ns.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

/// A wait that can be polled again and again without beginning anew.
pub struct Timer(Option<Pin<Box<dyn Future<Output = ()>>>>);

impl Timer {
    /// Ready once the wait is over, and from then on.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wait) = &mut self.0 else { return Poll::Ready(()) };
        let state = wait.as_mut().poll(cx);
        if state.is_ready() {
            self.0 = None;
        }
        state
    }
}

/// Writes to standard error, which Spin keeps as the component's log.
pub fn report(context: &str, reason: impl std::fmt::Display) {
    eprintln!("emberline-function: {context}: {reason}");
}
