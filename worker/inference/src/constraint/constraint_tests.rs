use std::sync::LazyLock;

use emberline_protocol::job::{Constraint, Tool, ToolChoice};
use serde_json::{Map, Value, json};

use super::*;
use crate::checkpoint::gguf::testing::GgufBuilder;

/// The end token of [`GgufBuilder::with_byte_tokenizer`], whose other tokens are the bytes.
pub(super) const END: u32 = 257;

pub(super) static GRAMMARS: LazyLock<GrammarCompiler> = LazyLock::new(|| {
    let (_folder, file) = GgufBuilder::new().with_byte_tokenizer().open();
    GrammarCompiler::new(&ModelTokenizer::from_gguf(&file).unwrap()).unwrap()
});

fn constrained(constraint: Constraint) -> GenerationRequest {
    GenerationRequest { constraint: Some(constraint), ..GenerationRequest::default() }
}

pub(super) fn schema(schema: Value) -> GenerationRequest {
    constrained(Constraint::JsonSchema { schema, strict: false })
}

fn strict(schema: Value) -> GenerationRequest {
    constrained(Constraint::JsonSchema { schema, strict: true })
}

fn compile(request: &GenerationRequest, format: ToolFormat) -> Grammar {
    GRAMMARS.compile(request, format).unwrap().grammar.unwrap()
}

/// What a request does without.
fn dropped(request: &GenerationRequest) -> Vec<String> {
    GRAMMARS.compile(request, ToolFormat::Hermes).unwrap().relaxed.paths().to_vec()
}

/// How much of an answer is allowed, and whether it may end there.
fn follow(request: &GenerationRequest, format: ToolFormat, text: &str) -> (usize, bool) {
    let mut progress = compile(request, format).begin();
    for (index, byte) in text.bytes().enumerate() {
        if !progress.mask().unwrap().allowed.is_allowed(byte.into()) {
            return (index, false);
        }
        if progress.record(byte.into()).unwrap() {
            return (index + 1, true);
        }
    }
    (text.len(), progress.mask().unwrap().allowed.is_allowed(END))
}

fn assert_allows(request: &GenerationRequest, format: ToolFormat, text: &str) {
    assert_eq!(follow(request, format, text), (text.len(), true), "{text}");
}

/// The text goes wrong at the mark `¦`, which is not part of it.
fn assert_forbids(request: &GenerationRequest, format: ToolFormat, text: &str) {
    let (right, wrong) = text.split_once('¦').unwrap();
    assert_eq!(follow(request, format, &format!("{right}{wrong}")), (right.len(), false), "{text}");
}

#[test]
fn an_object_is_any_object_and_nothing_else() {
    let object = constrained(Constraint::JsonObject);
    for text in ["{}", "{\"a\": [1, {\"b\": null}],\n  \"c\": -0.5}", "{\"é\\n\":\"😀\"}"] {
        assert_allows(&object, ToolFormat::Hermes, text);
    }
    // White space is bounded, and what follows the end is nothing.
    for text in ["¦[", "¦ {", "{ ¦ ", "{\n                ¦ ", "{\"a\":1¦e9", "{\"\\¦u0061", "{\"a\":1,¦}"]
    {
        assert_forbids(&object, ToolFormat::Hermes, text);
    }
}

#[test]
fn schemas_grammars_and_expressions_are_enforced() {
    let point = schema(json!({
        "type": "object",
        "properties": { "x": { "type": "integer", "maximum": 20 }, "kind": { "enum": ["é", "b"] } },
        "required": ["x"],
    }));
    assert_allows(&point, ToolFormat::Hermes, "{\"x\": 20}");
    assert_allows(&point, ToolFormat::Hermes, "{\"x\":-3,\"kind\":\"é\"}");
    assert_forbids(&point, ToolFormat::Hermes, "{\"x\":2¦1}");
    assert_forbids(&point, ToolFormat::Hermes, "{\"¦y\":2}");
    let date = |format: &str| schema(json!({ "type": "string", "format": format }));
    for (format, right) in [
        ("date", "\"2000-02-29\""),
        ("date", "\"2023-12-31\""),
        ("time", "\"23:59:59Z\""),
        ("date-time", "\"1024-02-29T00:00:00.5+02:00\""),
    ] {
        assert_allows(&date(format), ToolFormat::Hermes, right);
    }
    assert_forbids(&date("date"), ToolFormat::Hermes, "\"1900-02-2¦9\"");
    assert_forbids(&date("date-time"), ToolFormat::Hermes, "\"2024-04-30T12:00:¦60Z\"");
    let month = constrained(Constraint::Regex("[0-9]{4}-(0[1-9]|1[0-2])".into()));
    assert_allows(&month, ToolFormat::Hermes, "2024-12");
    assert_forbids(&month, ToolFormat::Hermes, "2024-1¦3");
    let sum = constrained(Constraint::Grammar("start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/\n".into()));
    assert_allows(&sum, ToolFormat::Hermes, "1+22");
    assert_forbids(&sum, ToolFormat::Hermes, "1+¦+");
}

