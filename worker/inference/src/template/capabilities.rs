//! What a template can write, found by trying: it is given conversations with words that occur nowhere
//! else, and they are looked for in the prompt.

use emberline_protocol::job::{Message, Role, Tool, ToolCall};
use emberline_protocol::tools::{AnswerPart, TextBesideCalls, ToolCallReader, ToolFormat};
use serde_json::{Map, json};

use super::conversation::NoContent;
use super::{Compiled, TemplateInput};

const TOOL: &str = "probe_tool";
const CALL: &str = "probe_call";
const KEY: &str = "probe_key";
const RESULT: &str = "probe_result";
const TEXT: &str = "probe_text";

/// What a template writes by itself; the rest is for [`super::polyfill`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// System messages.
    pub(super) system: bool,
    /// The names of those who speak in these roles.
    pub(super) names: Vec<Role>,
    /// Functions, which the model calls in this format.
    pub(super) tools: Option<ToolFormat>,
    /// Calls in messages of the assistant.
    pub(super) calls: bool,
    /// Several of them in one message.
    pub(super) parallel_calls: bool,
    /// Results of calls.
    pub(super) results: bool,
    /// What the content of a message is that has none.
    pub(super) no_content: NoContent,
    /// Functions need a description.
    pub(super) needs_descriptions: bool,
}

impl Capabilities {
    pub(super) fn find(template: &Compiled) -> Self {
        let probe = Probe { template };
        let system = probe.writes_system();
        let names = [Role::System, Role::User, Role::Assistant];
        let names = names.into_iter().filter(|&role| probe.writes_name(role)).collect();
        let spoken = Self { system, names, ..Self::default() };
        let undescribed = probe.listed(None);
        let needs_descriptions = undescribed.is_none();
        let Some(listed) = undescribed.or_else(|| probe.listed(Some("x".to_owned()))) else { return spoken };
        let mut no_content = NoContent::Empty;
        let (mut format, mut results) = probe.round(no_content);
        if format.is_none()
            && let (Some(found), its_results) = probe.round(NoContent::Null)
        {
            (no_content, format, results) = (NoContent::Null, Some(found), its_results);
        }
        let calls = format.is_some();
        // What the prompt says of calls, where earlier ones are not written.
        let says_hermes = listed.contains("<tool_call>\n{\"name\":");
        let tools = format.or(says_hermes.then_some(ToolFormat::Hermes));
        if tools.is_none() {
            return spoken;
        }
        let parallel = [question(), called(&["0", "1"]), result("0"), result("1")];
        let parallel_calls = calls && probe.with_tools(&parallel, no_content).is_some();
        Self { tools, calls, parallel_calls, results, no_content, needs_descriptions, ..spoken }
    }
}

fn said(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

fn question() -> Message {
    said(Role::User, "x")
}

/// Calls with these ids, in nine characters as Mistral's templates want them.
fn called(ids: &[&str]) -> Message {
    let call = |id: &&str| ToolCall {
        id: format!("probeid0{id}"),
        name: CALL.to_owned(),
        arguments: json!({KEY: 1}).to_string(),
    };
    Message { tool_calls: ids.iter().map(call).collect(), ..said(Role::Assistant, "") }
}

fn result(id: &str) -> Message {
    let (name, id) = (Some(CALL.to_owned()), Some(format!("probeid0{id}")));
    Message { name, tool_call_id: id, ..said(Role::Tool, RESULT) }
}

fn tool(description: Option<String>) -> Tool {
    let parameters = json!({"type": "object", "properties": {KEY: {"type": "integer", "description": "x"}}});
    let parameters = parameters.as_object().cloned().unwrap_or_default();
    Tool { name: TOOL.to_owned(), description, parameters, strict: false }
}

struct Probe<'a> {
    template: &'a Compiled,
}

