//! Waiting for what must happen. The limit is there for what hangs; no test measures time with it.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long any single event may take before a test gives up.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// The pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Awaits `future`, and fails with `expected` if it is not ready within [`TIMEOUT`].
pub async fn within<T>(expected: impl Display, future: impl Future<Output = Result<T>>) -> Result<T> {
    let ready = tokio::time::timeout(TIMEOUT, future).await;
    ready.with_context(|| format!("not within {} s: {expected}", TIMEOUT.as_secs()))?
}

/// Evaluates `condition` until it is true, and fails with `expected` if that takes longer than [`TIMEOUT`].
pub async fn until(expected: impl Display, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let holds = async {
        while !condition().await? {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    };
    within(expected, holds).await
}
