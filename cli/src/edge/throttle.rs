//! A limit on bytes per second that several connections share.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets bytes pass at a rate, in the order in which they come.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_s: u64,
    /// When the bytes that were let through so far have passed.
    free_at: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until it is the turn of `bytes` more bytes.
    pub(super) async fn pass(&self, bytes: usize) {
        sleep_until(self.turn(bytes)).await;
    }

    fn turn(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*free_at).max(Instant::now());
        *free_at = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_whoever_sends_them() {
        let throttle = Throttle::new(1000);
        let began = Instant::now();
        // What was not used before is not saved up.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let both = async { tokio::join!(throttle.pass(500), throttle.pass(500)) };
        both.await;
        throttle.pass(1).await;
        assert_eq!(began.elapsed().as_millis(), 11_000);
    }
}