impl Probe<'_> {
    fn writes(&self, messages: &[Message], word: &str) -> bool {
        let prompt = self.template.write(&TemplateInput::of(messages));
        prompt.is_ok_and(|prompt| prompt.contains(word))
    }

    /// Whether system messages are written; where nothing is written, they are no exception.
    fn writes_system(&self) -> bool {
        let with_system = [said(Role::System, TEXT), question()];
        self.writes(&with_system, TEXT) || !self.writes(&[said(Role::User, TEXT)], TEXT)
    }

    fn writes_name(&self, role: Role) -> bool {
        let named = Message { name: Some(TEXT.to_owned()), ..said(role, "y") };
        let messages = match role {
            Role::User => vec![named],
            Role::System => vec![named, question()],
            _ => vec![question(), named, question()],
        };
        self.writes(&messages, TEXT)
    }

    /// The prompt with a function, if that is in it.
    fn listed(&self, description: Option<String>) -> Option<String> {
        let listed = self.with_tool(&tool(description), &[question()], NoContent::Empty);
        listed.filter(|prompt| prompt.contains(TOOL))
    }

    fn with_tools(&self, messages: &[Message], no_content: NoContent) -> Option<String> {
        self.with_tool(&tool(Some("x".to_owned())), messages, no_content)
    }

    fn with_tool(&self, tool: &Tool, messages: &[Message], no_content: NoContent) -> Option<String> {
        let input =
            TemplateInput { tools: std::slice::from_ref(tool), no_content, ..TemplateInput::of(messages) };
        self.template.write(&input).ok()
    }

    /// The format in which the assistant's call is written, and whether its result is.
    fn round(&self, no_content: NoContent) -> (Option<ToolFormat>, bool) {
        let answered = self.with_tools(&[question(), called(&["0"]), result("0")], no_content);
        let results = answered.as_ref().is_some_and(|prompt| prompt.contains(RESULT));
        let unanswered = || self.with_tools(&[question(), called(&["0"]), question()], no_content);
        (answered.or_else(unanswered).and_then(|prompt| self.format_of(&prompt)), results)
    }

    /// The format in which the assistant's call is written.
    fn format_of(&self, prompt: &str) -> Option<ToolFormat> {
        let marked = [ToolFormat::Hermes, ToolFormat::Mistral];
        let marked = marked.into_iter().find(|&format| has_call(format, prompt));
        marked.or_else(|| {
            // Without marks it is all that the assistant says.
            let call = prompt.find(CALL)?;
            let (before, call) = prompt.split_at(prompt.get(..call)?.rfind('{')?);
            let is_answer = before.trim_end().ends_with(self.opening()?.trim_end());
            let is_llama = is_answer && call.contains("\"parameters\"") && has_call(ToolFormat::Llama, call);
            is_llama.then_some(ToolFormat::Llama)
        })
    }

    /// What opens the assistant's answer.
    fn opening(&self) -> Option<String> {
        let question = [question()];
        let input = TemplateInput::of(&question);
        let asked = self.template.write(&TemplateInput { add_generation_prompt: false, ..input }).ok()?;
        let opened = self.template.write(&input).ok()?;
        let opening = opened.strip_prefix(&asked)?;
        (!opening.trim().is_empty()).then(|| opening.to_owned())
    }
}

/// Whether a reader of this format finds the call.
fn has_call(format: ToolFormat, text: &str) -> bool {
    let mut reader = ToolCallReader::new(format, TextBesideCalls::Free);
    let pieces = reader.push(text);
    let arguments = |pieces: &[AnswerPart]| {
        let mut calls = pieces
            .iter()
            .skip_while(|piece| !matches!(piece, AnswerPart::CallStart { name, .. } if name == CALL));
        calls.next()?;
        match calls.next()? {
            AnswerPart::Arguments { text, .. } => serde_json::from_str::<Map<_, _>>(text).ok(),
            _ => None,
        }
    };
    arguments(&pieces).is_some_and(|arguments: Map<String, serde_json::Value>| arguments.contains_key(KEY))
}
