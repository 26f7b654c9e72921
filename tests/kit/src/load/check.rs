//! Decides whether a client received its answer: everything once and in order, and one end.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::answer::{self, Answer, Choice};
use super::recording::Recording;

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Fault {
    #[error("refused with {status}: {body}")]
    Refused { status: u16, body: String },
    #[error("broken off: {0}")]
    Broken(String),
    #[error("not understood: {0}")]
    Garbled(String),
    #[error("failed: {0}")]
    Failed(String),
    #[error("the stream has no end")]
    NoEnd,
    #[error("after the end: {0}")]
    AfterEnd(String),
    #[error("choice {choice} ends twice")]
    FinishedTwice { choice: usize },
    #[error("choice {choice} goes on after its end")]
    AfterFinish { choice: usize },
    #[error("choice {choice} has no end")]
    Unfinished { choice: usize },
    #[error("choice {choice}: lost at {at}: {text:?}")]
    Lost { choice: usize, at: usize, text: String },
    #[error("choice {choice}: doubled at {at}: {text:?}")]
    Doubled { choice: usize, at: usize, text: String },
    #[error("choice {choice}: out of order at {at}: {text:?}")]
    Swapped { choice: usize, at: usize, text: String },
    #[error("choice {choice}: {found:?} at {at} instead of {expected:?}")]
    Changed { choice: usize, at: usize, expected: String, found: String },
    #[error("another {what}: {found} instead of {expected}")]
    Differs { what: &'static str, expected: String, found: String },
}

/// An answer without fault.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What it says.
    pub answer: Answer,
    /// Time to the first piece of a stream, or to the end of a whole answer.
    pub first: Duration,
    /// The longest time between two pieces of a stream.
    pub gap: Option<Gap>,
}

/// A time in which a stream brought nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// When the piece before it came.
    pub from: Instant,
    /// When the piece after it came.
    pub to: Instant,
}

impl Gap {
    /// How long it was.
    pub fn length(&self) -> Duration {
        self.to.duration_since(self.from)
    }
}

/// Checks a recording by itself and against the expected answer, if there is one.
pub fn check(recording: &Recording, expected: Option<&Answer>) -> Result<Checked, Fault> {
    if let Some(status) = recording.status
        && status != 200
    {
        return Err(Fault::Refused { status, body: text(&recording.body()) });
    }
    let checked = if recording.streamed { stream(recording, expected) } else { whole(recording) };
    // A stream that is broken off also lacks its end, which says less.
    let checked = match (&recording.broken, checked) {
        (Some(why), Ok(_) | Err(Fault::NoEnd)) => Err(Fault::Broken(why.clone())),
        (_, checked) => checked,
    }?;
    match expected {
        Some(expected) => same(&checked.answer, expected).map(|()| checked),
        None => Ok(checked),
    }
}

fn whole(recording: &Recording) -> Result<Checked, Fault> {
    if let Some(why) = &recording.broken {
        return Err(Fault::Broken(why.clone()));
    }
    let body = recording.body();
    let json: Value = serde_json::from_slice(&body).map_err(|_| Fault::Garbled(text(&body)))?;
    if json.get("error").is_some() {
        return Err(Fault::Failed(json["error"].to_string()));
    }
    let answer = Answer::of_whole(&json);
    match answer.choices.iter().position(|choice| choice.finish.is_none()) {
        Some(choice) => Err(Fault::Unfinished { choice }),
        None => Ok(Checked { answer, first: recording.ended.duration_since(recording.sent), gap: None }),
    }
}

fn stream(recording: &Recording, expected: Option<&Answer>) -> Result<Checked, Fault> {
    let mut stream = Stream::default();
    let mut pending = Vec::new();
    for (at, bytes) in &recording.arrivals {
        pending.extend_from_slice(bytes);
        while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = pending.drain(..end + 2).collect();
            stream.take(text(&event).trim_end_matches('\n'), *at)?;
        }
    }
    for (number, choice) in stream.choices.iter().enumerate() {
        let known = expected.and_then(|answer| answer.choices.get(number));
        if let Some(known) = known {
            in_order(number, &known.text, &choice.pieces)?;
        }
    }
    if !stream.ended {
        return Err(Fault::NoEnd);
    }
    if !pending.is_empty() {
        return Err(Fault::AfterEnd(text(&pending)));
    }
    if let Some(choice) = stream.choices.iter().position(|choice| choice.answer.finish.is_none()) {
        return Err(Fault::Unfinished { choice });
    }
    let first = stream.first.unwrap_or(recording.ended).duration_since(recording.sent);
    let choices = stream.choices.into_iter().map(ReceivedChoice::into_answer).collect();
    Ok(Checked { answer: Answer { choices, usage: stream.usage }, first, gap: stream.gap })
}

/// A stream, as far as it has been read.
#[derive(Debug, Default)]
struct Stream {
    choices: Vec<ReceivedChoice>,
    usage: Option<(u64, u64)>,
    ended: bool,
    first: Option<Instant>,
    last: Option<Instant>,
    gap: Option<Gap>,
}

/// What has arrived of a choice.
#[derive(Debug, Default)]
struct ReceivedChoice {
    /// The content in the pieces that arrived.
    pieces: Vec<String>,
    /// The rest.
    answer: Choice,
}

impl ReceivedChoice {
    fn into_answer(self) -> Choice {
        Choice { text: self.pieces.concat(), ..self.answer }
    }
}

