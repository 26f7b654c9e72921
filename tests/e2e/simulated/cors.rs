//! Pages of the origins that the operator names, and no others, may use the API from a browser.

use anyhow::Result;
use emberline_test_kit::stack::{API_KEY, Engine, MODEL, Options, Stack};
use reqwest::{Method, Response};
use serde_json::json;

const PAGE: &str = "https://app.example.com";
const OTHER_PAGE: &str = "https://evil.example.com";

async fn stack(engine: Engine, origins: &str) -> Result<Stack> {
    let variables = vec![("cors_allowed_origins", origins.to_owned())];
    Stack::start_with(Options { engine, variables, ..Options::default() }).await
}

/// What a browser asks before it posts JSON with a key.
async fn preflight(stack: &Stack, origin: &str) -> Result<Response> {
    let request = stack.http.request(Method::OPTIONS, format!("{}/v1/chat/completions", stack.url));
    let request = request.header("origin", origin).header("access-control-request-method", "POST");
    Ok(request.header("access-control-request-headers", "authorization,content-type").send().await?)
}

async fn health(stack: &Stack, origin: &str) -> Result<Response> {
    Ok(stack.http.get(format!("{}/health", stack.url)).header("origin", origin).send().await?)
}

#[tokio::test]
async fn nobody_is_allowed_who_is_not_named() -> Result<()> {
    let stack = stack(Engine::None, "").await?;
    let refused = preflight(&stack, PAGE).await?;
    assert_eq!((refused.status().as_u16(), refused.headers()["allow"].as_bytes()), (405, &b"POST"[..]));
    let answer = health(&stack, PAGE).await?;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    Ok(())
}

#[tokio::test]
async fn a_named_page_is_allowed_and_no_other() -> Result<()> {
    let stack = stack(Engine::Simulated, &format!("{PAGE}, http://localhost:3000")).await?;
    let allowed = preflight(&stack, PAGE).await?;
    assert_eq!(allowed.status(), 204);
    assert_eq!(allowed.headers()["access-control-allow-origin"], PAGE);
    assert_eq!(allowed.headers()["access-control-allow-headers"], "authorization,content-type");
    assert_eq!(allowed.headers()["access-control-max-age"], "3600");
    let methods = allowed.headers()["access-control-allow-methods"].to_str()?;
    assert!(methods.split(", ").any(|method| method == "POST"), "{methods}");
    let refused = preflight(&stack, OTHER_PAGE).await?;
    assert_eq!(refused.status(), 405);

    // Errors, answers and streams alike.
    for (body, status) in [
        (json!({"model": MODEL}), 400),
        (json!({"model": "vllm-primary", "messages": [{"role": "user", "content": "Hi"}]}), 200),
        (
            json!({"model": "vllm-primary", "messages": [{"role": "user", "content": "Hi"}], "stream": true}),
            200,
        ),
    ] {
        for (origin, granted) in [(PAGE, Some(PAGE)), (OTHER_PAGE, None)] {
            let request = stack.http.post(format!("{}/v1/chat/completions", stack.url)).bearer_auth(API_KEY);
            let answer = request.header("origin", origin).json(&body).send().await?;
            assert_eq!(answer.status(), status, "{body}");
            let headers = answer.headers();
            let found = headers.get("access-control-allow-origin").map(|value| value.as_bytes());
            assert_eq!(found, granted.map(str::as_bytes), "{body}");
            assert_eq!(headers["vary"], "origin");
            assert!(headers.contains_key("x-request-id"));
            let _ = answer.bytes().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn everybody_may_be_allowed() -> Result<()> {
    let stack = stack(Engine::None, "*").await?;
    assert_eq!(preflight(&stack, OTHER_PAGE).await?.status(), 204);
    let answer = health(&stack, OTHER_PAGE).await?;
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    let exposed = answer.headers()["access-control-expose-headers"].to_str()?;
    assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
    Ok(())
}
