//! What a client sees of a worker's death.
//!
//! Streams begin while there is one worker. Then another is started, and the first is killed: so each of the streams
//! was on the killed one. That is repeated, with the worker that is left.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::load::{Generator, WatchedStream};
use super::system::System;

/// Tokens of each stream: more than come before it is closed.
const TOKENS: u64 = 10_000;
/// Streams at once.
pub(crate) const STREAMS: usize = 32;
/// Events of each stream before the worker is killed.
const EVENTS_BEFORE: usize = 10;
/// Events of each stream after the kill, by which it goes on. Fewer may have been on their way.
const EVENTS_AFTER: usize = 25;
/// How long the streams may take to begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream that is silent for so long after the kill is lost.
const SILENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What became of the streams of all kills.
#[derive(Debug, Default)]
pub(crate) struct Takeover {
    pub(crate) kills: usize,
    /// Streams that were on a killed worker.
    pub(crate) streams: usize,
    /// Those that ended or stayed silent.
    pub(crate) lost: usize,
    /// The longest time between two events of each other stream, from the kill on.
    pub(crate) gaps: Vec<Duration>,
    /// Why the first stream was lost.
    pub(crate) reason: Option<String>,
}

/// Kills a worker `kills` times.
pub(crate) async fn measure(
    system: &mut impl System,
    generator: &Generator,
    kills: usize,
) -> anyhow::Result<Takeover> {
    let mut takeover = Takeover::default();
    let mut alive = 1;
    for _ in 0..kills {
        // Dropping the set closes the connections.
        let (streams, _connections) = generator.watch(system.target(), STREAMS, TOKENS);
        let began = Instant::now();
        let has_begun = |stream: &WatchedStream| stream.events_since(began) >= EVENTS_BEFORE;
        wait_until(&streams, BEGIN_TIMEOUT, has_begun).await;
        if let Some(reason) = streams.iter().find_map(WatchedStream::end) {
            anyhow::bail!("a stream ended before the worker was killed: {reason}");
        }
        ensure!(
            streams.iter().all(has_begun),
            "the streams did not begin within {} s",
            BEGIN_TIMEOUT.as_secs()
        );
        let next = 3 - alive;
        system.start_worker(next).await?;
        let killed = Instant::now();
        system.kill_worker(alive).await;
        let goes_on = |stream: &WatchedStream| stream.events_since(killed) >= EVENTS_AFTER;
        wait_until(&streams, SILENCE, goes_on).await;
        takeover.kills += 1;
        takeover.streams += streams.len();
        for stream in &streams {
            match stream.longest_gap_since(killed) {
                Some(gap) if goes_on(stream) => takeover.gaps.push(gap),
                _ => {
                    takeover.lost += 1;
                    let reason =
                        || stream.end().unwrap_or_else(|| format!("silent for {} s", SILENCE.as_secs()));
                    takeover.reason.get_or_insert_with(reason);
                }
            }
        }
        alive = next;
    }
    Ok(takeover)
}

/// Waits until each stream is as wanted or has ended.
async fn wait_until(streams: &[WatchedStream], timeout: Duration, wanted: impl Fn(&WatchedStream) -> bool) {
    let began = Instant::now();
    while began.elapsed() < timeout && !streams.iter().all(|stream| wanted(stream) || stream.end().is_some())
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