impl Stream {
    fn take(&mut self, event: &str, at: Instant) -> Result<(), Fault> {
        if self.ended {
            return Err(Fault::AfterEnd(event.to_owned()));
        }
        if event.starts_with(':') {
            return Ok(());
        }
        let garbled = || Fault::Garbled(event.to_owned());
        let data = event.strip_prefix("data: ").ok_or_else(garbled)?;
        if data == "[DONE]" {
            self.ended = true;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).map_err(|_| garbled())?;
        if let Some(error) = chunk.get("error") {
            return Err(Fault::Failed(error.to_string()));
        }
        if let Some(usage) = answer::usage(&chunk["usage"])
            && self.usage.replace(usage).is_some()
        {
            return Err(Fault::AfterEnd(event.to_owned()));
        }
        let mut is_new = false;
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            is_new |= self.take_choice(choice).ok_or_else(garbled)??;
        }
        if is_new {
            self.note_time(at);
        }
        Ok(())
    }

    /// Returns whether there is new output; `None` for what is not a choice.
    fn take_choice(&mut self, received: &Value) -> Option<Result<bool, Fault>> {
        let number = usize::try_from(received["index"].as_u64()?).ok()?;
        while self.choices.len() <= number {
            self.choices.push(ReceivedChoice::default());
        }
        let choice = self.choices.get_mut(number)?;
        let delta = &received["delta"];
        let content = delta["content"].as_str().unwrap_or_default();
        let calls = delta["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        let logprobs = received["logprobs"]["content"].as_array().map_or(&[][..], Vec::as_slice);
        let is_new = !(content.is_empty() && calls.is_empty() && logprobs.is_empty());
        if is_new && choice.answer.finish.is_some() {
            return Some(Err(Fault::AfterFinish { choice: number }));
        }
        if !content.is_empty() {
            choice.pieces.push(content.to_owned());
        }
        for call in calls {
            choice.answer.take_call(call)?;
        }
        choice.answer.logprobs.extend_from_slice(logprobs);
        if let Some(reason) = received["finish_reason"].as_str()
            && choice.answer.finish.replace(reason.to_owned()).is_some()
        {
            return Some(Err(Fault::FinishedTwice { choice: number }));
        }
        Some(Ok(is_new))
    }

    fn note_time(&mut self, at: Instant) {
        self.first.get_or_insert(at);
        if let Some(from) = self.last.replace(at) {
            let gap = Gap { from, to: at };
            self.gap = self.gap.filter(|longest| longest.length() >= gap.length()).or(Some(gap));
        }
    }
}

impl Choice {
    /// A call begins with its name; what follows belongs to its arguments.
    fn take_call(&mut self, call: &Value) -> Option<()> {
        if call["index"].as_u64()? == self.calls.len() as u64 {
            self.calls.push((call["function"]["name"].as_str()?.to_owned(), String::new()));
        }
        let (_, arguments) = self.calls.last_mut()?;
        arguments.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
        Some(())
    }
}

/// Checks that the pieces make the text, each once and in order.
fn in_order(choice: usize, text: &str, pieces: &[String]) -> Result<(), Fault> {
    let mut at = 0;
    for (number, piece) in pieces.iter().enumerate() {
        let (before, rest) = text.split_at(at);
        if rest.starts_with(piece.as_str()) {
            at += piece.len();
            continue;
        }
        let follows = pieces.get(number + 1).map(String::as_str).unwrap_or_default();
        let found = piece.clone();
        return Err(if !follows.is_empty() && rest.starts_with(&format!("{follows}{piece}")) {
            Fault::Swapped { choice, at, text: found }
        } else if before.ends_with(piece.as_str()) {
            Fault::Doubled { choice, at, text: found }
        } else if let Some((missing, _)) = rest.split_once(piece.as_str()) {
            Fault::Lost { choice, at, text: missing.to_owned() }
        } else {
            let expected = rest.chars().take(piece.chars().count().max(20)).collect();
            Fault::Changed { choice, at, expected, found }
        });
    }
    // A missing end is found later: the stream may have broken off.
    Ok(())
}

/// Checks that two answers are equal.
fn same(found: &Answer, expected: &Answer) -> Result<(), Fault> {
    let differs = |what, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
        Err(Fault::Differs { what, expected: format!("{expected:?}"), found: format!("{found:?}") })
    };
    if found.choices.len() != expected.choices.len() {
        return differs("number of choices", &found.choices.len(), &expected.choices.len());
    }
    for (number, (found, expected)) in found.choices.iter().zip(&expected.choices).enumerate() {
        if let Some(text) = expected.text.strip_prefix(&found.text)
            && !text.is_empty()
        {
            return Err(Fault::Lost { choice: number, at: found.text.len(), text: text.to_owned() });
        }
        if found.text != expected.text {
            return differs("text", &found.text, &expected.text);
        }
        if found.calls != expected.calls {
            return differs("call", &found.calls, &expected.calls);
        }
        if found.logprobs != expected.logprobs {
            return differs("log-probability", &found.logprobs, &expected.logprobs);
        }
        if found.finish != expected.finish {
            return differs("finish reason", &found.finish, &expected.finish);
        }
    }
    if found.usage == expected.usage { Ok(()) } else { differs("usage", &found.usage, &expected.usage) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
