use emberline_shared::job::Role;

use super::*;
use crate::gguf::testing::{GgufBuilder, Item};

fn conversation() -> Vec<Message> {
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    vec![
        message(Role::System, "Be brief."),
        message(Role::User, " <b>Hi</b> & \"bye\"\n"),
        message(Role::Assistant, "Hello."),
    ]
}

fn render(source: &str) -> String {
    ChatTemplate::new(source, "<s>", "</s>").unwrap().render(&conversation()).unwrap()
}

fn render_error(source: &str) -> TemplateError {
    ChatTemplate::new(source, "<s>", "</s>").unwrap().render(&conversation()).unwrap_err()
}

#[test]
fn messages_and_tokens_are_there() {
    let source = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{% endfor %}{{ eos_token }}\
                  {% if add_generation_prompt %}>{% endif %}";
    assert_eq!(render(source), "<s>[system]Be brief.[user] <b>Hi</b> & \"bye\"\n[assistant]Hello.</s>>");
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
    assert_eq!(render("{{ 'date' if strftime_now is defined else 'no date' }}"), "no date");
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
    let error = ChatTemplate::new("{% for %}", "", "").unwrap_err().to_string();
    assert!(error.contains("chat template") && error.contains("line 1") || error.contains(":1)"), "{error}");
    let error = render_error("{{ strftime_now('%d') }}").to_string();
    assert!(error.contains("strftime_now"), "{error}");
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
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    let long = Message { role: Role::User, content: "x".repeat(4 << 20) };
    assert_eq!(template.render(&[long]).unwrap().len(), (4 << 20) + "<s>user\n</s>\n".len());
    let many = vec![Message { role: Role::User, content: String::new() }; 100_000];
    assert_eq!(template.render(&many).unwrap().len(), 100_000 * "<s>user\n</s>\n".len());
}

#[test]
fn from_gguf_takes_the_template_and_its_tokens() {
    let (_folder, file) = GgufBuilder::new().with_byte_tokenizer().open();
    let prompt = ChatTemplate::from_gguf(&file).unwrap().render(&conversation()[..1]).unwrap();
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