const PLACE: &str = "response_format.json_schema.schema";

/// Schemas that can't be enforced, the field that is at fault, and words of the reason.
fn unenforceable() -> Vec<(Value, &'static str, &'static str)> {
    let within = |schema: Value| json!({ "type": "array", "items": schema });
    vec![
        (json!({ "type": "string", "pattern": "(?=a)b" }), ".pattern", "look-around"),
        (json!({ "type": "string", "pattern": "(a)\\1" }), ".pattern", "backreferences"),
        (json!({ "type": "string", "format": "zip" }), ".format", "\"zip\", which can't be enforced"),
        (json!({ "type": "thing" }), ".type", "no type of JSON"),
        (json!({ "$ref": "#/$defs/a" }), ".$ref", "not in the schema"),
        (
            json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true }),
            ".uniqueItems",
            "can't be enforced",
        ),
        (within(json!({ "type": "integer", "minimum": 2, "maximum": 1, })), "", ""),
        (json!({ "type": "integer", "minimum": 2, "maximum": 1 }), "", "'minimum' is 2, 'maximum' is 1"),
        (
            json!({ "type": "string", "minLength": 2, "maxLength": 1 }),
            "",
            "'minLength' is 2, 'maxLength' is 1",
        ),
        (json!({ "type": "string", "enum": [1] }), "", "nothing can fulfil it"),
        (json!({ "type": "string", "pattern": "^a$", "maxLength": 0 }), "", "nothing can fulfil it"),
        (json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }), "", "may overlap"),
        (json!({ "type": "number", "multipleOf": 1.234_567_890_12 }), "", "too many digits"),
        (json!({ "$ref": "#" }), "", "nothing can fulfil it"),
    ]
}

/// Words of the grammar that a schema becomes, and not of the schema.
const INNARDS: [&str; 12] = [
    "guidance", "lark", "%json", "$defs/0", "json_any", "fuel", "lexer", "(And", "Regex", "grammar", "<",
    "\n",
];

#[test]
fn what_can_not_be_enforced_is_refused_in_clear_words_where_the_client_insists() {
    for (schema, field, reason) in unenforceable() {
        let Err(error) = GRAMMARS.compile(&strict(schema.clone()), ToolFormat::Hermes) else {
            assert_eq!(reason, "", "{schema} is enforced");
            continue;
        };
        let param = format!("{PLACE}{field}");
        assert_eq!(error.param.as_deref(), Some(&param[..]), "{schema}");
        assert!(error.message.contains(reason) && error.message.contains(&param), "{}", error.message);
        assert!(!INNARDS.iter().any(|word| error.message.contains(word)), "{}", error.message);
    }
}

#[test]
fn what_can_not_be_enforced_is_left_out_where_the_client_does_not_insist() {
    for (schema, field, reason) in unenforceable() {
        let in_object = json!({ "type": "object", "properties": { "a": { "const": 1 }, "b": schema.clone() }, "required": ["a", "b"] });
        // Within another schema, a reference to the root leads to that one.
        let is_of_root = schema.get("$ref").is_some_and(|target| target == "#");
        let requests = [
            (self::schema(schema.clone()), field.to_owned()),
            (self::schema(in_object), format!(".properties.b{field}")),
        ];
        for (request, path) in requests.into_iter().take(if is_of_root { 1 } else { 2 }) {
            let dropped = dropped(&request);
            assert_eq!(dropped.is_empty(), reason.is_empty(), "{schema}");
            let path = if is_of_root { "" } else { path.as_str() };
            assert!(
                dropped.iter().all(|dropped| dropped.starts_with(&format!("{PLACE}{path}"))),
                "{dropped:?} of {schema}"
            );
        }
    }
}

