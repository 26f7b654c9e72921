//! Every bad request is answered with its status, code and param, and the server goes on serving.

use anyhow::{Context as _, Result};
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use reqwest::Method;
use serde_json::{Value, json};

/// A request, and what must come back.
struct Case {
    name: String,
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    param: Option<&'static str>,
}

fn bearer() -> (&'static str, String) {
    ("authorization", format!("Bearer {API_KEY}"))
}

/// A well-authenticated POST of these bytes.
fn post(
    name: &str,
    body: impl Into<Vec<u8>>,
    status: u16,
    code: &'static str,
    param: Option<&'static str>,
) -> Case {
    let headers = vec![bearer(), ("content-type", "application/json".to_owned())];
    let (name, path) = (name.to_owned(), "/v1/chat/completions");
    Case { name, method: Method::POST, path, headers, body: body.into(), status, code, param }
}

/// A good request with one field changed (or added), which must be refused with 400.
fn field(name: &'static str, value: &Value, code: &'static str, param: &'static str) -> Case {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    body[name] = value.clone();
    post(&format!("{name} = {value}"), body.to_string(), 400, code, Some(param))
}

fn bodies() -> Vec<Case> {
    let deep = format!(r#"{{"model":"m","messages":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let large = format!(r#"{{"model":"m","pad":"{}"}}"#, "x".repeat(4 * 1024 * 1024));
    let no_model = json!({"messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let no_messages = json!({"model": MODEL}).to_string();
    let unknown = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let huge = "word ".repeat(9000);
    let overflow = json!({"model": MODEL, "messages": [{"role": "user", "content": huge}]}).to_string();
    let wanted = json!({"model": MODEL, "max_tokens": 8192, "messages": [{"role": "user", "content": "Hi"}]})
        .to_string();
    vec![
        post("empty body", "", 400, "invalid_json", None),
        post("no JSON", "model=m", 400, "invalid_json", None),
        post("cut JSON", r#"{"model": "m", "messages": [{"#, 400, "invalid_json", None),
        post("trailing text", "{} {}", 400, "invalid_json", None),
        post("an array", "[]", 400, "invalid_json", None),
        post("a string", r#""hello""#, 400, "invalid_json", None),
        post("no UTF-8", b"{\"model\": \"\xff\xfe\"}".to_vec(), 400, "invalid_json", None),
        post("deep nesting", deep, 400, "invalid_json", None),
        post("a lone surrogate", r#"{"model": "\ud800"}"#, 400, "invalid_json", None),
        post("more than 4 MiB", large, 413, "request_too_large", None),
        post("no model", no_model, 400, "missing_field", Some("model")),
        post("no messages", no_messages, 400, "missing_field", Some("messages")),
        post("an unknown model", unknown, 404, "model_not_found", Some("model")),
        post("a prompt too long", overflow, 400, "context_length_exceeded", Some("messages")),
        post("more tokens than fit", wanted, 400, "context_length_exceeded", Some("messages")),
    ]
}

fn fields() -> Vec<Case> {
    let message = |m: Value| json!([{"role": "user", "content": "Hi"}, m]);
    vec![
        field("model", &json!(7), "invalid_type", "model"),
        field("model", &json!(""), "invalid_value", "model"),
        field("messages", &json!("Hi"), "invalid_type", "messages"),
        field("messages", &json!([]), "invalid_value", "messages"),
        field("messages", &message(json!("Hi")), "invalid_type", "messages[1]"),
        field("messages", &message(json!({"role": "user"})), "missing_field", "messages[1].content"),
        field("messages", &message(json!({"content": "Hi"})), "missing_field", "messages[1].role"),
        field(
            "messages",
            &message(json!({"role": "king", "content": "Hi"})),
            "invalid_value",
            "messages[1].role",
        ),
        field("messages", &message(json!({"role": 1, "content": "Hi"})), "invalid_type", "messages[1].role"),
        field(
            "messages",
            &message(json!({"role": "user", "content": 5})),
            "invalid_type",
            "messages[1].content",
        ),
        field(
            "messages",
            &message(json!({"role": "user", "content": [{"type": "image_url"}]})),
            "unsupported_parameter",
            "messages[1].content[0].type",
        ),
        field(
            "messages",
            &message(json!({"role": "user", "content": "Hi", "colour": "red"})),
            "unknown_parameter",
            "messages[1].colour",
        ),
        field("temperature", &json!(2.5), "invalid_value", "temperature"),
        field("temperature", &json!(-0.1), "invalid_value", "temperature"),
        field("temperature", &json!("hot"), "invalid_type", "temperature"),
        field("top_p", &json!(1.01), "invalid_value", "top_p"),
        field("top_p", &json!(true), "invalid_type", "top_p"),
        field("max_tokens", &json!(0), "invalid_value", "max_tokens"),
        field("max_tokens", &json!(-5), "invalid_value", "max_tokens"),
        field("max_tokens", &json!(1.5), "invalid_type", "max_tokens"),
        field("max_tokens", &json!("10"), "invalid_type", "max_tokens"),
        field("max_completion_tokens", &json!(3), "invalid_value", "max_tokens"),
        field("stop", &json!(5), "invalid_type", "stop"),
        field("stop", &json!([1]), "invalid_type", "stop[0]"),
        field("stop", &json!(["a", ""]), "invalid_value", "stop[1]"),
        field("stop", &json!(["a", "b", "c", "d", "e"]), "invalid_value", "stop"),
        field("seed", &json!(0.5), "invalid_type", "seed"),
        field("stream", &json!(1), "invalid_type", "stream"),
        field("stream_options", &json!({"include_usage": true}), "invalid_value", "stream_options"),
        field("n", &json!(0), "invalid_value", "n"),
        field("n", &json!(17), "invalid_value", "n"),
        field("n", &json!("2"), "invalid_type", "n"),
        field("logprobs", &json!(5), "invalid_type", "logprobs"),
        field("top_logprobs", &json!(-1), "invalid_value", "top_logprobs"),
        field("top_logprobs", &json!(21), "invalid_value", "top_logprobs"),
        field("top_logprobs", &json!(2.5), "invalid_type", "top_logprobs"),
        // Without logprobs.
        field("top_logprobs", &json!(2), "invalid_value", "top_logprobs"),
        field("response_format", &json!({"type": "yaml"}), "invalid_value", "response_format.type"),
        field("tools", &json!([{"type": "function"}]), "missing_field", "tools[0].function"),
        field("tools", &json!([{"type": "functon"}]), "invalid_value", "tools[0].type"),
        field("tool_choice", &json!("required"), "invalid_value", "tool_choice"),
        field("functions", &json!([{"name": "f"}]), "unsupported_parameter", "functions"),
        field("audio", &json!({}), "unsupported_parameter", "audio"),
        field("store", &json!("yes"), "invalid_type", "store"),
        field("max_tokens", &json!(-2), "invalid_value", "max_tokens"),
        field("seed", &json!(-1e19), "invalid_value", "seed"),
        field("service_tier", &json!("priority"), "unsupported_parameter", "service_tier"),
        field("temprature", &json!(0.5), "unknown_parameter", "temprature"),
    ]
}

fn sampling_fields() -> Vec<Case> {
    let many: serde_json::Map<String, Value> = (0..301).map(|id| (id.to_string(), json!(1))).collect();
    vec![
        field("presence_penalty", &json!(2.1), "invalid_value", "presence_penalty"),
        field("presence_penalty", &json!(true), "invalid_type", "presence_penalty"),
        field("frequency_penalty", &json!(-2.1), "invalid_value", "frequency_penalty"),
        field("repetition_penalty", &json!(0), "invalid_value", "repetition_penalty"),
        field("repetition_penalty", &json!("1"), "invalid_type", "repetition_penalty"),
        field("top_k", &json!(-2), "invalid_value", "top_k"),
        field("top_k", &json!(0.5), "invalid_type", "top_k"),
        field("min_p", &json!(1.1), "invalid_value", "min_p"),
        field("min_tokens", &json!(-1), "invalid_value", "min_tokens"),
        // More than max_tokens.
        field("min_tokens", &json!(3), "invalid_value", "min_tokens"),
        field("ignore_eos", &json!("yes"), "invalid_type", "ignore_eos"),
        field("logit_bias", &json!([5]), "invalid_type", "logit_bias"),
        field("logit_bias", &Value::Object(many), "invalid_value", "logit_bias"),
        field("logit_bias", &json!({"5": 100.5}), "invalid_value", "logit_bias.5"),
        field("logit_bias", &json!({"5": "1"}), "invalid_type", "logit_bias.5"),
        field("logit_bias", &json!({"Paris": -1}), "invalid_value", "logit_bias.Paris"),
        field("stop_token_ids", &json!(2), "invalid_type", "stop_token_ids"),
        field("stop_token_ids", &json!([2, 2.5]), "invalid_type", "stop_token_ids[1]"),
        field("stop_token_ids", &json!([-1]), "invalid_value", "stop_token_ids[0]"),
        // Only the worker knows that the model's last token is 49151.
        field("logit_bias", &json!({"49151": 1, "49152": 1}), "invalid_value", "logit_bias.49152"),
        field("stop_token_ids", &json!([49151, 49152]), "invalid_value", "stop_token_ids[1]"),
    ]
}

fn requests() -> Vec<Case> {
    let good = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let json_type = ("content-type", "application/json".to_owned());
    let case = |name: &str, method: Method, path, headers, status, code| Case {
        name: name.to_owned(),
        method,
        path,
        headers,
        body: good.clone().into_bytes(),
        status,
        code,
        param: None,
    };
    let chat = "/v1/chat/completions";
    let wrong = vec![("authorization", "Bearer sk-emb-wrong".to_owned()), json_type.clone()];
    let basic = vec![("authorization", "Basic c2s6".to_owned()), json_type.clone()];
    let other = vec![("x-api-key", "sk-emb-wrong".to_owned()), json_type.clone()];
    let text = vec![bearer(), ("content-type", "text/plain".to_owned())];
    let zipped = vec![bearer(), json_type.clone(), ("content-encoding", "gzip".to_owned())];
    let azure = vec![("api-key", "sk-emb-wrong".to_owned()), json_type.clone()];
    let form = vec![bearer(), ("content-type", "application/x-www-form-urlencoded".to_owned())];
    vec![
        case("no key", Method::POST, chat, vec![json_type.clone()], 401, "missing_auth_header"),
        case("a wrong key", Method::POST, chat, wrong, 401, "invalid_api_key"),
        case("a wrong X-API-Key", Method::POST, chat, other, 401, "invalid_api_key"),
        case("a wrong api-key", Method::POST, chat, azure, 401, "invalid_api_key"),
        case("not a bearer", Method::POST, chat, basic, 401, "missing_auth_header"),
        case("models without a key", Method::GET, "/v1/models", vec![], 401, "missing_auth_header"),
        case("plain text", Method::POST, chat, text, 415, "unsupported_media_type"),
        case("a compressed body", Method::POST, chat, zipped, 415, "unsupported_media_type"),
        case("a form", Method::POST, chat, form, 415, "unsupported_media_type"),
        case("GET chat", Method::GET, chat, vec![bearer()], 405, "method_not_allowed"),
        case("DELETE models", Method::DELETE, "/v1/models", vec![bearer()], 405, "method_not_allowed"),
        case("POST health", Method::POST, "/health", vec![json_type], 405, "method_not_allowed"),
        case("an unknown path", Method::POST, "/v1/chat", vec![bearer()], 404, "not_found"),
        case("Anthropic's messages", Method::POST, "/v1/messages", vec![bearer()], 404, "not_found"),
        case("compaction", Method::POST, "/v1/responses/compact", vec![bearer()], 404, "not_found"),
        case("metrics", Method::GET, "/metrics", vec![], 404, "not_found"),
        case(
            "GET input_tokens",
            Method::GET,
            "/v1/responses/input_tokens",
            vec![bearer()],
            405,
            "method_not_allowed",
        ),
        case("a path outside /v1", Method::GET, "/secret", vec![bearer()], 404, "not_found"),
    ]
}

#[tokio::test]
async fn each_bad_request_has_its_status_code_and_param() -> Result<()> {
    let stack = Stack::start().await?;
    let cases: Vec<Case> =
        bodies().into_iter().chain(fields()).chain(sampling_fields()).chain(requests()).collect();
    assert!(cases.len() >= 40);
    for case in cases {
        check(&stack, &case).await.with_context(|| case.name.clone())?;
    }
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    stack.completion(&body).await.context("the server goes on serving")?;
    Ok(())
}

async fn check(stack: &Stack, case: &Case) -> Result<()> {
    let mut request = stack.http.request(case.method.clone(), format!("{}{}", stack.url, case.path));
    for (name, value) in &case.headers {
        request = request.header(*name, value);
    }
    let response = request.body(case.body.clone()).send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await?;
    assert_eq!(status, case.status, "{}: {text}", case.name);
    assert!(headers.contains_key("x-request-id"), "{}", case.name);
    assert_eq!(headers.contains_key("allow"), status == 405, "{}", case.name);
    let body: Value = serde_json::from_str(&text)?;
    let error = body["error"].as_object().context("error")?;
    let mut names: Vec<&str> = error.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["code", "message", "param", "type"], "{}", case.name);
    assert_eq!(error["code"], case.code, "{}: {text}", case.name);
    assert_eq!(error["param"].as_str(), case.param, "{}: {text}", case.name);
    let message = error["message"].as_str().context("message")?;
    assert!(message.len() > 10, "{}: {message}", case.name);
    if let Some(param) = case.param.filter(|p| case.status == 400 && *p != "messages") {
        let field = param.rsplit('.').next().unwrap_or(param);
        let named = message.contains(field) || message.to_lowercase().contains(field);
        assert!(named, "{}: the message names the field: {message}", case.name);
    }
    Ok(())
}
