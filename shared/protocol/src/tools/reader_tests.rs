use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;

const FORMATS: [ToolFormat; 3] = [ToolFormat::Hermes, ToolFormat::Llama, ToolFormat::Mistral];

/// An answer put together from its parts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Answer {
    content: String,
    /// Names and arguments, and whether they have ended.
    calls: Vec<(String, String, bool)>,
}

impl Answer {
    fn add(&mut self, pieces: Vec<AnswerPart>) {
        for piece in pieces {
            match piece {
                AnswerPart::Content(text) => self.content += &text,
                AnswerPart::CallStart { index, name } => {
                    assert_eq!(index as usize, self.calls.len());
                    self.calls.push((name, String::new(), false));
                }
                AnswerPart::Arguments { index, text } => {
                    assert!(index as usize + 1 == self.calls.len() && !text.is_empty());
                    let (_, arguments, ended) = self.calls.last_mut().unwrap();
                    assert!(!*ended);
                    *arguments += &text;
                }
                AnswerPart::CallEnd { index } => {
                    assert_eq!(index as usize + 1, self.calls.len());
                    assert!(!std::mem::replace(&mut self.calls.last_mut().unwrap().2, true));
                }
            }
        }
    }
}

/// Reads an answer whose text may contain marks.
fn read(format: ToolFormat, parts: &[&str]) -> Answer {
    read_beside(TextBesideCalls::Formatted, format, parts)
}

fn read_beside(beside: TextBesideCalls, format: ToolFormat, parts: &[&str]) -> Answer {
    let mut reader = ToolCallReader::new(format, beside);
    let mut answer = Answer::default();
    for part in parts {
        answer.add(reader.push(part));
    }
    answer.add(reader.finish());
    assert_eq!(reader.calls() as usize, answer.calls.len());
    assert!(answer.calls.iter().all(|(.., ended)| *ended), "{answer:?}");
    assert!(reader.finish().is_empty());
    answer
}

fn answer(content: &str, calls: &[(&str, &str)]) -> Answer {
    let call = |&(name, arguments): &(&str, &str)| (name.to_owned(), arguments.to_owned(), true);
    Answer { content: content.to_owned(), calls: calls.iter().map(call).collect() }
}

