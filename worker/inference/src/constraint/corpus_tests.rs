use std::fmt::Write;

use emberline_protocol::job::{Constraint, Tool, ToolChoice};
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::Value;

use super::tests::GRAMMARS;
use super::walk_tests::walk;
use super::*;

#[path = "../../tests/schemas/corpus.rs"]
mod corpus;

/// What is dropped of each schema.
const DROPPED: &str = include_str!("../../tests/schemas/relaxed.json");
const SCHEMA: &str = "response_format.json_schema.schema";
const PARAMETERS: &str = "tools[0].function.parameters";

/// Walks through each schema as a response format and as the arguments of a function.
const WALKS: usize = 5;

fn as_answer(schema: &Value) -> GenerationRequest {
    let constraint = Constraint::JsonSchema { schema: schema.clone(), strict: false };
    GenerationRequest { constraint: Some(constraint), ..GenerationRequest::default() }
}

fn as_arguments(schema: &Value) -> GenerationRequest {
    let parameters = schema.as_object().unwrap().clone();
    let tools = vec![Tool { name: "f".into(), description: None, parameters, strict: false }];
    GenerationRequest { tools, tool_choice: ToolChoice::Named("f".into()), ..GenerationRequest::default() }
}

fn compile(name: &str, request: &GenerationRequest) -> (Grammar, Vec<String>) {
    let compiled = GRAMMARS.compile(request, ToolFormat::Hermes);
    let Compiled { grammar, relaxed } = compiled.unwrap_or_else(|error| panic!("{name}: {error}"));
    (grammar.unwrap(), relaxed.paths().to_vec())
}

#[test]
fn every_schema_of_the_corpus_is_taken() {
    let schemas = corpus::schemas();
    assert!(schemas.len() >= 79, "{}", schemas.len());
    let mut dropped = Vec::new();
    for (name, schema) in &schemas {
        let (_, paths) = compile(name, &as_answer(schema));
        let (_, of_arguments) = compile(name, &as_arguments(schema));
        let local = |paths: &[String], root: &str| -> Vec<String> {
            paths.iter().map(|path| path.strip_prefix(root).unwrap().to_owned()).collect()
        };
        let paths = local(&paths, SCHEMA);
        if schema["type"] == "object" {
            assert_eq!(local(&of_arguments, PARAMETERS), paths, "{name}");
        }
        if !paths.is_empty() {
            dropped.push((name.clone(), Value::from(paths)));
        }
    }
    let count = dropped.len();
    let mut text = String::from("{");
    for (number, (name, paths)) in dropped.iter().enumerate() {
        write!(text, "{}\n{}: {paths}", if number == 0 { "" } else { "," }, Value::from(name.as_str()))
            .unwrap();
    }
    text.push_str("\n}\n");
    assert!(text == DROPPED, "something else is dropped than relaxed.json says:\n{text}");
    eprintln!("{count} of {} schemas are not enforced as a whole", schemas.len());
}

#[test]
fn answers_are_valid_but_for_what_is_dropped() {
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let (mut walks, mut ended, mut wholly) = (0, 0, 0);
    for (name, schema) in corpus::schemas() {
        let all = corpus::validator_of_all(&schema);
        for (request, root) in [(as_answer(&schema), SCHEMA), (as_arguments(&schema), PARAMETERS)] {
            let (grammar, dropped) = compile(&name, &request);
            let rest = corpus::validator_of_the_rest(&schema, root, &dropped);
            for _ in 0..WALKS {
                walks += 1;
                let Some(text) = walk(&grammar, &mut random) else { continue };
                ended += 1;
                let value = value_of(&text, root);
                assert!(rest.is_valid(&value), "{name}: {value} is not of {schema} without {dropped:?}");
                wholly += usize::from(all.as_ref().is_some_and(|all| all.is_valid(&value)));
            }
        }
    }
    eprintln!("{walks} walks, {ended} ended, all of them valid; {wholly} by the whole schema");
    assert!(ended >= 500 && ended * 10 >= walks * 9, "{ended} of {walks} came to an end");
    assert!(wholly * 10 >= ended * 7, "only {wholly} of {ended} are valid by the whole schema");
}

/// The answer, or the arguments of the call that it is.
fn value_of(text: &str, root: &str) -> Value {
    let json = match root {
        PARAMETERS => text.trim_start_matches("<tool_call>").trim_end_matches("</tool_call>"),
        _ => text,
    };
    let value: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"));
    match value {
        Value::Object(mut call) if root == PARAMETERS => call.remove("arguments").unwrap(),
        value => value,
    }
}
