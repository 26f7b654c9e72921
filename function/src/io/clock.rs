//! Time and chance.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};
use spin_sdk::wasip3::random::random;

/// Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    let now = system_clock::now();
    let seconds = u64::try_from(now.seconds).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::from(now.nanoseconds).div_euclid(1_000_000))
}

/// Nanoseconds of a clock that never goes back.
pub(super) fn monotonic_ns() -> u64 {
    monotonic_clock::now()
}

/// 64 random bits, fit for secrets.
pub(super) fn random_u64() -> u64 {
    random::get_random_u64()
}

/// 128 random bits, fit for secrets.
pub(super) fn random_u128() -> u128 {
    (u128::from(random_u64()) << 64) | u128::from(random_u64())
}

/// Waits for `future` no longer than `limit`.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select(pin!(future), pin!(spin_sdk::time::sleep(limit))).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

/// Waits for `future` until [`monotonic_ns`] has come to `at_ns`.
pub(super) async fn until<T>(at_ns: u64, future: impl Future<Output = T>) -> Option<T> {
    within(Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())), future).await
}

/// [`monotonic_ns`] after a while.
pub(super) fn after(ns: u64, wait: Duration) -> u64 {
    ns.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

/// A wait that can be polled again and again without beginning anew.
pub(super) struct Timer(Option<Pin<Box<dyn Future<Output = ()>>>>);

impl Timer {
    /// A timer that fires once, after `wait`.
    pub(super) fn after(wait: Duration) -> Self {
        Self(Some(Box::pin(spin_sdk::time::sleep(wait))))
    }

    /// A timer that fires once, when [`monotonic_ns`] has come to `at_ns`.
    pub(super) fn at(at_ns: u64) -> Self {
        Self::after(Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())))
    }

    /// Ready once the wait is over, and from then on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wait) = &mut self.0 else { return Poll::Ready(()) };
        let state = wait.as_mut().poll(cx);
        if state.is_ready() {
            self.0 = None;
        }
        state
    }
}
