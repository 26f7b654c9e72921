//! An incremental parser of one tool call: a JSON object with a name and arguments. It reads single
//! characters, so that arguments can be streamed while the model writes them.

use std::mem::take;

/// Parses one call, from the character after its object's opening brace.
///
/// Members other than the name and the arguments are skipped.
#[derive(Debug, Default)]
pub(super) struct CallObject {
    expected: Expected,
    /// The key or name that is being read, as JSON text.
    raw: String,
    key: String,
    name: Option<String>,
    /// Arguments that precede the name.
    early_arguments: Option<String>,
    started: bool,
}

/// What a character completes or belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallStep {
    /// More characters are needed.
    Wait,
    /// The name is known, and the character begins the arguments.
    Start(String),
    /// The character belongs to the arguments.
    Argument,
    /// The character is the last of the arguments.
    LastArgument,
    /// The name is known now, after the arguments: (name, arguments).
    StartWith(String, String),
    /// The call's object ends.
    End,
    /// This is not a call. If a call has started, the text after its arguments does not belong to it.
    Malformed,
}

/// What the parser expects next.
#[derive(Debug, Default, Clone, Copy)]
enum Expected {
    #[default]
    Key,
    InKey(ValueScan),
    Colon,
    Value,
    InValue(Member, ValueScan),
    AfterValue,
}

#[derive(Debug, Clone, Copy)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// Finds the end of a JSON value: of strings by quotes, of objects and arrays by brackets. It does not
/// validate what is between them.
#[derive(Debug, Default, Clone, Copy)]
struct ValueScan {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl ValueScan {
    /// Starts a value with its first character.
    fn new(first: char) -> Self {
        let mut scan = Self::default();
        scan.ends_with(first);
        scan
    }

    /// Whether the value is a number, true, false or null.
    fn is_word(self) -> bool {
        self.depth == 0 && !self.in_string
    }

    /// Whether the value ends with this character.
    fn ends_with(&mut self, c: char) -> bool {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth = self.depth.saturating_add(1),
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0 && !self.in_string
    }
}

fn is_in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.')
}

impl CallObject {
    /// Whether the name is known and the arguments have begun.
    pub(super) fn has_started(&self) -> bool {
        self.started
    }

    /// Whether the key of the name has been read.
    pub(super) fn has_name_key(&self) -> bool {
        self.key == "name" || self.name.is_some()
    }

    /// Whether the arguments are being streamed and are not complete.
    pub(super) fn is_in_arguments(&self) -> bool {
        self.started && matches!(self.expected, Expected::InValue(Member::Arguments, _))
    }

    /// Reads the next character.
    pub(super) fn step(&mut self, c: char) -> CallStep {
        match self.expected {
            Expected::InKey(scan) => self.in_key(scan, c),
            Expected::InValue(_, scan) if scan.is_word() => {
                if is_in_word(c) {
                    return CallStep::Wait;
                }
                self.expected = Expected::AfterValue;
                self.step(c)
            }
            Expected::InValue(member, scan) => self.in_value(member, scan, c),
            _ if c.is_ascii_whitespace() => CallStep::Wait,
            Expected::Key if c == '"' => {
                self.raw = c.into();
                self.expect_next(Expected::InKey(ValueScan::new(c)))
            }
            Expected::Colon if c == ':' => self.expect_next(Expected::Value),
            Expected::Value => self.begin_value(c),
            Expected::AfterValue if c == ',' => self.expect_next(Expected::Key),
            Expected::AfterValue if c == '}' && self.started => CallStep::End,
            _ => CallStep::Malformed,
        }
    }

    fn expect_next(&mut self, expected: Expected) -> CallStep {
        self.expected = expected;
        CallStep::Wait
    }

    fn in_key(&mut self, mut scan: ValueScan, c: char) -> CallStep {
        self.raw.push(c);
        if !scan.ends_with(c) {
            return self.expect_next(Expected::InKey(scan));
        }
        let Ok(key) = serde_json::from_str(&self.raw) else { return CallStep::Malformed };
        self.key = key;
        self.expect_next(Expected::Colon)
    }

    fn begin_value(&mut self, c: char) -> CallStep {
        let begin = |member| Expected::InValue(member, ValueScan::new(c));
        match (self.key.as_str(), c) {
            // Of several names or arguments, the first counts.
            ("name", '"') if self.name.is_none() => {
                self.raw = c.into();
                self.expect_next(begin(Member::Name))
            }
            ("arguments" | "parameters", '{') if self.early_arguments.is_none() && !self.started => {
                self.expected = begin(Member::Arguments);
                let Some(name) = &self.name else {
                    self.early_arguments = Some(c.into());
                    return CallStep::Wait;
                };
                self.started = true;
                CallStep::Start(name.clone())
            }
            ("name", _) if self.name.is_none() => CallStep::Malformed,
            ("arguments" | "parameters", _) if self.early_arguments.is_none() && !self.started => {
                CallStep::Malformed
            }
            (_, '"' | '{' | '[') => self.expect_next(begin(Member::Other)),
            _ if is_in_word(c) => self.expect_next(begin(Member::Other)),
            _ => CallStep::Malformed,
        }
    }

    fn in_value(&mut self, member: Member, mut scan: ValueScan, c: char) -> CallStep {
        let ended = scan.ends_with(c);
        self.expected = if ended { Expected::AfterValue } else { Expected::InValue(member, scan) };
        match member {
            Member::Other => CallStep::Wait,
            Member::Arguments => match &mut self.early_arguments {
                Some(early) => {
                    early.push(c);
                    CallStep::Wait
                }
                None if ended => CallStep::LastArgument,
                None => CallStep::Argument,
            },
            Member::Name => {
                self.raw.push(c);
                if ended { self.end_name() } else { CallStep::Wait }
            }
        }
    }

    fn end_name(&mut self) -> CallStep {
        match serde_json::from_str::<String>(&self.raw) {
            Ok(name) if !name.is_empty() => {
                self.name = Some(name.clone());
                let Some(early) = &mut self.early_arguments else { return CallStep::Wait };
                self.started = true;
                CallStep::StartWith(name, take(early))
            }
            _ => CallStep::Malformed,
        }
    }
}
