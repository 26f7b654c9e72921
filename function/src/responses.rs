//! A response of `/v1/responses`, told from its job's log, as a whole or event by event.
//!
//! A [`Story`] is a fold over what the relay tells. Its events depend on the log's text alone and
//! not on how the log cuts it, and so do their sequence numbers: each number is the count of events
//! without a delta so far, plus the bytes of all deltas so far. Whoever has heard everything up to
//! some number can therefore be told the rest from any other reading of the log, by another
//! function, to the byte: [`Event::after`].

mod event;
mod query;
mod telling;

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::{FinishReason, Usage};
use emberline_shared::record::Record;
use emberline_shared::responses::Outline;
use emberline_shared::subject::JobId;
use emberline_shared::tools::{Piece, ToolCallReader, call_id};
use serde_json::{Map, Value, json};

use crate::relay::Output;
pub use event::Event;
pub use query::Query;
pub use telling::Telling;

/// How a response stands.
#[derive(Debug, Clone, PartialEq)]
enum Status {
    Queued,
    InProgress,
    Completed,
    /// The tokens are used up.
    Incomplete,
    Cancelled,
    Failed(ApiError),
}

/// How a part of the output stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    Message { text: String },
    Call { call_id: String, name: String, arguments: String },
}

/// A part of the output.
#[derive(Debug, Clone, PartialEq)]
struct Item {
    id: String,
    status: ItemStatus,
    content: Content,
}

/// A response as far as it is told.
#[derive(Debug)]
pub struct Story {
    job: JobId,
    /// Unix seconds.
    created: u64,
    model: String,
    outline: Outline,
    status: Status,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    reader: Option<ToolCallReader>,
    items: Vec<Item>,
    /// The number of the next event, if that is one without a delta.
    next: u64,
    events: Vec<Event>,
}

impl Story {
    /// The beginning, which tells that there is a response.
    pub fn new(job: JobId, created_ms: u64, model: String, outline: Outline) -> Self {
        let status = if outline.background { Status::Queued } else { Status::InProgress };
        let mut story = Self {
            job,
            created: created_ms.div_euclid(1000),
            model,
            outline,
            status,
            finish: None,
            usage: None,
            reader: None,
            items: Vec::new(),
            next: 0,
            events: Vec::new(),
        };
        story.tell_response("response.created");
        story
    }

    /// The beginning of a response that is kept; other requests have none.
    pub fn of(record: Record) -> Option<Self> {
        let Record { job, model, outline, .. } = record;
        Some(Self::new(job.id, job.created, model, outline?))
    }

    /// Takes what the relay tells next.
    pub fn push(&mut self, output: Output) {
        match output {
            Output::Accepted(acceptance) => {
                self.reader = acceptance.tool_format.map(ToolCallReader::new);
                self.status = Status::InProgress;
                self.tell_response("response.in_progress");
            }
            Output::Text { text, .. } => {
                let pieces = match &mut self.reader {
                    Some(reader) => reader.push(&text),
                    None => vec![Piece::Content(text)],
                };
                pieces.into_iter().for_each(|piece| self.piece(piece, ItemStatus::Completed));
            }
            Output::Finish { reason, .. } => self.finish(reason),
            Output::Done(usage) => self.end(usage),
            Output::Failed(error) => self.fail(error),
        }
    }

    /// The events that have not been taken.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether nothing follows.
    pub fn is_over(&self) -> bool {
        !matches!(self.status, Status::Queued | Status::InProgress)
    }

    /// Says that nobody wants the rest, unless the log says more already.
    pub fn cancel(&mut self) {
        if !self.is_over() {
            self.break_off(Status::Cancelled);
        }
    }

    /// Says that it failed.
    pub fn fail(&mut self, error: ApiError) {
        self.break_off(Status::Failed(error));
        self.tell_response("response.failed");
    }

    fn break_off(&mut self, status: Status) {
        if let Some(item) = self.items.last_mut().filter(|item| item.status == ItemStatus::InProgress) {
            item.status = ItemStatus::Incomplete;
        }
        self.status = status;
    }

    /// A failure that is the relay's own: the response may go on. It takes no number, so that
    /// whoever resumes after it misses nothing.
    pub fn interruption(&self, error: &ApiError) -> Event {
        let fields = json!({ "code": error.code, "message": error.message, "param": error.param });
        Event::new(self.next.saturating_sub(1), "error", fields)
    }

