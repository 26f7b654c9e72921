//! What the first request of a fresh instance costs: hosts end idle instances, and their connections with them.
//!
//! Each request waits until nats-server has no connection of the function. So it makes the host create an instance,
//! and that instance connect: with TLS, by a whole handshake. The processes are the same all the time, and so is the
//! component that the host has compiled.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::emberline::Emberline;
use super::load::Generator;
use super::system::System;

/// How long an instance may take to end.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Tokens of each stream.
const TOKENS: u64 = 1;
/// Rare, since nats-server shares the machine with what is measured.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// First bytes of `count` streams, each from an instance of its own.
pub(crate) async fn measure(
    system: &Emberline<'_>,
    generator: &Generator,
    count: usize,
) -> anyhow::Result<Vec<Duration>> {
    let mut first_bytes = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        while !system.function_connections().await?.is_empty() {
            ensure!(
                began.elapsed() < IDLE_TIMEOUT,
                "the function stays connected, and its host never ends it"
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        first_bytes.extend(generator.streams(system.target(), 1, TOKENS, Duration::ZERO).await?.first_bytes);
    }
    Ok(first_bytes)
}
