use emberline_protocol::job::{ToolCall, ToolChoice};
use serde_json::json;

use super::*;

const PLAIN: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]";
const QUESTION: &str = "Weather?";

fn hermes() -> String {
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}\
     {% for m in messages %}[{{ m.role }}]{{ m.content }}\
     {% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}\
     {% if add_generation_prompt %}[assistant]{% endif %}"
        .to_owned()
}

/// Each call is the answer; there is one in a message.
fn llama() -> String {
    let call = "{% if m.tool_calls | length > 1 %}{{ raise_exception('One!') }}{% endif %}\
                {{ '{\"name\": \"' ~ m.tool_calls[0].function.name ~ '\", \"parameters\": ' \
                ~ m.tool_calls[0].function.arguments | tojson ~ '}' }}";
    hermes().replace(
        "{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}",
        &format!("{{% if m.tool_calls %}}{call}{{% else %}}{{{{ m.content }}}}{{% endif %}}"),
    )
}

fn mistral() -> String {
    hermes().replace(
        "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}",
        "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}\
         {{ c.function | tojson }}{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}\
         {{ ', ' if not loop.last }}{% endfor %}]{% endif %}\
         {% if m.role == 'tool' %}({{ m.name }} {{ m.tool_call_id }}){% endif %}",
    )
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, []).unwrap()
}

fn tool() -> Tool {
    let parameters = json!({"type": "object", "properties": {"place": {"type": "string"}}});
    let parameters = parameters.as_object().unwrap().clone();
    Tool { name: "weather".to_owned(), description: None, parameters, strict: true }
}

const TOOL_LINE: &str = r#"{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}"#;

