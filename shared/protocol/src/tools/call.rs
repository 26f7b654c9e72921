//! One call as a model writes it: a JSON object with a name and arguments, read character by
//! character, so that arguments can be passed on while they are written.

use std::mem::take;

/// Reads one call, from behind the opening brace of its object.
///
/// Members other than the name and the arguments are read and left out.
#[derive(Debug, Default)]
pub(super) struct CallObject {
    place: Place,
    /// The key or name that is being read, as it is written.
    raw: String,
    key: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    started: bool,
}

/// What a character means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More has to come.
    Wait,
    /// The name is known, and the character begins the arguments.
    Start(String),
    /// The character belongs to the arguments.
    Argument,
    /// The same, and it is their last.
    LastArgument,
    /// The arguments came first, and now the name is known, too.
    StartWith(String, String),
    /// The object of a call ends.
    End,
    /// This is no call; if it has started, what follows its arguments is none of it.
    Malformed,
}

/// What comes next.
#[derive(Debug, Default, Clone, Copy)]
enum Place {
    #[default]
    Key,
    InKey(Scan),
    Colon,
    Value,
    InValue(Member, Scan),
    AfterValue,
}

#[derive(Debug, Clone, Copy)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// Where a value ends: strings by quotes, objects and lists by brackets. What lies between is not
/// looked at.
#[derive(Debug, Default, Clone, Copy)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// A value whose first character this is.
    fn new(first: char) -> Self {
        let mut scan = Self::default();
        scan.ends_with(first);
        scan
    }

    /// The value is a number, true, false or null.
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
    /// Whether its name and the beginning of its arguments are known.
    pub(super) fn has_started(&self) -> bool {
        self.started
    }

    /// Whether the key of its name is there.
    pub(super) fn has_name_key(&self) -> bool {
        self.key == "name" || self.name.is_some()
    }

    /// Whether its arguments have begun to be passed on, and are not complete.
    pub(super) fn is_in_arguments(&self) -> bool {
        self.started && matches!(self.place, Place::InValue(Member::Arguments, _))
    }

    pub(super) fn step(&mut self, c: char) -> Step {
        match self.place {
            Place::InKey(scan) => self.in_key(scan, c),
            Place::InValue(_, scan) if scan.is_word() => {
                if is_in_word(c) {
                    return Step::Wait;
                }
                self.place = Place::AfterValue;
                self.step(c)
            }
            Place::InValue(member, scan) => self.in_value(member, scan, c),
            _ if c.is_ascii_whitespace() => Step::Wait,
            Place::Key if c == '"' => {
                self.raw = c.into();
                self.go(Place::InKey(Scan::new(c)))
            }
            Place::Colon if c == ':' => self.go(Place::Value),
            Place::Value => self.begin_value(c),
            Place::AfterValue if c == ',' => self.go(Place::Key),
            Place::AfterValue if c == '}' && self.started => Step::End,
            _ => Step::Malformed,
        }
    }

    fn go(&mut self, place: Place) -> Step {
        self.place = place;
        Step::Wait
    }

    fn in_key(&mut self, mut scan: Scan, c: char) -> Step {
        self.raw.push(c);
        if !scan.ends_with(c) {
            return self.go(Place::InKey(scan));
        }
        let Ok(key) = serde_json::from_str(&self.raw) else { return Step::Malformed };
        self.key = key;
        self.go(Place::Colon)
    }

    fn begin_value(&mut self, c: char) -> Step {
        let begin = |member| Place::InValue(member, Scan::new(c));
        match (self.key.as_str(), c) {
            // The first one counts.
            ("name", '"') if self.name.is_none() => {
                self.raw = c.into();
                self.go(begin(Member::Name))
            }
            ("arguments" | "parameters", '{') if self.early.is_none() && !self.started => {
                self.place = begin(Member::Arguments);
                let Some(name) = &self.name else {
                    self.early = Some(c.into());
                    return Step::Wait;
                };
                self.started = true;
                Step::Start(name.clone())
            }
            ("name", _) if self.name.is_none() => Step::Malformed,
            ("arguments" | "parameters", _) if self.early.is_none() && !self.started => Step::Malformed,
            (_, '"' | '{' | '[') => self.go(begin(Member::Other)),
            _ if is_in_word(c) => self.go(begin(Member::Other)),
            _ => Step::Malformed,
        }
    }

    fn in_value(&mut self, member: Member, mut scan: Scan, c: char) -> Step {
        let ended = scan.ends_with(c);
        self.place = if ended { Place::AfterValue } else { Place::InValue(member, scan) };
        match member {
            Member::Other => Step::Wait,
            Member::Arguments => match &mut self.early {
                Some(early) => {
                    early.push(c);
                    Step::Wait
                }
                None if ended => Step::LastArgument,
                None => Step::Argument,
            },
            Member::Name => {
                self.raw.push(c);
                if ended { self.end_name() } else { Step::Wait }
            }
        }
    }

    fn end_name(&mut self) -> Step {
        match serde_json::from_str::<String>(&self.raw) {
            Ok(name) if !name.is_empty() => {
                self.name = Some(name.clone());
                let Some(early) = &mut self.early else { return Step::Wait };
                self.started = true;
                Step::StartWith(name, take(early))
            }
            _ => Step::Malformed,
        }
    }
}