    fn finish(&mut self, reason: FinishReason) {
        let status = match reason {
            FinishReason::Stop => ItemStatus::Completed,
            FinishReason::Length | FinishReason::Cancelled => ItemStatus::Incomplete,
        };
        let rest = self.reader.as_mut().map(ToolCallReader::finish).unwrap_or_default();
        rest.into_iter().for_each(|piece| self.piece(piece, status));
        if self.items.is_empty() {
            self.open_message();
        }
        self.close(status);
        self.finish = Some(reason);
    }

    fn end(&mut self, usage: Usage) {
        self.usage = Some(usage);
        let (status, event) = match self.finish {
            Some(FinishReason::Stop) | None => (Status::Completed, "response.completed"),
            Some(FinishReason::Length) => (Status::Incomplete, "response.incomplete"),
            // There is no event of its own for this; the response in it tells.
            Some(FinishReason::Cancelled) => (Status::Cancelled, "response.incomplete"),
        };
        self.status = status;
        self.tell_response(event);
    }

    /// Takes a part of the text; a call that ends here has this status.
    fn piece(&mut self, piece: Piece, ended: ItemStatus) {
        match piece {
            Piece::Content(text) => self.content(text),
            Piece::CallStart { index, name } => {
                self.close(ItemStatus::Completed);
                let call_id = call_id(&self.job, 0, index);
                self.open("fc", Content::Call { call_id, name, arguments: String::new() });
            }
            Piece::Arguments { text, .. } => self.arguments(text),
            Piece::CallEnd { .. } => self.close(ended),
        }
    }

    fn content(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        if !matches!(self.open_item(), Some(Item { content: Content::Message { .. }, .. })) {
            self.close(ItemStatus::Completed);
            self.open_message();
        }
        if let Some(Item { content: Content::Message { text: told }, .. }) = self.items.last_mut() {
            told.push_str(&text);
        }
        let mut fields = self.place(true);
        fields.insert("logprobs".to_owned(), json!([]));
        self.tell_delta("response.output_text.delta", fields, text);
    }

    fn arguments(&mut self, text: String) {
        let Some(Item { content: Content::Call { arguments, .. }, .. }) = self.items.last_mut() else {
            return;
        };
        if !text.is_empty() {
            arguments.push_str(&text);
            let fields = self.place(false);
            self.tell_delta("response.function_call_arguments.delta", fields, text);
        }
    }

    fn open_message(&mut self) {
        self.open("msg", Content::Message { text: String::new() });
        let mut fields = self.place(true);
        fields.insert("part".to_owned(), text_part(""));
        self.tell("response.content_part.added", fields);
    }

    fn open(&mut self, prefix: &str, content: Content) {
        let id = format!("{prefix}_{}{:02x}", self.job, self.items.len());
        self.items.push(Item { id, status: ItemStatus::InProgress, content });
        self.tell_item("response.output_item.added");
    }

    fn open_item(&self) -> Option<&Item> {
        self.items.last().filter(|item| item.status == ItemStatus::InProgress)
    }

    /// Ends the part that is being told, if there is one.
    fn close(&mut self, status: ItemStatus) {
        let Some(item) = self.items.last_mut().filter(|item| item.status == ItemStatus::InProgress) else {
            return;
        };
        item.status = status;
        match item.content.clone() {
            Content::Message { text } => {
                let mut fields = self.place(true);
                let mut part = fields.clone();
                part.insert("part".to_owned(), text_part(&text));
                fields.insert("text".to_owned(), text.into());
                fields.insert("logprobs".to_owned(), json!([]));
                self.tell("response.output_text.done", fields);
                self.tell("response.content_part.done", part);
            }
            Content::Call { name, arguments, .. } => {
                let mut fields = self.place(false);
                fields.insert("name".to_owned(), name.into());
                fields.insert("arguments".to_owned(), arguments.into());
                self.tell("response.function_call_arguments.done", fields);
            }
        }
        self.tell_item("response.output_item.done");
    }

