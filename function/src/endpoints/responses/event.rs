//! One event of a response's stream.

use bytes::Bytes;
use emberline_api::responses::TextLogprob;
use serde_json::{Map, Value, json};

/// An event with its sequence number.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub(super) number: u64,
    kind: &'static str,
    fields: Map<String, Value>,
    /// Text that it adds; its last byte has the event's number.
    pub(super) delta: Option<String>,
    /// Of the tokens of a text's delta.
    logprobs: Option<Vec<TextLogprob>>,
}

impl Event {
    /// One that adds no text.
    pub(super) fn new(number: u64, kind: &'static str, fields: Value) -> Self {
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        Self { number, kind, fields, delta: None, logprobs: None }
    }

    /// One that adds text, which is not empty.
    pub(super) fn with_delta(
        number: u64,
        kind: &'static str,
        fields: Map<String, Value>,
        delta: String,
        logprobs: Option<Vec<TextLogprob>>,
    ) -> Self {
        Self { number, kind, fields, delta: Some(delta), logprobs }
    }

    /// What of this event a client lacks that has everything up to the sequence number `received`.
    pub fn after(mut self, received: u64) -> Option<Self> {
        if self.number <= received {
            return None;
        }
        let Some(delta) = &mut self.delta else { return Some(self) };
        let missing = usize::try_from(self.number.saturating_sub(received)).unwrap_or(usize::MAX);
        let mut start = delta.len().saturating_sub(missing);
        // No event ends within a character: a client that claims so gets the whole character.
        while !delta.is_char_boundary(start) {
            start = start.saturating_sub(1);
        }
        *delta = delta.split_off(start);
        self.logprobs.iter_mut().for_each(|logprobs| drop_received(logprobs, start));
        Some(self)
    }

    /// The event as JSON.
    pub fn body(&self) -> Value {
        let mut body = self.fields.clone();
        body.insert("type".to_owned(), self.kind.into());
        body.insert("sequence_number".to_owned(), self.number.into());
        if let Some(delta) = &self.delta {
            body.insert("delta".to_owned(), delta.as_str().into());
        }
        if let Some(logprobs) = &self.logprobs {
            body.insert("logprobs".to_owned(), json!(logprobs));
        }
        Value::Object(body)
    }

    /// The event as a frame of a stream. JSON has no line ends: they are escaped within strings.
    pub fn frame(&self) -> Bytes {
        format!("event: {}\ndata: {}\n\n", self.kind, self.body()).into()
    }
}

/// Drops the tokens that end within the first `received` bytes.
fn drop_received(logprobs: &mut Vec<TextLogprob>, received: usize) {
    let mut end = 0_usize;
    logprobs.retain(|token| {
        end = end.saturating_add(token.text_bytes());
        end > received
    });
}
