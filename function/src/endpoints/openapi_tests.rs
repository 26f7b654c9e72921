use emberline_api::answer::{Choice, Envelope};
use emberline_api::chat::{ChatAnswer, ChatRequest};
use emberline_api::completions::CompletionRequest;
use emberline_api::embeddings;
use emberline_api::responses::{InputTokensRequest, ResponsesRequest};
use emberline_api::token_details::TokenDetails;
use emberline_api::tokenize::TokenRequest;
use emberline_protocol::event::Usage;
use emberline_protocol::job::ToolChoice;
use emberline_protocol::subject::JobId;
use emberline_protocol::tools::TextBesideCalls;

use super::*;
use crate::endpoints::router;

fn read() -> Value {
    serde_json::from_str(document()).unwrap()
}

/// Every reference in the document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn nothing_is_referred_to_that_is_not_there() {
    let document = read();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
    }
}

#[test]
fn every_endpoint_is_found_at_its_own_path() {
    for endpoint in ENDPOINTS {
        let path = endpoint.path.replace("{id}", "x").replace("{id*}", "x/y");
        let route = router::find(&endpoint.method, &path).ok().unwrap();
        assert_eq!(route.endpoint.id, endpoint.id, "{path}");
    }
}

#[test]
fn a_name_without_a_value_is_absent_and_the_document_says_so() {
    let rest = "/components/schemas/ChatCompletionRequest/additionalProperties";
    assert_eq!(read().pointer(rest), Some(&json!({"type": "null"})));
    let body = |value: &str| {
        format!(r#"{{"model":"a","messages":[{{"role":"user","content":"b"}}],"no_such":{value}}}"#)
    };
    ChatRequest::parse(body("null").as_bytes()).unwrap();
    assert_eq!(ChatRequest::parse(body("0").as_bytes()).unwrap_err().param.as_deref(), Some("no_such"));

    let kinds = "/components/schemas/ResponseInputItem/oneOf";
    let document = read();
    let tag = |kind: &str| {
        let kinds = document.pointer(kinds).and_then(Value::as_array).unwrap();
        let of_kind = |tag: &&Value| tag["const"] == kind || tag["enum"][0] == kind;
        kinds.iter().map(|item| &item["properties"]["type"]).find(of_kind).cloned()
    };
    assert_eq!(tag("message"), Some(json!({"enum": ["message", null]})), "a message needs no type");
    assert_eq!(tag("function_call").unwrap()["const"], "function_call");
    let untyped = r#"{"model":"a","input":[{"type":null,"role":"user","content":"b"}]}"#;
    ResponsesRequest::parse(untyped.as_bytes()).unwrap();
}

#[test]
fn every_example_is_read() {
    let example = |path: &str| {
        let endpoint = ENDPOINTS.iter().find(|endpoint| endpoint.path == path).unwrap();
        endpoint.request_body().unwrap().example.as_bytes()
    };
    ChatRequest::parse(example("/v1/chat/completions")).unwrap();
    CompletionRequest::parse(example("/v1/completions")).unwrap();
    ResponsesRequest::parse(example("/v1/responses")).unwrap();
    InputTokensRequest::parse(example("/v1/responses/input_tokens")).unwrap();
    TokenRequest::parse_tokenize(example("/tokenize")).unwrap();
    TokenRequest::parse_detokenize(example("/detokenize")).unwrap();
    embeddings::parse_model(example("/v1/embeddings")).unwrap();
    let requests = ENDPOINTS.iter().filter(|endpoint| endpoint.request_body().is_some());
    assert_eq!(requests.count(), 7, "an example of another endpoint is not tried here");
}

#[test]
fn no_request_is_called_as_an_answer_is() {
    let mut components = Components::default();
    for endpoint in ENDPOINTS {
        describe(endpoint, &mut components);
    }
    components.answer::<ErrorBody>();
    let (requests, answers) = components.names();
    let shared: Vec<_> = requests.iter().filter(|name| answers.contains(name)).collect();
    assert!(shared.is_empty(), "{shared:?}");
}

#[test]
fn an_answer_has_exactly_what_is_documented() {
    let envelope =
        Envelope { job: JobId::from_random(1), created: 1, model: "m".into(), fingerprint: "f".into() };
    let answer = ChatAnswer {
        envelope,
        metadata: None,
        tool_format: None,
        beside_calls: TextBesideCalls::default(),
        tool_choice: ToolChoice::Auto,
        echo: None,
        details: TokenDetails::default(),
    };
    let body: Value =
        serde_json::from_str(&answer.completion(&[Choice::default()], &Usage::default())).unwrap();
    let document = read();
    let schema = &document["components"]["schemas"]["ChatCompletion"];
    let properties = schema["properties"].as_object().unwrap();
    let required: Vec<_> = schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in body.as_object().unwrap().keys() {
        assert!(properties.contains_key(name) && required.contains(&name.as_str()), "{name}");
    }
    assert_eq!(required.len(), body.as_object().unwrap().len());
}
