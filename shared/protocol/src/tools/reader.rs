//! Separates tool calls from text while the model is still writing.

use std::mem::take;

use super::call::{CallObject, CallStep};
use super::{TextBesideCalls, ToolFormat};

/// A part of an answer: text, or part of a tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text.
    Content(String),
    /// A call begins.
    CallStart {
        /// Index of the call in the answer, from 0.
        index: u32,
        /// The function's name.
        name: String,
    },
    /// The next part of a call's arguments. All parts together are the JSON object as the model wrote it,
    /// braces included.
    Arguments {
        /// Index of the call.
        index: u32,
        /// A part of a JSON object's text.
        text: String,
    },
    /// A call's arguments are complete, or the answer ended within them.
    CallEnd {
        /// Index of the call.
        index: u32,
    },
}

/// Splits the text of one choice into content and tool calls.
///
/// Text is held back only while it may belong to a call. Text that is not a well-formed call is content.
/// Whitespace beside a call is dropped, and so is an incomplete call at the end of the answer, unless it may
/// be formatted text ([`TextBesideCalls`]). The result does not depend on how the text is divided among calls
/// of [`push`](Self::push).
#[derive(Debug)]
pub struct ToolCallReader {
    syntax: Syntax,
    beside: TextBesideCalls,
    state: ReaderState,
    /// Text that is content unless a call follows, or markup after a call's arguments.
    held: String,
    call: CallObject,
    calls: u32,
    /// Whether whitespace is dropped because it follows a call.
    beside_call: bool,
    pieces: Vec<AnswerPart>,
}

/// The marks that a format writes around calls. Whitespace is allowed between all of them.
#[derive(Debug)]
struct Syntax {
    /// Marks before the first call, in order. If empty, calls can only begin the answer.
    open: &'static [&'static str],
    /// Separator between two calls. If `None`, each call has its own marks.
    between: Option<char>,
    /// Mark after the last call. If `None`, the answer ends there.
    close: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum ReaderState {
    /// In text that may contain marks.
    Text,
    /// In text that lasts to the end of the answer.
    Plain,
    /// In the opening marks: (complete marks, characters of the next one).
    Opening(usize, usize),
    /// After the opening marks; a call must follow.
    BeforeCall,
    /// After a separator; a call must follow.
    Between,
    InCall,
    AfterCall,
    /// In the closing mark: (characters read).
    Closing(usize),
}

impl ToolFormat {
    fn syntax(self) -> Syntax {
        match self {
            Self::Hermes => Syntax { open: &["<tool_call>"], between: None, close: Some("</tool_call>") },
            Self::Llama => Syntax { open: &[], between: Some(';'), close: None },
            Self::Mistral => Syntax { open: &["[TOOL_CALLS]", "["], between: Some(','), close: Some("]") },
        }
    }
}

impl ToolCallReader {
    /// A reader at the beginning of an answer.
    pub fn new(format: ToolFormat, beside: TextBesideCalls) -> Self {
        let syntax = format.syntax();
        let state = if syntax.open.is_empty() { ReaderState::BeforeCall } else { ReaderState::Text };
        Self {
            syntax,
            beside,
            state,
            held: String::new(),
            call: CallObject::default(),
            calls: 0,
            beside_call: false,
            pieces: Vec::new(),
        }
    }

