use emberline_protocol::job::Role;

use super::*;
use crate::checkpoint::gguf::testing::{GgufBuilder, Item};

fn conversation() -> Vec<Message> {
    let message = |role, content: &str| Message::new(role, content);
    vec![
        message(Role::System, "Be brief."),
        message(Role::User, " <b>Hi</b> & \"bye\"\n"),
        message(Role::Assistant, "Hello."),
    ]
}

fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
    ChatTemplate::new(source, [("bos_token", "<s>"), ("eos_token", "</s>")])
}

/// 3 February 2026, 14:05:06 UTC.
const NOW: u64 = 1_770_127_506_789;

fn render(source: &str) -> String {
    template(source).unwrap().render(&Conversation::new(&conversation(), NOW)).unwrap()
}

fn render_error(source: &str) -> TemplateError {
    template(source).unwrap().render(&Conversation::new(&conversation(), NOW)).unwrap_err()
}

#[test]
fn messages_and_tokens_are_there() {
    let source = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{% endfor %}{{ eos_token }}\
                  {% if add_generation_prompt %}>{% endif %}";
    assert_eq!(render(source), "<s>[system]Be brief.[user] <b>Hi</b> & \"bye\"\n[assistant]Hello.</s>>");
}

#[test]
fn what_the_assistant_thought_is_there_for_templates_that_read_it() {
    let mut messages = conversation();
    messages[2].reasoning = Some("Hm.".into());
    let written =
        |source: &str| template(source).unwrap().render(&Conversation::new(&messages, NOW)).unwrap();
    let reads = "{% for m in messages %}{{ m.reasoning_content | default('-') }}{% endfor %}";
    assert_eq!(written(reads), "--Hm.");
    let reads_not = "{% for m in messages[2:] %}{{ m.content }}{% endfor %}";
    assert_eq!(written(reads_not), "Hello.");
}

#[test]
fn blocks_are_trimmed_and_one_last_line_end_is_dropped() {
    let source =
        "{% for m in messages %}\n    {% if loop.first %}\n  first\n    {% endif %}\n{% endfor %}\nend\n\n";
    assert_eq!(render(source), "  first\nend\n");
}

#[test]
fn pythons_methods_slices_and_loop_controls_work() {
    let source = "{% for m in messages[1:] %}{% if m.role == 'assistant' %}{% break %}{% endif %}\
                  {{ m.content.strip().upper() }}{% endfor %}{{ messages[0].get('name', '-') }}\
                  {{ 'a,b'.split(',')[-1] }}{{ messages[::-1][0].role }}";
    assert_eq!(render(source), "<B>HI</B> & \"BYE\"-bassistant");
}

#[test]
fn state_is_carried_out_of_loops_by_namespaces() {
    let source =
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}";
    assert_eq!(render(source), "3");
}

#[test]
fn tools_and_documents_are_none() {
    assert_eq!(
        render("{% if tools is not none or documents is not none %}some{% else %}none{% endif %}"),
        "none"
    );
    // As in Python.
    assert_eq!(
        render(
            "{{ tools is iterable }} {{ messages is iterable }} {{ 'a' is iterable }} {{ {} is iterable }}"
        ),
        "False True True True"
    );
}