#[test]
fn the_rest_of_a_schema_is_enforced() {
    let rest = schema(json!({
        "type": "object",
        "properties": {
            "even": { "type": "integer", "minimum": 5, "maximum": 1, "multipleOf": 2 },
            "word": { "type": "string", "pattern": "^(?!b)", "maxLength": 3 },
            "list": { "type": "array", "uniqueItems": true, "items": { "enum": ["x"] } },
        },
        "required": ["even", "word", "list"],
    }));
    assert_allows(&rest, ToolFormat::Hermes, "{\"even\": 6, \"word\": \"bbb\", \"list\": [\"x\", \"x\"]}");
    assert_forbids(&rest, ToolFormat::Hermes, "{\"even\": 6, \"word\": \"bbb¦b\"");
    assert_forbids(&rest, ToolFormat::Hermes, "{\"even\": 4¦,");
    assert_forbids(&rest, ToolFormat::Hermes, "{\"even\": 7¦,");
    let properties = format!("{PLACE}.properties");
    assert_eq!(
        dropped(&rest),
        [
            format!("{properties}.word.pattern"),
            format!("{properties}.list.uniqueItems"),
            format!("{properties}.even.maximum")
        ]
    );
}

#[test]
fn expressions_and_grammars_that_can_not_be_followed_are_refused_with_the_reason() {
    for (constraint, param, reason) in [
        (Constraint::Regex("(".into()), "response_format.regex", "unclosed group"),
        (Constraint::Regex("a\\".into()), "response_format.regex", "escape"),
        (Constraint::Regex(String::new()), "response_format.regex", "empty"),
        (Constraint::Regex("\\bx".into()), "response_format.regex", "no '\\b'"),
        (Constraint::Regex("[a&&b]".into()), "response_format.regex", "nothing can fulfil it"),
        (Constraint::Grammar("start: x".into()), "response_format.grammar", "x"),
        (Constraint::Grammar("begin: \"x\"".into()), "response_format.grammar", "no start rule"),
    ] {
        let error = GRAMMARS.compile(&constrained(constraint), ToolFormat::Hermes).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some(param)));
        assert!(error.message.contains(reason) && error.message.contains(param), "{}", error.message);
        assert!(!error.message.contains('<') && !error.message.contains('\n'), "{}", error.message);
    }
}

#[test]
fn hostile_sources_are_dealt_with() {
    let links = 3000;
    let chain: Map<String, Value> = (0..links)
        .map(|link| (format!("d{link}"), json!({ "$ref": format!("#/$defs/d{}", (link + 1) % links) })))
        .collect();
    let wide: Map<String, Value> = (0..1000).map(|name| (format!("p{name}"), json!({}))).collect();
    let choices: Vec<Value> =
        (0..40).map(|n| json!({ "properties": { format!("p{n}"): { "const": n } } })).collect();
    let nested = (0..50).fold(json!({}), |inner, _| json!({ "type": "array", "items": inner }));
    for request in [
        schema(json!({ "$ref": "#/$defs/d0", "$defs": chain })),
        schema(json!({ "type": "object", "properties": wide })),
        schema(json!({ "allOf": vec![json!({ "anyOf": choices }); 10] })),
        schema(json!({ "type": "string", "minLength": 100_000_000, "pattern": "(a|b)*c.{900}" })),
        schema(json!({ "type": "array", "items": {}, "minItems": 1_000_000_000 })),
        schema(nested),
        constrained(Constraint::Regex("((a{1,900}){1,900}){1,900}b".into())),
        constrained(Constraint::Regex("(".repeat(8000) + &")".repeat(8000))),
        constrained(Constraint::Regex("(a|b)*a(a|b){60}".into())),
        constrained(Constraint::Regex("a?".repeat(5000))),
        constrained(Constraint::Grammar(format!("start: {}\"a\"{}", "(".repeat(9000), ")".repeat(9000)))),
        constrained(Constraint::Grammar("start: a\na: a a | \"x\" a | \"\"\n".into())),
        constrained(Constraint::Grammar("start: <|im_end|>".into())),
    ] {
        // Some of them can be followed; none of them takes the process with it. On schemas the client
        // doesn't insist: of each, something can be followed.
        let compiled = GRAMMARS.compile(&request, ToolFormat::Hermes);
        let is_schema = matches!(request.constraint, Some(Constraint::JsonSchema { .. }));
        assert!(compiled.is_ok() || !is_schema, "{compiled:?}");
        let Ok(Compiled { grammar: Some(grammar), .. }) = compiled else { continue };
        let mut progress = grammar.begin();
        for _ in 0..20 {
            let Ok(mask) = progress.mask() else { break };
            let Some(token) = mask.allowed.iter().find(|token| *token != END) else { break };
            if !matches!(progress.record(token), Ok(false)) {
                break;
            }
        }
    }
}