    /// Reads the next part of the text and returns what it completes.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        text.chars().for_each(|c| self.step(c));
        take(&mut self.pieces)
    }

    /// Ends the answer. Text that is held back becomes content, unless it belongs to a call.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        if self.call.is_in_arguments() {
            self.pieces.push(AnswerPart::CallEnd { index: self.index() });
        }
        if !self.holds_markup() {
            self.release();
        }
        self.held.clear();
        self.call = CallObject::default();
        self.state = ReaderState::Plain;
        take(&mut self.pieces)
    }

    /// Whether the text that is held back at the end belongs to a call, complete or not.
    fn holds_markup(&self) -> bool {
        let has_begun = match self.state {
            ReaderState::AfterCall | ReaderState::Between | ReaderState::Closing(_) => return true,
            ReaderState::InCall if self.call.has_started() => return true,
            ReaderState::Text | ReaderState::Plain | ReaderState::Opening(0, _) => false,
            ReaderState::Opening(..) => true,
            // Without marks, only the first key distinguishes a call from text.
            ReaderState::BeforeCall | ReaderState::InCall if self.syntax.open.is_empty() => {
                self.call.has_name_key()
            }
            ReaderState::BeforeCall | ReaderState::InCall => true,
        };
        match self.beside {
            TextBesideCalls::None => true,
            TextBesideCalls::Free => has_begun,
            TextBesideCalls::Formatted => false,
        }
    }

    /// Number of calls so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    fn step(&mut self, c: char) {
        match self.state {
            ReaderState::Text => self.in_text(c),
            ReaderState::Plain => {
                self.held.push(c);
                self.release();
            }
            ReaderState::Opening(mark, matched) => self.in_opening(mark, matched, c),
            ReaderState::InCall => self.in_call(c),
            ReaderState::Closing(matched) => self.in_closing(matched, c),
            _ if c.is_ascii_whitespace() => self.held.push(c),
            ReaderState::BeforeCall | ReaderState::Between if c == '{' => {
                self.call = CallObject::default();
                self.hold(c, ReaderState::InCall);
            }
            ReaderState::BeforeCall | ReaderState::Between => self.fail(c),
            ReaderState::AfterCall if self.syntax.between == Some(c) => self.hold(c, ReaderState::Between),
            ReaderState::AfterCall => self.in_closing(0, c),
        }
    }

    fn hold(&mut self, c: char, state: ReaderState) {
        self.held.push(c);
        self.state = state;
    }

    fn in_text(&mut self, c: char) {
        let mark = self.syntax.open.first();
        if c.is_ascii_whitespace() {
            if !self.beside_call {
                self.held.push(c);
            }
        } else if mark.is_some_and(|mark| mark.starts_with(c)) {
            self.hold(c, ReaderState::Opening(0, 1));
        } else {
            self.held.push(c);
            self.release();
        }
    }

    fn in_opening(&mut self, mark: usize, matched: usize, c: char) {
        let expected = self.syntax.open.get(mark).copied().unwrap_or_default();
        if matched == 0 && c.is_ascii_whitespace() {
            self.held.push(c);
        } else if expected.chars().nth(matched) != Some(c) {
            self.fail(c);
        } else if matched + 1 < expected.len() {
            self.hold(c, ReaderState::Opening(mark, matched + 1));
        } else if mark + 1 < self.syntax.open.len() {
            self.hold(c, ReaderState::Opening(mark + 1, 0));
        } else {
            self.hold(c, ReaderState::BeforeCall);
        }
    }

    fn in_call(&mut self, c: char) {
        match self.call.step(c) {
            CallStep::Wait => self.held.push(c),
            CallStep::Start(name) => {
                self.start(name);
                self.argument(c);
            }
            CallStep::Argument => self.argument(c),
            CallStep::LastArgument => {
                self.argument(c);
                self.pieces.push(AnswerPart::CallEnd { index: self.index() });
            }
            CallStep::StartWith(name, arguments) => {
                self.start(name);
                let index = self.index();
                self.pieces.push(AnswerPart::Arguments { index, text: arguments });
                self.pieces.push(AnswerPart::CallEnd { index });
            }
            CallStep::End => self.hold(c, ReaderState::AfterCall),
            CallStep::Malformed => self.fail(c),
        }
    }

    fn in_closing(&mut self, matched: usize, c: char) {
        let mark = self.syntax.close.unwrap_or_default();
        if mark.chars().nth(matched) != Some(c) {
            self.fail(c);
        } else if matched + 1 < mark.len() {
            self.hold(c, ReaderState::Closing(matched + 1));
        } else {
            self.held.clear();
            self.beside_call = true;
            self.state = ReaderState::Text;
        }
    }

    /// Index of the call that was read last.
    fn index(&self) -> u32 {
        self.calls.saturating_sub(1)
    }

    fn start(&mut self, name: String) {
        self.held.clear();
        self.pieces.push(AnswerPart::CallStart { index: self.calls, name });
        self.calls += 1;
    }

    fn argument(&mut self, c: char) {
        let call = self.index();
        match self.pieces.last_mut() {
            Some(AnswerPart::Arguments { index, text }) if *index == call => text.push(c),
            _ => self.pieces.push(AnswerPart::Arguments { index: call, text: c.into() }),
        }
    }

    /// Handles `c`, the first character that shows that the held text is not a call.
    fn fail(&mut self, c: char) {
        self.release();
        self.state = if self.syntax.open.is_empty() { ReaderState::Plain } else { ReaderState::Text };
        self.step(c);
    }

    /// Turns the held text into content.
    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.beside_call = false;
        match self.pieces.last_mut() {
            Some(AnswerPart::Content(text)) => text.push_str(&self.held),
            _ => self.pieces.push(AnswerPart::Content(self.held.clone())),
        }
        self.held.clear();
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