/// Expected values: Python's `json.dumps(…, ensure_ascii=False)`.
#[test]
fn tojson_writes_what_python_writes() {
    assert_eq!(
        render("{{ {'a': [1, 2.5, true, none], 'b': 'é<&>\"'} | tojson }}"),
        r#"{"a": [1, 2.5, true, null], "b": "é<&>\""}"#
    );
    assert_eq!(render("{{ messages[0] | tojson }}"), r#"{"role": "system", "content": "Be brief."}"#);
    assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
    assert_eq!(render("{{ {} | tojson(ensure_ascii=false) }}{{ [] | tojson }}"), "{}[]");
}

/// Expected values: Python's `json.dumps`, `ensure_ascii=False` but for the third.
#[test]
fn tojson_takes_pythons_options() {
    let render = |options: &str| {
        let value = r#"{"b": [1, {"d": [], "c": {}}], "a": "é🙂\x7f\n"}"#.replace(r"\x7f", "\u{7f}");
        render(&format!("{{{{ {value} | tojson({options}) }}}}"))
    };
    assert_eq!(
        render("indent=2"),
        "{\n  \"b\": [\n    1,\n    {\n      \"d\": [],\n      \"c\": {}\n    }\n  ],\n  \"a\": \"é🙂\u{7f}\\n\"\n}"
    );
    assert_eq!(
        render("indent=1, separators=(',', ':')"),
        "{\n \"b\":[\n  1,\n  {\n   \"d\":[],\n   \"c\":{}\n  }\n ],\n \"a\":\"é🙂\u{7f}\\n\"\n}"
    );
    assert_eq!(
        render("ensure_ascii=true"),
        "{\"b\": [1, {\"d\": [], \"c\": {}}], \"a\": \"\\u00e9\\ud83d\\ude42\\u007f\\n\"}"
    );
    assert_eq!(render("sort_keys=true"), "{\"a\": \"é🙂\u{7f}\\n\", \"b\": [1, {\"c\": {}, \"d\": []}]}");
    assert_eq!(
        render("separators=[', ', '=>']"),
        "{\"b\"=>[1, {\"d\"=>[], \"c\"=>{}}], \"a\"=>\"é🙂\u{7f}\\n\"}"
    );
    assert!(render_error("{{ [] | tojson(separators=[',']) }}").to_string().contains("two separators"));
    assert!(render_error("{{ [] | tojson(default=1) }}").to_string().contains("default"));
}

/// Expected values: Python's `datetime.strftime`.
#[test]
fn the_date_is_that_of_the_job() {
    assert_eq!(
        render("{{ strftime_now('%a %A %b %B %d %-d %e %H %I %j %m %M %p %S %y %Y %F %T %%') }}"),
        "Tue Tuesday Feb February 03 3  3 14 02 034 02 05 PM 06 26 2026 2026-02-03 14:05:06 %"
    );
    // Also where templates ask first, and inside macros.
    let source = "{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}\
                  {{ day() if strftime_now is defined }}";
    assert_eq!(render(source), "03");
}

#[test]
fn variables_are_the_templates_own() {
    let source =
        "{{ enable_thinking if enable_thinking is defined }}{{ tools is none }}{{ messages | length }}";
    let variables = [("enable_thinking", serde_json::json!(false)), ("messages", serde_json::json!([]))];
    let variables = variables.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    let messages = conversation();
    let about = Conversation { variables, ..Conversation::new(&messages, NOW) };
    assert_eq!(template(source).unwrap().render(&about).unwrap(), "FalseTrue3");
    assert_eq!(render(source), "True3");
}

#[test]
fn marks_of_what_is_generated_change_nothing() {
    let source = "a\n{% generation %}\nb {{ messages | length }}\n{%- endgeneration -%}\n c {% raw %}{% x %}{% endraw %}\
                  {%+ generation +%} d{%endgeneration%}";
    assert_eq!(render(source), "a\nb 3c {% x %} d");
    assert_eq!(source::without_generation_marks("{% generation"), "{% generation");
    assert_eq!(source::without_generation_marks("{% set generation = 1 %}é"), "{% set generation = 1 %}é");
}

#[test]
fn a_refusal_is_told_apart_wherever_it_is_raised() {
    let error = render_error("{{ raise_exception('Roles must alternate') }}");
    assert!(
        matches!(&error, TemplateError::Refused(message) if message == "Roles must alternate"),
        "{error:?}"
    );
    let error = render_error(
        "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{% for x in messages %}{{ m() }}{% endfor %}",
    );
    assert!(matches!(&error, TemplateError::Refused(message) if message == "no"), "{error:?}");
}

#[test]
fn faults_of_the_template_say_what_is_wrong() {
    let error = template("{% for %}").unwrap_err().to_string();
    assert!(error.contains("chat template") && error.contains("line 1") || error.contains(":1)"), "{error}");
    let error = render_error("{{ strftime_now('%d %Q') }}").to_string();
    assert!(error.contains("strftime_now(\"%d %Q\")"), "{error}");
    let error = render_error("{{ now() }}").to_string();
    assert!(error.contains("now"), "{error}");
    assert!(matches!(render_error("{{ messages[0].a.b }}"), TemplateError::Invalid(_)));
}

#[test]
fn work_and_memory_are_bounded() {
    let error = render_error("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    assert!(matches!(error, TemplateError::TooLong), "{error:?}");
    let doubling = "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    assert!(matches!(render_error(doubling), TemplateError::TooLong));
}

#[test]
fn the_largest_request_is_rendered() {
    let source = "{% for m in messages %}{{ bos_token + m.role + '\\n' + m.content | trim + eos_token + '\\n' }}{% endfor %}";
    let template = template(source).unwrap();
    let long = Message::new(Role::User, "x".repeat(4 << 20));
    assert_eq!(
        template.render(&Conversation::new(&[long], 0)).unwrap().len(),
        (4 << 20) + "<s>user\n</s>\n".len()
    );
    let many = vec![Message::new(Role::User, ""); 100_000];
    assert_eq!(
        template.render(&Conversation::new(&many, 0)).unwrap().len(),
        100_000 * "<s>user\n</s>\n".len()
    );
}

#[test]
fn from_gguf_takes_the_template_and_its_tokens() {
    let (_folder, file) = GgufBuilder::new().with_byte_tokenizer().open();
    let prompt = ChatTemplate::from_gguf(&file).unwrap();
    let prompt = prompt.render(&Conversation::new(&conversation()[..1], 0)).unwrap();
    assert_eq!(prompt, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n");

    let (_folder, file) = GgufBuilder::new().open();
    let error = ChatTemplate::from_gguf(&file).unwrap_err().to_string();
    assert!(error.contains("model.gguf: the metadata has no tokenizer.chat_template"), "{error}");

    let (_folder, file) = GgufBuilder::new()
        .set("tokenizer.chat_template", Item::Str("{{ bos_token }}"))
        .set("tokenizer.ggml.tokens", Item::Strs(&["a".into()]))
        .set("tokenizer.ggml.bos_token_id", Item::U32(1))
        .open();
    let error = ChatTemplate::from_gguf(&file).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.bos_token_id is 1, but there are 1 tokens"), "{error}");
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn from_a_folder_a_file_of_its_own_goes_first() {
    let from = |files: &[(&str, &str)]| {
        let template = ChatTemplate::from_hf_dir(folder(files).path())?;
        template.render(&Conversation::new(&conversation(), 0))
    };
    let config = (
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<b>"}, "eos_token": "<e>", "pad_token": null,
        "mask_token": "<m>", "chat_template": "one{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ mask_token }}"}"#,
    );
    assert_eq!(from(&[config]).unwrap(), "one<b><e><m>");
    let own = ("chat_template.jinja", "own{{ eos_token }}\n");
    assert_eq!(from(&[config, own]).unwrap(), "own<e>");
    assert_eq!(from(&[own]).unwrap(), "own");
    let named = r#"{"chat_template": [{"name": "rag", "template": "rag"}, {"name": "default", "template": "plain"}]}"#;
    assert_eq!(from(&[("tokenizer_config.json", named)]).unwrap(), "plain");
    for config in ["{}", r#"{"chat_template": [{"name": "rag", "template": "rag"}]}"#] {
        let error = from(&[("tokenizer_config.json", config)]).unwrap_err().to_string();
        assert!(error.contains("has no chat template") && error.contains("chat_template.jinja"), "{error}");
    }
    let error = from(&[("tokenizer_config.json", "{")]).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json is not valid"), "{error}");
}
