//! What a stream of server-sent events has brought.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A stream, as far as it has been read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// The JSON of each `data:` line, `[DONE]` left out.
    pub chunks: Vec<Value>,
    /// How often a comment kept the line open.
    pub comments: usize,
    /// Whether `data: [DONE]` ended it.
    pub done: bool,
    /// Bytes of an event that has not come whole.
    pending: Vec<u8>,
}

impl Transcript {
    /// Takes what the network brings, cut as it likes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.windows(2).position(|w| w == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            self.take(std::str::from_utf8(&event)?)?;
        }
        Ok(())
    }

    /// Takes the stream's end, which must not be within an event.
    pub fn end(&self) -> Result<()> {
        let pending = String::from_utf8_lossy(&self.pending);
        ensure!(pending.is_empty(), "the stream ends within an event: {pending:?}");
        Ok(())
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
        } else if let Some((name, json)) =
            event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: "))
        {
            let chunk: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
            ensure!(chunk["type"] == name, "the event {name} says another type: {json}");
            self.chunks.push(chunk);
        } else {
            bail!("not an event: {event:?}");
        }
        Ok(())
    }

    /// What the chunks bring for one choice, in order.
    pub fn choice(&self, index: u64) -> impl Iterator<Item = &Value> {
        let choices = self.chunks.iter().filter_map(|chunk| chunk["choices"].as_array()).flatten();
        choices.filter(move |choice| choice["index"] == index)
    }

    /// All content of choice 0, joined.
    pub fn text(&self) -> String {
        self.text_of(0)
    }

    /// All content of one choice, joined.
    pub fn text_of(&self, index: u64) -> String {
        self.choice(index).filter_map(|choice| choice["delta"]["content"].as_str()).collect()
    }

    /// The log-probabilities of one choice's tokens, joined.
    pub fn logprobs_of(&self, index: u64) -> Vec<Value> {
        let tokens = self.choice(index).filter_map(|choice| choice["logprobs"]["content"].as_array());
        tokens.flatten().cloned().collect()
    }

    /// The finish reason of choice 0.
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish_reason_of(0)
    }

    /// The finish reason of one choice.
    pub fn finish_reason_of(&self, index: u64) -> Option<&str> {
        self.choice(index).find_map(|choice| choice["finish_reason"].as_str())
    }

    /// The deltas of a response's text, joined.
    pub fn output_text(&self) -> String {
        let is_text = |chunk: &&Value| chunk["type"] == "response.output_text.delta";
        self.chunks.iter().filter(is_text).filter_map(|chunk| chunk["delta"].as_str()).collect()
    }

    /// The error that ended the stream, if one did.
    pub fn error(&self) -> Option<&Value> {
        self.chunks.iter().find_map(|c| c.get("error"))
    }
}