fn call(id: &str, place: &str) -> ToolCall {
    let arguments = format!(r#"{{"place": "{place}"}}"#);
    ToolCall { id: id.to_owned(), name: "weather".to_owned(), arguments }
}

fn result(id: &str, content: &str) -> Message {
    Message { tool_call_id: Some(id.to_owned()), ..Message::new(Role::Tool, content) }
}

/// A question, two calls, and their results in the other order.
fn round() -> Vec<Message> {
    let tool_calls = vec![call("call_1", "A"), call("call_2", "B")];
    vec![
        Message::new(Role::User, QUESTION),
        Message { tool_calls, ..Message::new(Role::Assistant, "Look:") },
        result("call_2", "rain"),
        result("call_1", "sun"),
    ]
}

fn prompt(source: &str, messages: &[Message], tools: &[Tool]) -> String {
    template(source).render(&Conversation { tools, ..Conversation::new(messages, 0) }).unwrap()
}

#[test]
fn a_format_is_known_by_what_the_template_writes() {
    let formats = [
        (hermes(), Some(ToolFormat::Hermes)),
        (llama(), Some(ToolFormat::Llama)),
        (mistral(), Some(ToolFormat::Mistral)),
        (PLAIN.to_owned(), None),
        // Functions are listed, but calls are written in none of these ways.
        (hermes().replace("<tool_call>{{ c.function | tojson }}", "<tool_call>{{ c.function.name }}"), None),
        (mistral().replace("[TOOL_CALLS][", "[TOOL_CALLS]"), None),
        (llama().replace("parameters", "args"), None),
        // Functions are not listed.
        (hermes().replace("{% for t in tools or [] %}{{ t | tojson }}{% endfor %}", ""), None),
    ];
    for (source, format) in formats {
        assert_eq!(template(&source).capabilities.tools, format, "{source}");
        assert_eq!(template(&source).tool_format(), format.unwrap_or(ToolFormat::Hermes), "{source}");
    }
}

#[test]
fn a_template_with_tools_is_given_them_as_they_are() {
    assert_eq!(
        prompt(&hermes(), &round(), &[tool()]),
        format!(
            "{TOOL_LINE}[user]Weather?[assistant]Look:\
             <tool_call>{{\"name\": \"weather\", \"arguments\": {{\"place\": \"A\"}}}}</tool_call>\
             <tool_call>{{\"name\": \"weather\", \"arguments\": {{\"place\": \"B\"}}}}</tool_call>\
             [tool]rain[tool]sun[assistant]"
        )
    );
    // A call whose arguments are no object stays what it was.
    let bad = Message {
        tool_calls: vec![ToolCall { arguments: "{".to_owned(), ..call("c", "") }],
        ..Message::new(Role::Assistant, "")
    };
    assert_eq!(
        prompt(&hermes(), &[bad], &[]),
        "[assistant]<tool_call>{\"name\": \"weather\", \"arguments\": \"{\"}</tool_call>[assistant]"
    );
}

#[test]
fn where_one_call_fits_into_a_message_each_gets_its_own() {
    let expected = "[user]Weather?[assistant]{\"name\": \"weather\", \"parameters\": {\"place\": \"A\"}}[tool]sun\
                    [assistant]{\"name\": \"weather\", \"parameters\": {\"place\": \"B\"}}[tool]rain[assistant]";
    assert_eq!(prompt(&llama(), &round(), &[]), expected);
}

#[test]
fn ids_are_made_as_short_as_the_template_wants_them_and_results_are_named() {
    let prompt = prompt(&mistral(), &round(), &[]);
    assert!(
        prompt.ends_with("[tool]rain(weather call00001)[tool]sun(weather call00000)[assistant]"),
        "{prompt}"
    );
}

#[test]
fn tools_that_may_not_be_called_are_not_told() {
    for source in [hermes(), PLAIN.to_owned()] {
        let messages = [Message::new(Role::User, QUESTION)];
        let tools = [tool()];
        let about =
            Conversation { tools: &tools, tool_choice: ToolChoice::None, ..Conversation::new(&messages, 0) };
        assert_eq!(template(&source).render(&about).unwrap(), "[user]Weather?[assistant]");
    }
}

#[test]
fn a_template_without_tools_has_them_in_the_system_message() {
    let system = |messages: &[Message], tool_choice, parallel_tool_calls| {
        let tools = [tool()];
        let about = Conversation {
            tools: &tools,
            tool_choice,
            parallel_tool_calls,
            ..Conversation::new(messages, 0)
        };
        let prompt = template(PLAIN).render(&about).unwrap();
        let (system, rest) = prompt.strip_prefix("[system]").unwrap().split_once("[user]").unwrap();
        assert_eq!(rest, "Weather?[assistant]");
        system.to_owned()
    };
    let asked = [Message::new(Role::User, QUESTION)];
    let free = system(&asked, ToolChoice::Auto, true);
    assert!(
        free.contains(&format!("<tools>\n{TOOL_LINE}\n</tools>")) && free.contains("<tool_call>"),
        "{free}"
    );
    assert!(free.contains("only if it helps") && free.contains("Several calls"), "{free}");
    let briefed = [Message::new(Role::System, "Be brief."), asked[0].clone()];
    assert_eq!(system(&briefed, ToolChoice::Auto, true), format!("Be brief.\n\n{free}"));
    let one = system(&asked, ToolChoice::Required, false);
    assert!(one.contains("Answer with a function call.") && one.contains("one call at most"), "{one}");
    let named = system(&asked, ToolChoice::Named("weather".to_owned()), true);
    assert!(named.contains("a call of the function weather"), "{named}");
}

#[test]
fn a_template_without_tools_has_calls_and_results_as_text() {
    let mut messages = round();
    messages.push(Message::new(Role::User, "And?"));
    assert_eq!(
        prompt(PLAIN, &messages, &[]),
        "[user]Weather?[assistant]Look:\n\
         <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"A\"}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"B\"}}\n</tool_call>\
         [user]<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>\nAnd?[assistant]"
    );
}

#[test]
fn system_messages_go_to_the_user_where_there_are_none() {
    let messages = [
        Message::new(Role::System, "Be brief."),
        Message::new(Role::System, "Be kind."),
        Message::new(Role::User, "Hi"),
        Message::new(Role::System, "Now!"),
    ];
    let refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
    let skips = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    for source in [&format!("{refuses}{PLAIN}"), skips] {
        let prompt = prompt(source, &messages, &[]);
        assert_eq!(prompt.trim_end_matches("[assistant]"), "[user]Be brief.\n\nBe kind.\n\nHi[user]Now!");
    }
}

#[test]
fn names_are_the_templates_or_else_part_of_the_text() {
    let named = |role, content| Message { name: Some("Bo".to_owned()), ..Message::new(role, content) };
    let messages = [named(Role::User, "Hi"), named(Role::Assistant, "Yes?")];
    assert_eq!(prompt(PLAIN, &messages, &[]), "[user]Bo: Hi[assistant]Bo: Yes?[assistant]");
    let of_users = "{% for m in messages %}[{{ m.name if m.name and m.role == 'user' else m.role }}]\
                    {{ m.content }}{% endfor %}";
    assert_eq!(prompt(of_users, &messages, &[]), "[Bo]Hi[assistant]Bo: Yes?");
}

#[test]
fn what_a_template_needs_it_gets() {
    let described =
        hermes().replace("{{ t | tojson }}", "{{ '- ' + t.function.name + t.function.description }}");
    let messages = [Message::new(Role::User, QUESTION)];
    assert_eq!(prompt(&described, &messages, &[tool()]), "- weather[user]Weather?[assistant]");
    let by_none =
        hermes().replace("{% for c in m.tool_calls %}", "{% for c in m.tool_calls if m.content is none %}");
    let silent = Message { tool_calls: vec![call("c", "A")], ..Message::new(Role::Assistant, "") };
    let prompt = prompt(&by_none, &[silent], &[]);
    assert!(prompt.contains("<tool_call>{\"name\": \"weather\""), "{prompt}");
}

#[test]
fn requests_set_the_variables_that_the_template_reads() {
    let template = template(
        "{% if enable_thinking %}x{% endif %}{% set effort = effort | default('low') %}{% set own = 1 %}\
         {{ bos_token ~ own ~ effort }}{% for m in messages %}{{ m.content }}{% endfor %}{{ documents }}{{ range(1) }}",
    );
    for known in ["enable_thinking", "effort", "documents"] {
        assert!(template.reads(known), "{known}");
    }
    for unknown in ["own", "bos_token", "messages", "tools", "range", "verbosity", "m", "strftime_now"] {
        assert!(!template.reads(unknown), "{unknown}");
    }
}
