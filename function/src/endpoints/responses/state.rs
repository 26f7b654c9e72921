//! A response of `/v1/responses`, made from its job's event log, as a whole or event by event.
//!
//! A [`ResponseState`] is a fold over the outputs of the relay. Its events depend on the text of the log alone and
//! not on how the log cuts it, and so do their sequence numbers: each is the number of events without a delta so
//! far, plus the bytes of all deltas so far. So a client that has every event up to some number gets exactly the rest
//! from any other reading of the log, by another function, to the byte: [`Event::after`].

use bytes::Bytes;
use emberline_api::responses::{
    Failure, IncompleteDetails, ItemStatus, OutputItem, OutputText, Response, ResponseSpec, ResponseUsage,
    Status, TextLogprob,
};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{FinishReason, Usage};
use emberline_protocol::subject::JobId;
use emberline_protocol::tools::{AnswerPart, ToolCallReader, call_id};
use serde_json::{Map, Value, json};

use super::event::Event;
use crate::generation::stored_request::{StoredRequest, response_id};
use crate::relay::{Ending, Output};
use crate::response::whole_response::ResponseBuilder;

/// A response, as far as its job has come.
#[derive(Debug)]
pub struct ResponseState {
    job: JobId,
    /// Unix seconds.
    created: u64,
    model: String,
    spec: ResponseSpec,
    status: Status,
    error: Option<ApiError>,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    /// When it was complete, in Unix seconds.
    ended: Option<u64>,
    reader: Option<ToolCallReader>,
    output: Vec<OutputItem>,
    /// Of tokens that are no text yet.
    logprobs: Vec<TextLogprob>,
    /// The number of the next event, if that is one without a delta.
    next: u64,
    events: Vec<Event>,
}

impl ResponseState {
    /// A response of which nothing is known but that it was made.
    pub fn new(job: JobId, created_ms: u64, model: String, spec: ResponseSpec) -> Self {
        let status = if spec.background { Status::Queued } else { Status::InProgress };
        let mut state = Self {
            job,
            created: created_ms.div_euclid(1000),
            model,
            spec,
            status,
            error: None,
            finish: None,
            usage: None,
            ended: None,
            reader: None,
            output: Vec::new(),
            logprobs: Vec::new(),
            next: 0,
            events: Vec::new(),
        };
        state.add_response_event("response.created");
        state
    }

    /// The same for a stored request; `None` if that was not for a response.
    pub fn of(stored: StoredRequest) -> Option<Self> {
        let StoredRequest { job, model, spec, .. } = stored;
        Some(Self::new(job.id, job.created, model, spec?))
    }

    /// Takes the next output of the relay.
    pub fn push(&mut self, output: Output) {
        match output {
            Output::Accepted(acceptance) => {
                let reader = |format| ToolCallReader::new(format, acceptance.beside_calls);
                self.reader = acceptance.tool_format.map(reader);
                self.status = Status::InProgress;
                self.add_response_event("response.in_progress");
            }
            Output::Text { text, logprobs, .. } => {
                self.logprobs.extend(logprobs.iter().flatten().map(TextLogprob::from));
                let pieces = match &mut self.reader {
                    Some(reader) => reader.push(&text),
                    None => vec![AnswerPart::Content(text)],
                };
                pieces.into_iter().for_each(|piece| self.piece(piece, ItemStatus::Completed));
            }
            // Responses don't contain it.
            Output::Prompt { .. } => {}
            Output::Finish { reason, .. } => self.finish(reason),
            Output::Done(ending) => self.end(ending),
            Output::Failed(error) => self.fail(error),
        }
    }

