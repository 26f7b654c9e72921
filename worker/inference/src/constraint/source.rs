//! Writes a request's constraints as a grammar in llguidance's variant of Lark.

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Constraint, GenerationRequest, Tool, ToolChoice};
use emberline_protocol::relaxed::Relaxed;
use emberline_protocol::tools::ToolFormat;

use super::schema::Schema;

/// Most calls in an answer, so that a model that repeats itself comes to an end.
const MOST_CALLS: usize = 16;
/// Any text.
const ANYTHING: &str = "/(?s:.*)/";
/// Longest sources, in bytes: compiling larger ones would keep others waiting.
const LONGEST_SCHEMA: usize = 256 << 10;
const LONGEST_GRAMMAR: usize = 128 << 10;
const LONGEST_REGEX: usize = 16 << 10;

/// What a request's answers have to obey.
#[derive(Debug, Clone)]
pub(super) struct GrammarSource<'r> {
    request: &'r GenerationRequest,
    format: ToolFormat,
    /// The functions that may be called, with the grammars of their arguments.
    calls: Vec<(&'r str, GrammarPart)>,
    /// The grammar of an answer without calls.
    answer: Option<GrammarPart>,
    /// What of it is not enforced.
    pub(super) relaxed: Relaxed,
}

/// A part of the request, with its path in it.
#[derive(Debug, Clone)]
pub(super) struct GrammarPart {
    pub(super) path: String,
    pub(super) body: PartBody,
    /// If `false`, what can't be enforced is dropped.
    pub(super) strict: bool,
}

#[derive(Debug, Clone)]
pub(super) enum PartBody {
    Schema(Schema),
    /// A grammar of the client's own.
    Grammar(String),
    /// A regular expression.
    Regex(String),
}

/// Reads a request's constraints; `None` if answers are free. `format` is how calls are written.
pub(super) fn of(
    request: &GenerationRequest,
    format: ToolFormat,
) -> Result<Option<GrammarSource<'_>>, ApiError> {
    let mut relaxed = Relaxed::default();
    let answer = match &request.constraint {
        Some(constraint) => Some(expression(constraint, &mut relaxed)?),
        None if request.tools.is_empty() => return Ok(None),
        None => None,
    };
    let callable = match &request.tool_choice {
        ToolChoice::None => Vec::new(),
        ToolChoice::Named(name) if !request.tools.is_empty() => vec![named(&request.tools, name)?],
        _ => request.tools.iter().enumerate().collect(),
    };
    let mut calls = Vec::with_capacity(callable.len());
    for (index, tool) in callable {
        calls.push((tool.name.as_str(), arguments(index, tool, &mut relaxed)?));
    }
    Ok(Some(GrammarSource { request, format, calls, answer, relaxed }))
}

impl GrammarSource<'_> {
    /// As a grammar.
    pub(super) fn lark(&self) -> String {
        if self.calls.is_empty() {
            return self.answer.as_ref().map_or_else(|| text_only(self.format), GrammarPart::alone);
        }
        let answer = self.answer.as_ref().map(GrammarPart::lark);
        let text = match self.request.tool_choice {
            ToolChoice::Auto => Some(answer.as_deref()),
            _ => None,
        };
        let mut lark = calls(self.format, text, self.request.allows_several_calls());
        for (number, (name, arguments)) in self.calls.iter().enumerate() {
            let separator = if number == 0 { "call:" } else { "   |" };
            let (open, close) = (literal(&open_call(self.format, name)), literal("}"));
            lark.push_str(&format!("{separator} {open} {} {close}\n", arguments.lark()));
        }
        lark
    }

    /// All parts of the constraints.
    pub(super) fn parts_mut(&mut self) -> impl Iterator<Item = &mut GrammarPart> {
        self.calls.iter_mut().map(|(_, part)| part).chain(&mut self.answer)
    }

    /// What the client sees of all parts together.
    pub(super) fn path(&self) -> &str {
        match (&self.calls[..], &self.answer) {
            ([(_, part)], None) | ([], Some(part)) => &part.path,
            _ => "tools",
        }
    }

    /// Drops up to `most` of the largest schemas on which the client does not insist; returns whether there
    /// were any.
    pub(super) fn give_up(&mut self, most: usize) -> bool {
        let mut given_up = Vec::new();
        let mut largest: Vec<(usize, &mut GrammarPart)> = self
            .parts_mut()
            .filter(|part| matches!(&part.body, PartBody::Schema(schema) if !part.strict && *schema != part.anything()))
            .map(|part| (part.lark().len(), part))
            .collect();
        largest.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        for (_, part) in largest.into_iter().take(most) {
            part.body = PartBody::Schema(part.anything());
            given_up.push(part.path.clone());
        }
        given_up.iter().for_each(|path| self.relaxed.push(path.as_str()));
        !given_up.is_empty()
    }
}