#[test]
fn each_format_is_read() {
    let hermes = "Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                  <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>\n";
    assert_eq!(
        read(ToolFormat::Hermes, &[hermes]),
        answer("Let me look.", &[("f", r#"{"a": 1}"#), ("g", "{}")])
    );
    let llama = r#"{"name": "f", "parameters": {"a": "}\"{"}}; {"name": "g", "parameters": {}}"#;
    assert_eq!(read(ToolFormat::Llama, &[llama]), answer("", &[("f", r#"{"a": "}\"{"}"#), ("g", "{}")]));
    let mistral = r#" Hm. [TOOL_CALLS] [{"name": "f", "arguments": {"a": [{}]}}, {"name": "g", "arguments": {}, "id": "9"}]"#;
    assert_eq!(
        read(ToolFormat::Mistral, &[mistral]),
        answer(" Hm.", &[("f", r#"{"a": [{}]}"#), ("g", "{}")])
    );
}

#[test]
fn arguments_are_passed_on_as_they_come() {
    let mut reader = ToolCallReader::new(ToolFormat::Hermes, TextBesideCalls::Free);
    let content = |text: &str| AnswerPart::Content(text.to_owned());
    let arguments = |text: &str| AnswerPart::Arguments { index: 0, text: text.to_owned() };
    assert_eq!(reader.push("Look: \n"), [content("Look:")]);
    assert_eq!(reader.push("<b> <tool"), [content(" \n<b>")]);
    assert_eq!(reader.push("_call>{\"name\":\"f\\u0041\",\"argu"), []);
    assert_eq!(
        reader.push("ments\": {\"a"),
        [AnswerPart::CallStart { index: 0, name: "fA".to_owned() }, arguments("{\"a")]
    );
    assert_eq!(reader.push("\": "), [arguments("\": ")]);
    assert_eq!(reader.push("1}}\n</"), [arguments("1}"), AnswerPart::CallEnd { index: 0 }]);
    assert_eq!(reader.push("tool_call>\n\nDone"), [content("Done")]);
    assert_eq!(reader.push(" <"), []);
    assert_eq!(reader.finish(), [content(" <")]);
}

#[test]
fn names_may_come_last_and_other_members_are_left_out() {
    let text =
        r#"{"type": "function", "n": [-1.5e+3, null], "parameters": {"a": "é"}, "x": true ,"name": "f" }"#;
    assert_eq!(read(ToolFormat::Llama, &[text]), answer("", &[("f", r#"{"a": "é"}"#)]));
    let twice = r#"{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 2}, "name": 3}"#;
    assert_eq!(read(ToolFormat::Llama, &[twice]), answer("", &[("f", r#"{"a": 1}"#)]));
}

#[test]
fn what_is_no_call_is_content() {
    let not_calls = [
        "",
        " \n",
        "<tool_call>",
        "<tool_call> <tool_call> {",
        "<tool_call>{}</tool_call>",
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": f, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\" \"f\"}",
        "[TOOL_CALLS]",
        "[TOOL_CALLS] f",
        "[TOOL_CALLS][]",
        "[TOOL_CALLS][{]",
        "{",
        "{\"a\": 1}",
        "Use {\"name\": \"f\", \"parameters\": {}}",
        "{\"name\": \"f",
    ];
    for text in not_calls {
        for format in FORMATS {
            assert_eq!(read(format, &[text]), answer(text, &[]), "{format:?} {text:?}");
        }
    }
    // Whatever went before.
    let text = r#"a <tool_call> b <tool_call>{"name":"f","arguments":{}}</tool_call> c </tool_call>"#;
    assert_eq!(read(ToolFormat::Hermes, &[text]), answer("a <tool_call> bc </tool_call>", &[("f", "{}")]));
    let text = r#"{"name":"f","parameters":{}}; and so on"#;
    assert_eq!(read(ToolFormat::Llama, &[text]), answer("}; and so on", &[("f", "{}")]));
}

#[test]
fn an_answer_may_end_anywhere() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b\"}}\n</tool_call>";
    let known = call.find(": {").unwrap() + 3;
    let complete = call.find("}}").unwrap() + 1;
    for end in 0..=call.len() {
        let expected = match end {
            _ if end < known => answer(&call[..end], &[]),
            _ => answer("", &[("f", &call[known - 1..end.min(complete)])]),
        };
        assert_eq!(read(ToolFormat::Hermes, &[&call[..end]]), expected);
    }
    let text = r#"[TOOL_CALLS][{"name": "f", "arguments": {}}, "#;
    assert_eq!(read(ToolFormat::Mistral, &[text]), answer("", &[("f", "{}")]));
}

#[test]
fn the_beginning_of_a_call_is_no_content_where_only_a_call_can_follow() {
    let calls = [
        (ToolFormat::Hermes, "<tool_call>", "\n{\"name\": \"fun\", \"arguments\": "),
        (ToolFormat::Llama, "", "{\"name\": \"fun\", \"parameters\": "),
        (ToolFormat::Mistral, "[TOOL_CALLS]", "[{\"name\": \"fun\", \"arguments\": "),
    ];
    for (format, mark, rest) in calls {
        let call = format!("{mark}{rest}");
        for end in 0..=call.len() {
            let cut = &call[..end];
            let required = read_beside(TextBesideCalls::None, format, &[cut]);
            assert_eq!(required, Answer::default(), "{format:?} {cut}");
            // Free text may begin as a mark does, and Llama's as a call does, up to its first key.
            let begins_as_text = match format {
                ToolFormat::Llama => end < "{\"name\"".len(),
                _ => end < mark.len(),
            };
            let content = if begins_as_text { cut } else { "" };
            let free = read_beside(TextBesideCalls::Free, format, &[cut]);
            assert_eq!(free, answer(content, &[]), "{format:?} {cut}");
            assert_eq!(read(format, &[cut]), answer(cut, &[]), "{format:?} {cut}");
        }
    }
    let text = "Let me see. <tool_call>\n{\"na";
    let free = read_beside(TextBesideCalls::Free, ToolFormat::Hermes, &[text]);
    assert_eq!(free, answer("Let me see.", &[]));
    let second = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>\n{\"name\": \"g";
    for beside in [TextBesideCalls::None, TextBesideCalls::Free] {
        assert_eq!(read_beside(beside, ToolFormat::Hermes, &[second]), answer("", &[("f", "{}")]));
    }
}

/// Texts made of strings that are significant to the reader.
fn text() -> impl Strategy<Value = String> {
    let part = select(vec![
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[",
        "]",
        "{",
        "}",
        "\"",
        ":",
        ",",
        ";",
        "\\",
        " ",
        "\n",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        "\"f\"",
        "{\"name\": \"f\", \"arguments\": {",
        "{\"name\": \"f\", \"parameters\": {}}",
        "12",
        "true",
        "é",
        "<",
        "tool",
        "x",
    ]);
    prop::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
}

/// A text cut at random.
fn cut(text: &str, cuts: &[prop::sample::Index]) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(characters.len() + 1)).collect();
    at.extend([0, characters.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| characters[ends[0]..ends[1]].iter().collect()).collect()
}

fn arguments() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z\"\\\\{}\\[\\]<é🙂\n]{0,6}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"]{0,4}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    });
    let object = prop::collection::btree_map("[a-z}\"]{1,4}", value, 0..4).prop_map(|map| json!(map));
    (object, any::<bool>()).prop_map(|(object, pretty)| match pretty {
        true => serde_json::to_string_pretty(&object).unwrap(),
        false => object.to_string(),
    })
}

/// An answer as a model writes it.
fn written(format: ToolFormat, content: &str, calls: &[(String, String)]) -> String {
    let call = |key: &str, (name, arguments): &(String, String)| {
        format!("{{\"name\": \"{name}\", \"{key}\": {arguments}}}")
    };
    let each = |key: &'static str| calls.iter().map(move |one| call(key, one)).collect::<Vec<_>>();
    match format {
        ToolFormat::Hermes => each("arguments")
            .iter()
            .fold(content.to_owned(), |text, call| text + "\n<tool_call>\n" + call + "\n</tool_call>"),
        ToolFormat::Llama => each("parameters").join("; "),
        ToolFormat::Mistral => format!("{content}[TOOL_CALLS][{}]", each("arguments").join(", ")),
    }
}

proptest! {
    #[test]
    fn cuts_change_nothing_and_nothing_is_lost(
        text in text(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)
    ) {
        let parts = cut(&text, &cuts);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        for format in FORMATS {
            for beside in [TextBesideCalls::None, TextBesideCalls::Free] {
                let whole = read_beside(beside, format, &[&text]);
                prop_assert_eq!(&read_beside(beside, format, &parts), &whole);
            }
            let whole = read(format, &[&text]);
            prop_assert_eq!(&read(format, &parts), &whole);
            if whole.calls.is_empty() {
                prop_assert_eq!(&whole.content, &text);
            }
        }
    }

    #[test]
    fn calls_are_read_as_they_were_written(
        content in "[a-z<\\[{ ]{0,10}[a-z.]",
        calls in prop::collection::vec(("[a-zA-Z0-9_-]{1,8}", arguments()), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        for format in FORMATS {
            let text = written(format, &content, &calls);
            let parts = cut(&text, &cuts);
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let content = if format == ToolFormat::Llama { "" } else { &content };
            let calls: Vec<_> = calls.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            prop_assert_eq!(read(format, &parts), answer(content, &calls));
        }
    }
}
