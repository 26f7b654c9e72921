//! Counts the events of a chat stream without reading their JSON, which would cost more than receiving them.

use std::time::{Duration, Instant};

use memchr::memmem;

/// How each event begins; a line break comes before every one but the first.
const EVENT: &[u8] = b"\ndata:";
const CONTENT: &[u8] = b"\"content\":";
const COMPLETION_TOKENS: &[u8] = b"\"completion_tokens\":";
/// How much of the end of a stream is kept at least; the usage and `[DONE]` are in it.
const TAIL: usize = 2048;
/// How much of it an error shows.
const SHOWN: usize = 500;

/// What has been received of one stream.
#[derive(Debug)]
pub(crate) struct EventCounter {
    sent: Instant,
    /// From sending the request to the first byte of the body.
    pub(crate) first_byte: Option<Duration>,
    /// From sending the request to the first event with text.
    pub(crate) first_text: Option<Duration>,
    /// Events, those without text and `[DONE]` included.
    pub(crate) events: u64,
    /// The end of what has been received.
    tail: Vec<u8>,
}

/// Why a stream is not a complete answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the stream broke off after {events} events: {tail}")]
    NotDone { events: u64, tail: String },
    #[error("the stream has no text")]
    NoText,
    #[error("{expected} tokens were asked for, and these are not so many: {tail}")]
    Tokens { expected: u64, tail: String },
}

impl EventCounter {
    /// A stream whose request was sent at `sent`.
    pub(crate) fn new(sent: Instant) -> Self {
        Self { sent, first_byte: None, first_text: None, events: 0, tail: b"\n".to_vec() }
    }

    /// Reads a part of the body; how many events began in it.
    pub(crate) fn read(&mut self, part: &[u8]) -> u64 {
        self.first_byte.get_or_insert_with(|| self.sent.elapsed());
        // An event's beginning may lie in two parts.
        let from = self.tail.len().saturating_sub(EVENT.len() - 1);
        self.tail.extend_from_slice(part);
        let new = self.tail.get(from..).unwrap_or_default();
        let events = memmem::find_iter(new, EVENT).count() as u64;
        self.events += events;
        if self.first_text.is_none() && has_text(&self.tail) {
            self.first_text = Some(self.sent.elapsed());
        }
        if self.tail.len() > 8 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
        events
    }

    /// Checks that the stream is complete and its usage says `tokens`.
    pub(crate) fn check(&self, tokens: u64) -> Result<(), StreamError> {
        let tail = || {
            let last = self.tail.get(self.tail.len().saturating_sub(SHOWN)..).unwrap_or_default();
            String::from_utf8_lossy(last).trim().to_owned()
        };
        if !self.is_done() {
            return Err(StreamError::NotDone { events: self.events, tail: tail() });
        }
        if self.first_text.is_none() {
            return Err(StreamError::NoText);
        }
        if completion_tokens(&self.tail) == Some(tokens) {
            return Ok(());
        }
        Err(StreamError::Tokens { expected: tokens, tail: tail() })
    }

    fn is_done(&self) -> bool {
        self.tail.trim_ascii_end().ends_with(b"data: [DONE]")
    }
}

/// Whether some `"content"` in the JSON is a text that is not empty.
fn has_text(json: &[u8]) -> bool {
    memmem::find_iter(json, CONTENT).any(|at| {
        let value = json.get(at + CONTENT.len()..).unwrap_or_default().trim_ascii_start();
        matches!(value, [b'"', first, ..] if *first != b'"')
    })
}

/// The last `"completion_tokens"` in the JSON.
pub(crate) fn completion_tokens(json: &[u8]) -> Option<u64> {
    let at = memmem::rfind(json, COMPLETION_TOKENS)?;
    let value = json.get(at + COMPLETION_TOKENS.len()..)?.trim_ascii_start();
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(value.get(..digits)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\" data:\"}}]}\n\n: a comment\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\" b\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

    fn read(parts: &[&str]) -> EventCounter {
        let mut counter = EventCounter::new(Instant::now());
        let counted: u64 = parts.iter().map(|part| counter.read(part.as_bytes())).sum();
        assert_eq!(counted, counter.events);
        counter
    }

    proptest! {
        #[test]
        fn events_are_counted_wherever_they_are_split(at in 0..STREAM.len()) {
            let counter = read(&[&STREAM[..at], &STREAM[at..]]);
            prop_assert_eq!(counter.events, 5);
            prop_assert_eq!(counter.check(2), Ok(()));
        }
    }

    #[test]
    fn a_long_stream_is_counted_to_its_end() {
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\" b\"}}]}\n\n";
        let mut parts = vec![event; 1000];
        parts.push("data: {\"usage\":{\"completion_tokens\": 1000}}\n\ndata: [DONE]\n\n");
        let counter = read(&parts);
        assert_eq!((counter.events, counter.check(1000)), (1002, Ok(())));
        assert!(counter.tail.len() <= 8 * TAIL);
    }

    #[test]
    fn the_first_text_is_not_the_first_byte() {
        let beginning = STREAM.split_inclusive("\n\n").collect::<Vec<_>>();
        let counter = read(&beginning[..1]);
        assert!(counter.first_byte.is_some() && counter.first_text.is_none());
        assert!(read(&beginning[..2]).first_text.is_some());
    }

    #[test]
    fn an_answer_that_is_not_the_wanted_one_is_an_error() {
        let (broken, _) = STREAM.rsplit_once("data:").unwrap();
        assert!(matches!(read(&[broken]).check(2), Err(StreamError::NotDone { events: 4, .. })));
        let error = read(&[STREAM]).check(3).unwrap_err();
        assert!(
            matches!(&error, StreamError::Tokens { expected: 3, tail } if tail.contains("\"completion_tokens\":2"))
        );
        let empty = "data: {\"delta\":{\"content\":null},\"completion_tokens\":0}\n\ndata: [DONE]\n\n";
        assert_eq!(read(&[empty]).check(0), Err(StreamError::NoText));
    }
}