impl GrammarPart {
    /// As an expression.
    fn lark(&self) -> String {
        match &self.body {
            PartBody::Schema(schema) => schema.to_lark(),
            PartBody::Grammar(grammar) => format!("%lark {{\n{grammar}\n}}"),
            PartBody::Regex(regex) => format!("/{}/", llguidance::regex_to_lark(regex, "")),
        }
    }

    /// As a grammar of its own.
    pub(super) fn alone(&self) -> String {
        match &self.body {
            PartBody::Grammar(grammar) => grammar.clone(),
            _ => format!("start: {}", self.lark()),
        }
    }

    /// The schema that is left when nothing of a schema can be enforced.
    pub(super) fn anything(&self) -> Schema {
        match self.path.starts_with("tools") {
            true => Schema::of_any_object(),
            false => Schema::of_anything(),
        }
    }
}

fn expression(constraint: &Constraint, relaxed: &mut Relaxed) -> Result<GrammarPart, ApiError> {
    let (path, body, strict) = match constraint {
        Constraint::JsonObject => ("response_format", PartBody::Schema(Schema::of_any_object()), true),
        Constraint::JsonSchema { schema, strict } => {
            let path = "response_format.json_schema.schema";
            let schema = match is_short(schema.to_string().len(), *strict, path, relaxed)? {
                true => Schema::read(schema, *strict, path, relaxed)?,
                false => Schema::of_anything(),
            };
            (path, PartBody::Schema(schema), *strict)
        }
        Constraint::Grammar(grammar) => {
            let path = "response_format.grammar";
            check_length(grammar.len(), LONGEST_GRAMMAR, path)?;
            (path, PartBody::Grammar(grammar.clone()), true)
        }
        Constraint::Regex(regex) => {
            let path = "response_format.regex";
            check_length(regex.len(), LONGEST_REGEX, path)?;
            let escapes = regex.len() - regex.trim_end_matches('\\').len();
            if regex.is_empty() || escapes % 2 == 1 {
                let message = format!("'{path}' is empty or ends within an escape. Give a whole expression.");
                return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
            }
            (path, PartBody::Regex(regex.clone()), true)
        }
    };
    Ok(GrammarPart { path: path.to_owned(), body, strict })
}

fn named<'a>(tools: &'a [Tool], name: &str) -> Result<(usize, &'a Tool), ApiError> {
    tools.iter().enumerate().find(|(_, tool)| tool.name == name).ok_or_else(|| {
        let path = "tool_choice.function.name";
        let message = format!("'{path}' is '{name}', but no tool has that name. Name one of 'tools'.");
        ApiError::field(ErrorCode::InvalidValue, path, message)
    })
}

