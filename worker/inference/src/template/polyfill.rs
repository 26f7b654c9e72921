//! Rewrites messages for templates that would leave something out: messages are changed into such as the
//! template writes.
//!
//! - No functions: the system message lists them and says how they are called (as Hermes models
//!   do), calls are text of the assistant, and results are messages of the user.
//! - No system messages: they stand at the head of the user's next message.
//! - No names: `NAME: ` begins the message.
//! - One call in a message: each call, followed by its result, is a message.

use std::collections::HashMap;

use emberline_protocol::job::{Message, Role, Tool, ToolCall, ToolChoice};

use super::conversation::{Conversation, described};
use super::functions::python_json;

/// Lists the functions in the system message.
pub(super) fn list_tools_in_system(messages: &mut Vec<Message>, conversation: &Conversation<'_>) {
    let instructions = instructions(conversation);
    match messages.first_mut() {
        Some(first) if first.role == Role::System && first.content.is_empty() => first.content = instructions,
        Some(first) if first.role == Role::System => {
            first.content = format!("{}\n\n{instructions}", first.content);
        }
        _ => messages.insert(0, Message::new(Role::System, instructions)),
    }
}

fn instructions(conversation: &Conversation<'_>) -> String {
    let tools: Vec<String> = conversation.offered().iter().map(|tool: &Tool| line(tool)).collect();
    let wanted = match &conversation.tool_choice {
        ToolChoice::Required => "Answer with a function call.".to_owned(),
        ToolChoice::Named(name) => format!("Answer with a call of the function {name}."),
        ToolChoice::Auto | ToolChoice::None => {
            "Call a function only if it helps; otherwise answer in plain text.".to_owned()
        }
    };
    let most = match conversation.parallel_tool_calls {
        true => "Several calls follow one another, each in tags of its own.",
        false => "Make one call at most.",
    };
    format!(
        "You can call functions. These are their signatures, within <tools></tools>:\n\
         <tools>\n{}\n</tools>\n\n\
         To call a function, write a JSON object with its name and its arguments within \
         <tool_call></tool_call>:\n\
         <tool_call>\n{{\"name\": \"the function's name\", \"arguments\": {{\"an argument\": \"its value\"}}}}\n\
         </tool_call>\n\
         {wanted} {most} The results come within <tool_response></tool_response>.",
        tools.join("\n")
    )
}

fn line(tool: &Tool) -> String {
    python_json(&described(tool))
}

/// Turns the assistant's calls into its text.
pub(super) fn calls_as_text(messages: &mut [Message]) {
    for message in messages {
        for ToolCall { name, arguments, .. } in std::mem::take(&mut message.tool_calls) {
            if !message.content.is_empty() {
                message.content.push('\n');
            }
            let name = python_json(&name.into());
            let call = format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>");
            message.content.push_str(&call);
        }
    }
}

/// Turns results into messages of the user. Consecutive ones, and what the user says
/// then, become one message, because many templates expect roles to alternate.
pub(super) fn results_as_user_messages(messages: Vec<Message>) -> Vec<Message> {
    let mut rewritten: Vec<Message> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for mut message in messages {
        let is_result = message.role == Role::Tool;
        if is_result {
            let content = format!("<tool_response>\n{}\n</tool_response>", message.content);
            message = Message::new(Role::User, content);
        }
        match rewritten.last_mut() {
            Some(before) if after_result && message.role == Role::User => {
                before.content = format!("{}\n{}", before.content, message.content);
            }
            _ => rewritten.push(message),
        }
        after_result =
            is_result || after_result && rewritten.last().is_some_and(|last| last.role == Role::User);
    }
    rewritten
}

/// Moves system messages to the head of the user's next message.
pub(super) fn merge_system_into_user(messages: Vec<Message>) -> Vec<Message> {
    let mut folded = Vec::with_capacity(messages.len());
    let mut waiting: Vec<String> = Vec::new();
    for mut message in messages {
        match message.role {
            Role::System => {
                waiting.push(message.content);
                continue;
            }
            Role::User => {
                waiting.push(std::mem::take(&mut message.content));
                message.content = waiting.join("\n\n");
                waiting.clear();
            }
            _ => {}
        }
        folded.push(message);
    }
    if !waiting.is_empty() {
        folded.push(Message::new(Role::User, waiting.join("\n\n")));
    }
    folded
}

/// Moves a speaker's name into the text, as a prefix.
pub(super) fn name_as_prefix(message: &mut Message) {
    if let Some(name) = message.name.take() {
        message.content = format!("{name}: {}", message.content);
    }
}

/// Gives results without a name the name of the called function.
pub(super) fn name_results(messages: &mut [Message]) {
    let mut names: HashMap<String, String> = HashMap::new();
    for message in messages {
        names.extend(message.tool_calls.iter().map(|call| (call.id.clone(), call.name.clone())));
        if message.role == Role::Tool && message.name.is_none() {
            message.name = message.tool_call_id.as_ref().and_then(|id| names.get(id).cloned());
        }
    }
}

/// Splits messages with several calls into one for each, which its result follows.
pub(super) fn split_parallel_calls(messages: Vec<Message>) -> Vec<Message> {
    let mut parted = Vec::with_capacity(messages.len());
    let mut rest = messages.into_iter().peekable();
    while let Some(mut message) = rest.next() {
        if message.tool_calls.len() < 2 {
            parted.push(message);
            continue;
        }
        let calls = std::mem::take(&mut message.tool_calls);
        let mut results = Vec::new();
        while let Some(result) = rest.next_if(|next| next.role == Role::Tool) {
            results.push(result);
        }
        for call in calls {
            let is_its = |result: &Message| result.tool_call_id.as_ref() == Some(&call.id);
            let its = results.iter().position(is_its).map(|position| results.remove(position));
            parted.push(Message { tool_calls: vec![call], ..message.clone() });
            parted.extend(its);
            message.content.clear();
        }
        parted.extend(results);
    }
    parted
}

/// Shortens ids: Mistral's templates accept only ids of nine letters and digits.
pub(super) fn shorten_ids(messages: &mut [Message]) {
    let mut short: HashMap<String, String> = HashMap::new();
    let mut shorten = |id: &mut String| {
        let next = short.len();
        id.clone_from(short.entry(id.clone()).or_insert_with(|| format!("call{next:05}")));
    };
    for message in messages {
        message.tool_calls.iter_mut().for_each(|call| shorten(&mut call.id));
        message.tool_call_id.iter_mut().for_each(&mut shorten);
    }
}
