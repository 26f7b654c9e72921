//! Requests are understood however clients put them together, and one whose body never comes ends.

use anyhow::{Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::stack::{API_KEY, Options, SIMULATED_MODEL, Stack};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[])).await?;
    let cases = cases![&stack;
        each_key_header_opens_the_door_and_a_request_id_comes_back,
        paths_are_found_however_clients_put_them_together,
    ];
    cases::run(2, cases).await
}

async fn each_key_header_opens_the_door_and_a_request_id_comes_back(stack: &Stack) -> Result<()> {
    let url = format!("{}/v1/models", stack.url);
    let sane =
        stack.http.get(&url).header("x-api-key", API_KEY).header("x-request-id", "my-id.1").send().await?;
    assert_eq!(sane.status(), 200);
    assert_eq!(sane.headers()["x-request-id"], "my-id.1");
    assert_eq!(stack.http.get(&url).header("api-key", API_KEY).send().await?.status(), 200, "Azure's");
    let spaced = stack.http.get(&url).bearer_auth(API_KEY).header("x-request-id", "a b").send().await?;
    assert_eq!(spaced.status(), 200);
    assert_ne!(spaced.headers()["x-request-id"], "a b", "an id that isn't sane is replaced");
    Ok(())
}

async fn paths_are_found_however_clients_put_them_together(stack: &Stack) -> Result<()> {
    let plain: Value = stack.get("/v1/models").await?.json().await?;
    for path in ["/models", "/v1/models/", "//v1//models"] {
        assert_eq!(stack.get(path).await?.json::<Value>().await?, plain, "{path}");
    }
    let chat =
        json!({"model": SIMULATED_MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    let text = json!({"model": SIMULATED_MODEL, "prompt": "Hi", "max_tokens": 2});
    let response = json!({"model": SIMULATED_MODEL, "input": "Hi", "max_output_tokens": 2});
    for (path, body) in [
        ("/chat/completions", &chat),
        ("/v1/chat/completions/", &chat),
        ("/v1//chat/completions", &chat),
        ("/completions", &text),
        ("/responses", &response),
    ] {
        let answer = stack.post(path, API_KEY, &[], body).await?;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text().await?);
    }
    let version: Value = stack.http.get(format!("{}/version", stack.url)).send().await?.json().await?;
    assert!(version["version"].as_str().is_some_and(|version| version.contains('.')), "{version}");
    for path in ["/v1/models", "/health", "/ready", "/version", "/openapi.json"] {
        let head = stack.http.head(format!("{}{path}", stack.url)).bearer_auth(API_KEY).send().await?;
        assert_eq!((head.status().as_u16(), head.bytes().await?.len()), (200, 0), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_never_comes_does_not_hold_its_place() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[]).variable("request_timeout_s", "2")).await?;
    let address = stack.url.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {API_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("did not arrive in time") {
        let read = socket.read_buf(&mut seen).await?;
        ensure!(read > 0, "no answer: {}", String::from_utf8_lossy(&seen));
    }
    assert!(seen.starts_with(b"HTTP/1.1 400"));
    Ok(())
}