    /// Says which item an event is about, and which part of it if it has parts.
    fn place(&self, has_parts: bool) -> Map<String, Value> {
        let mut place = Map::new();
        if let Some(item) = self.items.last() {
            place.insert("item_id".to_owned(), item.id.as_str().into());
        }
        place.insert("output_index".to_owned(), self.items.len().saturating_sub(1).into());
        if has_parts {
            place.insert("content_index".to_owned(), 0.into());
        }
        place
    }

    fn tell_item(&mut self, kind: &'static str) {
        let Some(item) = self.items.last() else { return };
        let index = self.items.len().saturating_sub(1);
        let fields = json!({ "output_index": index, "item": item.body() });
        self.tell(kind, fields);
    }

    fn tell_response(&mut self, kind: &'static str) {
        let fields = json!({ "response": self.body() });
        self.tell(kind, fields);
    }

    fn tell(&mut self, kind: &'static str, fields: impl Into<Value>) {
        self.events.push(Event::new(self.next, kind, fields.into()));
        self.next = self.next.saturating_add(1);
    }

    fn tell_delta(&mut self, kind: &'static str, fields: Map<String, Value>, delta: String) {
        self.next = self.next.saturating_add(u64::try_from(delta.len()).unwrap_or(u64::MAX));
        self.events.push(Event::with_delta(self.next.saturating_sub(1), kind, fields, delta));
    }

    /// The response, as OpenAI's API has it.
    pub fn body(&self) -> Value {
        let (status, incomplete, error) = match &self.status {
            Status::Queued => ("queued", Value::Null, Value::Null),
            Status::InProgress => ("in_progress", Value::Null, Value::Null),
            Status::Completed => ("completed", Value::Null, Value::Null),
            Status::Incomplete => ("incomplete", json!({ "reason": "max_output_tokens" }), Value::Null),
            Status::Cancelled => ("cancelled", Value::Null, Value::Null),
            Status::Failed(error) => ("failed", Value::Null, error_body(error)),
        };
        let head = json!({
            "id": response_id(&self.job),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": self.outline.background,
            "error": error,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": self.items.iter().map(Item::body).collect::<Vec<_>>(),
            "usage": self.usage.as_ref().map(usage_body),
            // What is kept of a background response can be had until it expires.
            "store": self.outline.background,
        });
        let mut body = self.outline.echo.clone();
        if let Value::Object(mut head) = head {
            body.append(&mut head);
        }
        Value::Object(body)
    }
}

impl Item {
    fn body(&self) -> Value {
        let status = match self.status {
            ItemStatus::InProgress => "in_progress",
            ItemStatus::Completed => "completed",
            ItemStatus::Incomplete => "incomplete",
        };
        match &self.content {
            Content::Message { text } => {
                let is_new = self.status == ItemStatus::InProgress && text.is_empty();
                let content = if is_new { json!([]) } else { json!([text_part(text)]) };
                json!({ "id": self.id, "type": "message", "status": status, "role": "assistant", "content": content })
            }
            Content::Call { call_id, name, arguments } => json!({
                "id": self.id, "type": "function_call", "status": status,
                "call_id": call_id, "name": name, "arguments": arguments,
            }),
        }
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn usage_body(usage: &Usage) -> Value {
    let total = u64::from(usage.prompt_tokens).saturating_add(usage.completion_tokens.into());
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.cached_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": total,
    })
}

/// OpenAI has few codes for a response that failed; the message says more.
fn error_body(error: &ApiError) -> Value {
    let code = match error.code.status() {
        429 => "rate_limit_exceeded",
        400..=499 => "invalid_prompt",
        _ => "server_error",
    };
    json!({ "code": code, "message": error.message })
}

const ID_PREFIX: &str = "resp_";

/// The id of a job's response.
pub fn response_id(job: &JobId) -> String {
    format!("{ID_PREFIX}{job}")
}

/// The job of a response.
pub fn job_of(response_id: &str) -> Option<JobId> {
    JobId::try_from(response_id.strip_prefix(ID_PREFIX)?.to_owned()).ok()
}

/// The error for a response that is not there, or not for this key.
pub fn not_found(response_id: &str) -> ApiError {
    let id: String = response_id.chars().take(64).collect();
    let message = format!(
        "There is no response '{id}' for this API key. Only responses made with 'background': true are kept, and only for some time."
    );
    ApiError::new(ErrorCode::NotFound, message)
}

#[cfg(test)]
#[path = "responses/responses_tests.rs"]
mod tests;
