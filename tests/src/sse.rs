//! Reading a stream of server-sent events as a client would.

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use serde_json::Value;

/// A whole stream, read to its end.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    /// The JSON of each `data:` line, `[DONE]` left out.
    pub chunks: Vec<Value>,
    /// How often a comment kept the line open.
    pub comments: usize,
    /// Whether `data: [DONE]` ended it.
    pub done: bool,
}

impl Transcript {
    /// Reads a response to its end; each line must be an event, a comment or empty.
    pub async fn read(response: reqwest::Response) -> Result<Self> {
        let mut transcript = Self::default();
        let (mut body, mut pending) = (response.bytes_stream(), Vec::new());
        while let Some(bytes) = body.next().await {
            pending.extend_from_slice(&bytes?);
            while let Some(end) = pending.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = pending.drain(..end + 2).collect();
                transcript.take(std::str::from_utf8(&event)?)?;
            }
        }
        ensure!(
            pending.is_empty(),
            "the stream ends within an event: {:?}",
            String::from_utf8_lossy(&pending)
        );
        Ok(transcript)
    }

    fn take(&mut self, event: &str) -> Result<()> {
        ensure!(!self.done, "an event after [DONE]: {event}");
        let event = event.trim_end_matches('\n');
        if event.starts_with(':') {
            self.comments += 1;
        } else if event == "data: [DONE]" {
            self.done = true;
        } else if let Some(json) = event.strip_prefix("data: ") {
            self.chunks.push(serde_json::from_str(json).with_context(|| json.to_owned())?);
        } else {
            bail!("not an event: {event:?}");
        }
        Ok(())
    }

    /// All content of choice 0, joined.
    pub fn text(&self) -> String {
        self.chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect()
    }

    /// The finish reason of choice 0.
    pub fn finish_reason(&self) -> Option<&str> {
        self.chunks.iter().find_map(|c| c["choices"][0]["finish_reason"].as_str())
    }

    /// The error that ended the stream, if one did.
    pub fn error(&self) -> Option<&Value> {
        self.chunks.iter().find_map(|c| c.get("error"))
    }
}