/// A call's arguments.
fn arguments(index: usize, tool: &Tool, relaxed: &mut Relaxed) -> Result<GrammarPart, ApiError> {
    let path = format!("tools[{index}].function.parameters");
    let length = serde_json::to_string(&tool.parameters).map_or(0, |text| text.len());
    let schema = match is_short(length, tool.strict, &path, relaxed)? {
        true => Schema::read_arguments(&tool.parameters, tool.strict, &path, relaxed)?,
        false => Schema::of_any_object(),
    };
    Ok(GrammarPart { path, body: PartBody::Schema(schema), strict: tool.strict })
}

/// Whether a schema is short enough. One that is not, and on which the client does not insist, is reported.
fn is_short(length: usize, strict: bool, path: &str, relaxed: &mut Relaxed) -> Result<bool, ApiError> {
    match check_length(length, LONGEST_SCHEMA, path) {
        Err(_) if !strict => {
            relaxed.push(path);
            Ok(false)
        }
        checked => checked.map(|()| true),
    }
}

fn check_length(length: usize, most: usize, path: &str) -> Result<(), ApiError> {
    if length <= most {
        return Ok(());
    }
    let message = format!("'{path}' has {length} bytes, of {most} that are allowed. Make it shorter.");
    Err(ApiError::field(ErrorCode::InvalidValue, path, message))
}

/// The beginning of a call, up to its arguments, after which comes `}`.
fn open_call(format: ToolFormat, name: &str) -> String {
    let arguments = match format {
        ToolFormat::Hermes | ToolFormat::Mistral => "arguments",
        ToolFormat::Llama => "parameters",
    };
    format!("{{\"name\": \"{name}\", \"{arguments}\": ")
}

/// Rules for answers that consist of calls (the rule `call`, which the caller adds). If `text` is not
/// `None`, an answer may also have no calls: then it follows the expression in `text`, or is any text,
/// which may also precede calls in formats that mark them.
fn calls(format: ToolFormat, text: Option<Option<&str>>, parallel: bool) -> String {
    let more = |rest: &str| match parallel {
        true => format!("({rest}){{0,{}}}", MOST_CALLS - 1),
        false => String::new(),
    };
    let mark = literal(mark(format));
    let (list, marked) = match format {
        ToolFormat::Hermes => {
            let (body, next) = ("\"\\n\" call \"\\n</tool_call>\"", "\"\\n<tool_call>\"");
            (format!("{body} {}", more(&format!("{next} {body}"))), true)
        }
        ToolFormat::Llama => (format!("call {}", more("\"; \" call")), false),
        ToolFormat::Mistral => (format!("\" \"? \"[\" call {} \"]\"", more("\", \" call")), true),
    };
    let calls = if marked { format!("{mark} list") } else { "list".to_owned() };
    let start = match text {
        None => format!("start: {calls}\n"),
        Some(Some(answer)) => format!("start: {calls} | answer\nanswer: {answer}\n"),
        Some(None) if marked => {
            format!("start: TEXT | before list\nbefore[lazy]: {ANYTHING} {mark}\n{}", text_rule(format))
        }
        Some(None) => format!("start: TEXT | list\n{}", text_rule(format)),
    };
    format!("{start}list: {list}\n")
}

/// The mark that begins calls; Llama's format has none.
fn mark(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes => "<tool_call>",
        ToolFormat::Mistral => "[TOOL_CALLS]",
        ToolFormat::Llama => "",
    }
}

fn text_only(format: ToolFormat) -> String {
    format!("start: TEXT\n{}", text_rule(format))
}

/// Text without calls.
fn text_rule(format: ToolFormat) -> String {
    let call = match format {
        ToolFormat::Hermes => "(?s:.*)<tool_call>(?s:.*)",
        ToolFormat::Mistral => "(?s:.*)\\[TOOL_CALLS\\](?s:.*)",
        ToolFormat::Llama => "[ \\t\\r\\n]*\\{[ \\t\\r\\n]*\"name\"(?s:.*)",
    };
    format!("TEXT: {ANYTHING} & ~/{call}/\n")
}

/// A string of Lark's, which are those of JSON.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