    /// The events that have not been taken.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        !matches!(self.status, Status::Queued | Status::InProgress)
    }

    /// Marks it as cancelled, unless it has ended.
    pub fn cancel(&mut self) {
        if !self.is_over() {
            self.break_off(Status::Cancelled);
        }
    }

    /// Marks it as failed.
    pub fn fail(&mut self, error: ApiError) {
        self.break_off(Status::Failed);
        self.error = Some(error);
        self.add_response_event("response.failed");
    }

    fn break_off(&mut self, status: Status) {
        if let Some(open) = self.open_status() {
            *open = ItemStatus::Incomplete;
        }
        self.status = status;
    }

    /// The event for a failure of the relay itself: the response may go on. It takes no sequence number, so that a
    /// client that resumes after it misses nothing.
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
        if self.output.is_empty() {
            self.open_message();
        }
        self.close(status);
        self.finish = Some(reason);
    }

    fn end(&mut self, Ending { usage, at }: Ending) {
        self.usage = Some(usage);
        self.ended = at;
        let (status, event) = match self.finish {
            Some(FinishReason::Stop) | None => (Status::Completed, "response.completed"),
            Some(FinishReason::Length) => (Status::Incomplete, "response.incomplete"),
            // OpenAI has no event for this; the response in the event has the status.
            Some(FinishReason::Cancelled) => (Status::Cancelled, "response.incomplete"),
        };
        self.status = status;
        self.add_response_event(event);
    }

    /// Takes a part of the text; a call that ends here has this status.
    fn piece(&mut self, piece: AnswerPart, ended: ItemStatus) {
        match piece {
            AnswerPart::Content(text) => self.content(text),
            AnswerPart::CallStart { index, name } => {
                self.close(ItemStatus::Completed);
                let (id, status) = (self.next_id("fc"), ItemStatus::InProgress);
                let (call_id, arguments) = (call_id(&self.job, 0, index), String::new());
                self.open(OutputItem::FunctionCall { id, status, call_id, name, arguments });
            }
            AnswerPart::Arguments { text, .. } => self.arguments(text),
            AnswerPart::CallEnd { .. } => self.close(ended),
        }
    }

    fn content(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        let is_open = self.open_status().is_some();
        if !is_open || !matches!(self.output.last(), Some(OutputItem::Message { .. })) {
            self.close(ItemStatus::Completed);
            self.open_message();
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        if let Some(OutputItem::Message { content, .. }) = self.output.last_mut() {
            if content.is_empty() {
                content.push(OutputText::new(""));
            }
            if let Some(part) = content.last_mut() {
                part.text.push_str(&text);
                part.logprobs.extend_from_slice(&logprobs);
            }
        }
        let fields = self.place(true);
        self.add_delta_event("response.output_text.delta", fields, text, Some(logprobs));
    }

    fn arguments(&mut self, text: String) {
        let Some(OutputItem::FunctionCall { arguments, .. }) = self.output.last_mut() else { return };
        if !text.is_empty() {
            arguments.push_str(&text);
            let fields = self.place(false);
            self.add_delta_event("response.function_call_arguments.delta", fields, text, None);
        }
    }

    fn open_message(&mut self) {
        let (id, status) = (self.next_id("msg"), ItemStatus::InProgress);
        self.open(OutputItem::Message { id, status, role: "assistant", content: Vec::new() });
        let mut fields = self.place(true);
        fields.insert("part".to_owned(), json!(OutputText::new("")));
        self.add_event("response.content_part.added", fields);
    }

    fn open(&mut self, item: OutputItem) {
        self.output.push(item);
        self.add_item_event("response.output_item.added");
    }

    fn next_id(&self, prefix: &str) -> String {
        format!("{prefix}_{}{:02x}", self.job, self.output.len())
    }

    /// The status of the item that is open, if there is one.
    fn open_status(&mut self) -> Option<&mut ItemStatus> {
        let (OutputItem::Message { status, .. } | OutputItem::FunctionCall { status, .. }) =
            self.output.last_mut()?;
        (*status == ItemStatus::InProgress).then_some(status)
    }

    /// Closes the item that is open, if there is one.
    fn close(&mut self, ended: ItemStatus) {
        let Some(status) = self.open_status() else { return };
        *status = ended;
        match self.output.last_mut() {
            Some(OutputItem::Message { content, .. }) => {
                if content.is_empty() {
                    content.push(OutputText::new(""));
                }
                // Those after the text: the tokens of a stop string.
                let rest = std::mem::take(&mut self.logprobs);
                content.iter_mut().for_each(|text| text.logprobs.extend_from_slice(&rest));
                let text = content.first().cloned().unwrap_or_else(|| OutputText::new(""));
                let mut fields = self.place(true);
                let mut part = fields.clone();
                part.insert("part".to_owned(), json!(text));
                fields.insert("text".to_owned(), text.text.into());
                fields.insert("logprobs".to_owned(), json!(text.logprobs));
                self.add_event("response.output_text.done", fields);
                self.add_event("response.content_part.done", part);
            }
            Some(OutputItem::FunctionCall { name, arguments, .. }) => {
                let call = json!({ "name": name, "arguments": arguments });
                let mut fields = self.place(false);
                fields.extend(call.as_object().cloned().unwrap_or_default());
                self.add_event("response.function_call_arguments.done", fields);
            }
            None => {}
        }
        self.add_item_event("response.output_item.done");
    }

    /// The fields that say which item an event is about, and which part of it if it has parts.
    fn place(&self, has_parts: bool) -> Map<String, Value> {
        let mut place = Map::new();
        if let Some(OutputItem::Message { id, .. } | OutputItem::FunctionCall { id, .. }) = self.output.last()
        {
            place.insert("item_id".to_owned(), id.as_str().into());
        }
        place.insert("output_index".to_owned(), self.output.len().saturating_sub(1).into());
        if has_parts {
            place.insert("content_index".to_owned(), 0.into());
        }
        place
    }

    fn add_item_event(&mut self, kind: &'static str) {
        let index = self.output.len().saturating_sub(1);
        let fields = json!({ "output_index": index, "item": self.output.last() });
        self.add_event(kind, fields);
    }

    fn add_response_event(&mut self, kind: &'static str) {
        let fields = json!({ "response": self.response() });
        self.add_event(kind, fields);
    }

    fn add_event(&mut self, kind: &'static str, fields: impl Into<Value>) {
        self.events.push(Event::new(self.next, kind, fields.into()));
        self.next = self.next.saturating_add(1);
    }

    fn add_delta_event(
        &mut self,
        kind: &'static str,
        fields: Map<String, Value>,
        delta: String,
        logprobs: Option<Vec<TextLogprob>>,
    ) {
        self.next = self.next.saturating_add(u64::try_from(delta.len()).unwrap_or(u64::MAX));
        self.events.push(Event::with_delta(self.next.saturating_sub(1), kind, fields, delta, logprobs));
    }

    /// The response as it is now.
    pub fn response(&self) -> Response<'_> {
        let is_incomplete = self.status == Status::Incomplete;
        Response {
            id: response_id(&self.job),
            object: "response",
            created_at: self.created,
            completed_at: self.ended.filter(|_| self.status == Status::Completed),
            status: self.status,
            background: self.spec.background,
            error: self.error.as_ref().map(Failure::from),
            incomplete_details: is_incomplete.then_some(IncompleteDetails::MAX_OUTPUT_TOKENS),
            model: &self.model,
            output: &self.output,
            usage: self.usage.as_ref().map(ResponseUsage::from),
            store: self.spec.background,
            echo: &self.spec.echo,
        }
    }
}

impl ResponseBuilder for ResponseState {
    fn push(&mut self, output: Output) -> Option<Bytes> {
        Self::push(self, output);
        self.is_over().then(|| serde_json::to_vec(&self.response()).unwrap_or_default().into())
    }
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
#[path = "state_tests.rs"]
mod tests;
