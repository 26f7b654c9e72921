//! What an answer has to obey, written in llguidance's variant of Lark.

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::job::{Constraint, GenerationRequest, Tool, ToolChoice};
use emberline_shared::tools::ToolFormat;
use serde_json::json;

use super::schema::{Schema, of_arguments};

/// Calls in one answer at most: a model that repeats itself comes to an end.
const MOST_CALLS: usize = 16;
/// Any text.
const ANYTHING: &str = "/(?s:.*)/";
/// Larger sources are refused, in bytes: what takes long to compile keeps others waiting.
const LONGEST_SCHEMA: usize = 256 << 10;
const LONGEST_GRAMMAR: usize = 128 << 10;
const LONGEST_REGEX: usize = 16 << 10;

/// A grammar, and which parts of the request it was made of.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its text.
    pub(super) lark: String,
    /// Each part as a grammar of its own, with its path in the request: the one that can't be
    /// compiled is to blame.
    pub(super) parts: Vec<(String, String)>,
}

/// The grammar of a request's answers; `None` if they may be anything. Functions are called as
/// `format` says.
pub(super) fn of(request: &GenerationRequest, format: ToolFormat) -> Result<Option<Source>, ApiError> {
    let constraint = request.constraint.as_ref().map(expression).transpose()?;
    let answer =
        |answer: Part| Source { lark: answer.alone(), parts: vec![(answer.path.clone(), answer.alone())] };
    if request.tools.is_empty() {
        return Ok(constraint.map(answer));
    }
    let tools = match &request.tool_choice {
        ToolChoice::None => {
            let none = || Source { lark: text_only(format), parts: Vec::new() };
            return Ok(Some(constraint.map_or_else(none, answer)));
        }
        ToolChoice::Named(name) => vec![named(&request.tools, name)?],
        ToolChoice::Auto | ToolChoice::Required => request.tools.iter().enumerate().collect(),
    };
    let arguments =
        tools.iter().map(|(index, tool)| arguments(*index, tool)).collect::<Result<Vec<_>, _>>()?;
    let mut parts: Vec<_> = arguments.iter().map(|part| (part.path.clone(), part.alone())).collect();
    let text = match request.tool_choice {
        ToolChoice::Auto => Some(constraint.as_ref()),
        _ => None,
    };
    let mut lark =
        calls(format, text.map(|text| text.map(|part| part.lark.as_str())), request.allows_several_calls());
    for (number, ((_, tool), arguments)) in tools.iter().zip(&arguments).enumerate() {
        let separator = if number == 0 { "call:" } else { "   |" };
        let (open, close) = (literal(&open_call(format, &tool.name)), literal("}"));
        lark.push_str(&format!("{separator} {open} {} {close}\n", arguments.lark));
    }
    parts.extend(constraint.map(|part| (part.path.clone(), part.alone())));
    Ok(Some(Source { lark, parts }))
}

/// Something that the request asks for, as an expression, and its path in the request.
struct Part {
    path: String,
    lark: String,
}

impl Part {
    /// As a grammar of its own.
    fn alone(&self) -> String {
        match self.lark.strip_prefix(NESTED).and_then(|rest| rest.strip_suffix(NESTED_END)) {
            Some(grammar) => grammar.to_owned(),
            None => format!("start: {}", self.lark),
        }
    }
}

const NESTED: &str = "%lark {\n";
const NESTED_END: &str = "\n}";

fn expression(constraint: &Constraint) -> Result<Part, ApiError> {
    let (path, lark) = match constraint {
        Constraint::JsonObject => {
            let path = "response_format";
            (path, Schema::new(json!({ "type": "object" }), false, path)?.to_lark())
        }
        Constraint::JsonSchema { schema, strict } => {
            let path = "response_format.json_schema.schema";
            check_length(schema.to_string().len(), LONGEST_SCHEMA, path)?;
            (path, Schema::new(schema.clone(), *strict, path)?.to_lark())
        }
        Constraint::Grammar(grammar) => {
            let path = "response_format.grammar";
            check_length(grammar.len(), LONGEST_GRAMMAR, path)?;
            (path, format!("{NESTED}{grammar}{NESTED_END}"))
        }
        Constraint::Regex(regex) => {
            let path = "response_format.regex";
            check_length(regex.len(), LONGEST_REGEX, path)?;
            let escapes = regex.len() - regex.trim_end_matches('\\').len();
            if regex.is_empty() || escapes % 2 == 1 {
                let message = format!("'{path}' is empty or ends within an escape. Give a whole expression.");
                return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
            }
            (path, format!("/{}/", llguidance::regex_to_lark(regex, "")))
        }
    };
    Ok(Part { path: path.to_owned(), lark })
}

fn named<'a>(tools: &'a [Tool], name: &str) -> Result<(usize, &'a Tool), ApiError> {
    tools.iter().enumerate().find(|(_, tool)| tool.name == name).ok_or_else(|| {
        let path = "tool_choice.function.name";
        let message = format!("'{path}' is '{name}', but no tool has that name. Name one of 'tools'.");
        ApiError::field(ErrorCode::InvalidValue, path, message)
    })
}

/// A call's arguments.
fn arguments(index: usize, tool: &Tool) -> Result<Part, ApiError> {
    let path = format!("tools[{index}].function.parameters");
    let schema = of_arguments(&tool.parameters, &path)?;
    check_length(schema.to_string().len(), LONGEST_SCHEMA, &path)?;
    let lark = Schema::new(schema, tool.strict, &path)?.to_lark();
    Ok(Part { path, lark })
}

fn check_length(length: usize, most: usize, path: &str) -> Result<(), ApiError> {
    if length <= most {
        return Ok(());
    }
    let message = format!("'{path}' has {length} bytes, of {most} that are allowed. Make it shorter.");
    Err(ApiError::field(ErrorCode::InvalidValue, path, message))
}

/// A call up to its arguments. What comes after them is `}`.
fn open_call(format: ToolFormat, name: &str) -> String {
    let arguments = match format {
        ToolFormat::Hermes | ToolFormat::Mistral => "arguments",
        ToolFormat::Llama => "parameters",
    };
    format!("{{\"name\": \"{name}\", \"{arguments}\": ")
}

/// Rules for answers made of the rule `call`, which is to follow. If `text` is not `None`, an answer
/// may do without calls: it is then what the expression in it says, or else any text, which may also
/// come before the calls where the format has a mark for them.
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

/// What calls begin with; for Llama's nothing but their own beginning.
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
