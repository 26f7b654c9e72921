//! How much room is left for usage events.

use emberline_protocol::subject::USAGE_STREAM;
use serde_json::Value;

use crate::nats::access::NatsConnection;
use crate::nats::jetstream_api::{self, JetStreamError};

/// Warns if little room is left in `USAGE`: when it is full, no job ends.
pub(crate) async fn warn_if_nearly_full(client: &NatsConnection) -> Result<(), JetStreamError> {
    let stream = jetstream_api::find(client, &format!("STREAM.INFO.{USAGE_STREAM}")).await?;
    if let Some(percent) = stream.as_ref().and_then(nearly_full) {
        eprintln!(
            "warning: the stream {USAGE_STREAM} is {percent} % full; when it is full, no job ends. Export what is there \
             (`emberline usage export`), then remove what is old with `emberline nats setup --usage-age 90d`, or allow \
             more with `--usage-bytes 4GiB`"
        );
    }
    Ok(())
}

/// How full a stream is in percent, if that is four fifths or more.
fn nearly_full(stream: &Value) -> Option<u64> {
    Room::of(stream).map(|room| room.percent()).filter(|percent| *percent >= NEARLY_FULL)
}

/// From how many percent on a stream counts as nearly full.
pub(crate) const NEARLY_FULL: u64 = 80;

/// The space that a stream takes, out of what it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    pub(crate) most: u64,
}

impl Room {
    /// That of a stream as JetStream describes it; `None` if it may take any amount.
    pub(crate) fn of(stream: &Value) -> Option<Self> {
        let bytes = stream["state"]["bytes"].as_u64()?;
        // Unlimited is -1.
        let most = stream["config"]["max_bytes"].as_u64().filter(|most| *most > 0)?;
        Some(Self { bytes, most })
    }

    /// How full it is.
    pub(crate) fn percent(self) -> u64 {
        self.bytes.saturating_mul(100).checked_div(self.most).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stream_with_little_room_is_noticed() {
        let stream =
            |bytes: u64, most: i64| json!({"state": {"bytes": bytes}, "config": {"max_bytes": most}});
        for (stream, percent) in [
            (stream(799, 1000), None),
            (stream(800, 1000), Some(80)),
            (stream(1000, 1000), Some(100)),
            (stream(1000, -1), None),
            (json!({}), None),
        ] {
            assert_eq!(nearly_full(&stream), percent, "{stream}");
        }
    }
}
