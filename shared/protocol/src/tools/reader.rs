//! Calls told apart from text, while the text is still being written.

use std::mem::take;

use super::call::{CallObject, Step};
use super::{TextBesideCalls, ToolFormat};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Content(String),
    /// A call begins.
    CallStart {
        /// Which call of the answer, from 0.
        index: u32,
        /// The function's name.
        name: String,
    },
    /// The next part of a call's arguments; all of them together are what the model wrote between
    /// the braces, and these.
    Arguments {
        /// Which call.
        index: u32,
        /// A part of a JSON object.
        text: String,
    },
    /// A call's arguments are complete, or the answer has ended before they were.
    CallEnd {
        /// Which call.
        index: u32,
    },
}

/// Reads the text of one choice.
///
/// Text is held back only as long as it may belong to a call. What is no well-formed call is
/// content; white space beside a call is not, and neither is the beginning of a call where the answer
/// is cut off. How the text is cut makes no difference.
#[derive(Debug)]
pub struct ToolCallReader {
    syntax: Syntax,
    beside: TextBesideCalls,
    state: State,
    /// Text that is content unless a call follows, or mark-up after a call's arguments.
    held: String,
    call: CallObject,
    calls: u32,
    /// White space is dropped: it follows a call.
    beside_call: bool,
    pieces: Vec<Piece>,
}

/// What a format writes around calls. White space may stand between all of it.
#[derive(Debug)]
struct Syntax {
    /// Before the first call, each in turn; if nothing, calls can only begin the answer.
    open: &'static [&'static str],
    /// Between two calls; if nothing, each has its own marks.
    between: Option<char>,
    /// After the last call; if nothing, only the end of the answer.
    close: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Text, in which marks are looked for.
    Text,
    /// Text to the end of the answer.
    Plain,
    /// Within the opening marks: so many are complete, and so many characters of the next.
    Opening(usize, usize),
    /// A call has to follow the opening marks.
    BeforeCall,
    /// A call has to follow another.
    Between,
    InCall,
    AfterCall,
    /// So many characters of the closing mark are there.
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
    /// At the beginning of an answer, which has text beside its calls as `beside` says.
    pub fn new(format: ToolFormat, beside: TextBesideCalls) -> Self {
        let syntax = format.syntax();
        let state = if syntax.open.is_empty() { State::BeforeCall } else { State::Text };
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

    /// Reads on.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        text.chars().for_each(|c| self.step(c));
        take(&mut self.pieces)
    }

    /// The answer has ended: what is held back is content, unless it belongs to a call.
    pub fn finish(&mut self) -> Vec<Piece> {
        if self.call.is_in_arguments() {
            self.pieces.push(Piece::CallEnd { index: self.index() });
        }
        if !self.holds_markup() {
            self.release();
        }
        self.held.clear();
        self.call = CallObject::default();
        self.state = State::Plain;
        take(&mut self.pieces)
    }

    /// Whether what is held back at the end belongs to a call, complete or not.
    fn holds_markup(&self) -> bool {
        let has_begun = match self.state {
            State::AfterCall | State::Between | State::Closing(_) => return true,
            State::InCall if self.call.has_started() => return true,
            State::Text | State::Plain | State::Opening(0, _) => false,
            State::Opening(..) => true,
            // Without marks, only its first key tells a call from text.
            State::BeforeCall | State::InCall if self.syntax.open.is_empty() => self.call.has_name_key(),
            State::BeforeCall | State::InCall => true,
        };
        match self.beside {
            TextBesideCalls::None => true,
            TextBesideCalls::Free => has_begun,
            TextBesideCalls::Formatted => false,
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    fn step(&mut self, c: char) {
        match self.state {
            State::Text => self.in_text(c),
            State::Plain => {
                self.held.push(c);
                self.release();
            }
            State::Opening(mark, matched) => self.in_opening(mark, matched, c),
            State::InCall => self.in_call(c),
            State::Closing(matched) => self.in_closing(matched, c),
            _ if c.is_ascii_whitespace() => self.held.push(c),
            State::BeforeCall | State::Between if c == '{' => {
                self.call = CallObject::default();
                self.hold(c, State::InCall);
            }
            State::BeforeCall | State::Between => self.fail(c),
            State::AfterCall if self.syntax.between == Some(c) => self.hold(c, State::Between),
            State::AfterCall => self.in_closing(0, c),
        }
    }

    fn hold(&mut self, c: char, state: State) {
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
            self.hold(c, State::Opening(0, 1));
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
            self.hold(c, State::Opening(mark, matched + 1));
        } else if mark + 1 < self.syntax.open.len() {
            self.hold(c, State::Opening(mark + 1, 0));
        } else {
            self.hold(c, State::BeforeCall);
        }
    }

    fn in_call(&mut self, c: char) {
        match self.call.step(c) {
            Step::Wait => self.held.push(c),
            Step::Start(name) => {
                self.start(name);
                self.argument(c);
            }
            Step::Argument => self.argument(c),
            Step::LastArgument => {
                self.argument(c);
                self.pieces.push(Piece::CallEnd { index: self.index() });
            }
            Step::StartWith(name, arguments) => {
                self.start(name);
                let index = self.index();
                self.pieces.push(Piece::Arguments { index, text: arguments });
                self.pieces.push(Piece::CallEnd { index });
            }
            Step::End => self.hold(c, State::AfterCall),
            Step::Malformed => self.fail(c),
        }
    }

    fn in_closing(&mut self, matched: usize, c: char) {
        let mark = self.syntax.close.unwrap_or_default();
        if mark.chars().nth(matched) != Some(c) {
            self.fail(c);
        } else if matched + 1 < mark.len() {
            self.hold(c, State::Closing(matched + 1));
        } else {
            self.held.clear();
            self.beside_call = true;
            self.state = State::Text;
        }
    }

    /// The call that was read last.
    fn index(&self) -> u32 {
        self.calls.saturating_sub(1)
    }

    fn start(&mut self, name: String) {
        self.held.clear();
        self.pieces.push(Piece::CallStart { index: self.calls, name });
        self.calls += 1;
    }

    fn argument(&mut self, c: char) {
        let call = self.index();
        match self.pieces.last_mut() {
            Some(Piece::Arguments { index, text }) if *index == call => text.push(c),
            _ => self.pieces.push(Piece::Arguments { index: call, text: c.into() }),
        }
    }

    /// What is held is no call; the character is the first that shows it.
    fn fail(&mut self, c: char) {
        self.release();
        self.state = if self.syntax.open.is_empty() { State::Plain } else { State::Text };
        self.step(c);
    }

    /// Makes content of what is held.
    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.beside_call = false;
        match self.pieces.last_mut() {
            Some(Piece::Content(text)) => text.push_str(&self.held),
            _ => self.pieces.push(Piece::Content(self.held.clone())),
        }
        self.held.clear();
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