fn tools(tool_choice: ToolChoice, parallel_tool_calls: bool) -> GenerationRequest {
    let parameters = |schema: Value| schema.as_object().unwrap().clone();
    let tool = |name: &str, schema| Tool {
        name: name.to_owned(),
        description: None,
        parameters: parameters(schema),
        strict: false,
    };
    let place = json!({ "type": "object", "properties": { "city": { "$ref": "#/$defs/city" } }, "required": ["city"],
        "$defs": { "city": { "enum": ["Rome", "Oslo"] } } });
    GenerationRequest {
        tools: vec![tool("weather", place), tool("now", json!({}))],
        tool_choice,
        parallel_tool_calls,
        ..GenerationRequest::default()
    }
}

/// A call of each tool as a format writes it.
fn written(format: ToolFormat) -> [&'static str; 2] {
    match format {
        ToolFormat::Llama => {
            [r#"{"name": "weather", "parameters": {"city": "Oslo"}}"#, r#"{"name": "now", "parameters": {}}"#]
        }
        _ => [r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#, r#"{"name": "now", "arguments": {}}"#],
    }
}

fn answer(format: ToolFormat, calls: &[&str]) -> String {
    match format {
        ToolFormat::Hermes => {
            let calls = calls.iter().map(|call| format!("<tool_call>\n{call}\n</tool_call>"));
            calls.collect::<Vec<_>>().join("\n")
        }
        ToolFormat::Llama => calls.join("; "),
        ToolFormat::Mistral => format!("[TOOL_CALLS][{}]", calls.join(", ")),
    }
}

const FORMATS: [ToolFormat; 3] = [ToolFormat::Hermes, ToolFormat::Llama, ToolFormat::Mistral];

#[test]
fn calls_are_well_formed_in_every_format() {
    for format in FORMATS {
        let [weather, now] = written(format);
        let (one, two) = (answer(format, &[weather]), answer(format, &[now, weather]));
        for choice in [ToolChoice::Auto, ToolChoice::Required] {
            assert_allows(&tools(choice.clone(), true), format, &one);
            assert_allows(&tools(choice.clone(), true), format, &two);
            assert_allows(&tools(choice.clone(), false), format, &one);
            let single = answer(format, &[now]);
            assert!(follow(&tools(choice.clone(), false), format, &two).0 <= single.len());
            let wrong = one.replace("Oslo", "¦Paris");
            assert_forbids(&tools(choice.clone(), true), format, &wrong);
            assert_forbids(&tools(choice, true), format, &one.replace("weather", "we¦ll"));
        }
        let named = tools(ToolChoice::Named("now".into()), true);
        let once = answer(format, &[now]);
        assert_allows(&named, format, &once);
        assert!(follow(&named, format, &answer(format, &[now, now])).0 <= once.len());
        assert_forbids(&named, format, &one.replace("weather", "¦weather"));
    }
}

#[test]
fn text_is_free_until_a_call_begins() {
    let text = "The { \"name\" } is <tool_cal or [TOOL_CALL.\n";
    for format in FORMATS {
        assert_allows(&tools(ToolChoice::Auto, true), format, text);
        assert_allows(&tools(ToolChoice::None, true), format, text);
        assert_forbids(&tools(ToolChoice::Required, true), format, &format!("¦{text}"));
    }
    let marks = [(ToolFormat::Hermes, "<tool_call>"), (ToolFormat::Mistral, "[TOOL_CALLS]")];
    for (format, mark) in marks {
        let after = answer(format, &[written(format)[0]]);
        assert_allows(&tools(ToolChoice::Auto, true), format, &format!("Let me see. {after}"));
        assert_forbids(&tools(ToolChoice::Auto, true), format, &format!("Let me see. {mark}¦!"));
        let (most, last) = mark.split_at(mark.len() - 1);
        assert_forbids(&tools(ToolChoice::None, true), format, &format!("see {most}¦{last}"));
    }
    assert_forbids(&tools(ToolChoice::None, true), ToolFormat::Llama, " { \"name¦\"");
}

#[test]
fn an_answer_calls_or_obeys_the_response_format() {
    for constraint in [
        Constraint::Regex("(yes|no)".into()),
        Constraint::Grammar("start: W\nW: \"yes\" | \"no\"".into()),
        Constraint::JsonSchema { schema: json!({ "enum": ["yes"] }), strict: true },
    ] {
        let text = if matches!(constraint, Constraint::JsonSchema { .. }) { "\"yes\"" } else { "yes" };
        for format in FORMATS {
            let with =
                |choice| GenerationRequest { constraint: Some(constraint.clone()), ..tools(choice, true) };
            assert_allows(&with(ToolChoice::Auto), format, text);
            assert_allows(&with(ToolChoice::Auto), format, &answer(format, &written(format)));
            assert_forbids(&with(ToolChoice::Auto), format, "¦maybe");
            assert_allows(&with(ToolChoice::None), format, text);
            assert_forbids(
                &with(ToolChoice::None),
                format,
                &format!("¦{}", answer(format, &written(format))),
            );
        }
    }
}

#[test]
fn the_tool_whose_schema_is_at_fault_is_named() {
    let mut request = tools(ToolChoice::Auto, true);
    let contradiction = json!({ "a": { "type": "string", "enum": [1] } });
    request.tools[1].parameters = json!({ "properties": contradiction, "required": ["a"], "additionalProperties": false, "not": { "const": 1 } })
        .as_object()
        .unwrap()
        .clone();
    let path = "tools[1].function.parameters";
    assert_eq!(dropped(&request), [format!("{path}.not"), format!("{path}.properties.a.enum")]);
    request.tools[1].strict = true;
    let error = GRAMMARS.compile(&request, ToolFormat::Hermes).unwrap_err();
    assert_eq!(error.param, Some(format!("{path}.not")));
    request.tools[1].parameters.remove("not");
    let error = GRAMMARS.compile(&request, ToolFormat::Hermes).unwrap_err();
    assert_eq!(error.param.as_deref(), Some(path));
    assert!(error.message.contains("nothing can fulfil it"), "{}", error.message);
}

#[test]
fn an_answer_is_taken_up_where_someone_else_left_it() {
    let grammar = compile(&constrained(Constraint::JsonObject), ToolFormat::Hermes);
    let text: Vec<u32> = "{\"key\": [1, 2.5, {\"a\": null}]}".bytes().map(u32::from).collect();
    let mut first = grammar.begin();
    for (index, &token) in text.iter().enumerate() {
        let second = grammar.resume(&text[..index]).unwrap();
        assert_eq!(first.mask().unwrap().allowed, second.mask().unwrap().allowed, "after {index}");
        assert_eq!(first.record(token).unwrap(), index + 1 == text.len());
    }
    assert!(grammar.resume(&text).unwrap().is_complete());
    assert!(grammar.resume(&[u32::from(b'x')]).is_err());
}

#[test]
fn a_long_answer_is_taken_up_with_all_that_its_first_worker_had() {
    // Each character is a new state of the lexer, which one token's share would not reach.
    let long = schema(json!({ "type": "string", "pattern": "^([a-z]{1,9} )*$", "maxLength": 6000 }));
    let text = format!("\"{}", "lamp river ".repeat(500));
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let resumed = compile(&long, ToolFormat::Hermes).resume(&tokens).unwrap();
    assert!(resumed.mask().unwrap().allowed.is_allowed(u32::from(b'"')));
}

#[test]
fn addresses_are_those_that_people_have() {
    let address = schema(json!({ "type": "string", "format": "email" }));
    for allowed in ["a@x.com", "jane.q.public@x.com", "me@my-company.co.uk", "a_b+c-d@xn--bcher-kva.example"]
    {
        assert_allows(&address, ToolFormat::Hermes, &format!("\"{allowed}\""));
    }
    assert_forbids(&address, ToolFormat::Hermes, "\"a.¦.b");
    assert_forbids(&address, ToolFormat::Hermes, "\"a@b-¦.c");
    assert_forbids(&address, ToolFormat::Hermes, "\"a@b¦\"");
    let known = strict(json!({ "type": "string", "format": "email", "enum": ["me@localhost.example"] }));
    assert_allows(&known, ToolFormat::Hermes, "\"me@localhost.example\"");
}

#[test]
fn properties_come_in_the_order_of_the_schema() {
    let combined = schema(json!({
        "type": "object",
        "properties": { "own": { "type": "integer" } },
        "required": ["own", "base"],
        "allOf": [{ "$ref": "#/$defs/base" }],
        "$defs": { "base": { "type": "object", "properties": { "base": { "type": "integer" } } } },
    }));
    assert_allows(&combined, ToolFormat::Hermes, "{\"own\": 1, \"base\": 2}");
}

#[test]
fn a_token_that_is_not_allowed_is_an_error() {
    let mut progress = compile(&constrained(Constraint::JsonObject), ToolFormat::Hermes).begin();
    progress.mask().unwrap();
    let stuck = progress.record(u32::from(b'x')).unwrap_err();
    assert_eq!(stuck.to_api_error().code, ErrorCode::InvalidValue);
}
