//! The API is what /openapi.json says: schemathesis makes requests of it, good and bad ones, and
//! finds no answer that the document does not describe, and no failure of the server.
//!
//! EMBERLINE_TEST_CASES says how many requests for each operation; `make schemathesis` asks for
//! 2,000, drawn anew each time.

use std::env;

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::stack::{API_KEY, Stack, cache, repository};
use serde_json::Value;
use tokio::process::Command;

const CASES: &str = "100";

#[tokio::test]
async fn schemathesis_finds_nothing() -> Result<()> {
    let stack = Stack::start().await?;
    let program = cache().join("clients/python/bin/schemathesis");
    ensure!(program.exists(), "{} is missing: `make test` installs it", program.display());
    let folder = tempfile::tempdir()?;
    let clients = repository().canonicalize()?.join("tests/clients");
    let mut command = Command::new(program);
    command
        .env("SCHEMATHESIS_HOOKS", clients.join("schemathesis_hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg("--config-file")
        .arg(clients.join("schemathesis.toml"))
        .args(["run", "--no-color", "--workers", "1"])
        .args(["--header", &format!("Authorization: Bearer {API_KEY}")])
        .arg(format!("{}/openapi.json", stack.url));
    match env::var("EMBERLINE_TEST_CASES") {
        Ok(cases) => command.args(["--max-examples", &cases]),
        Err(_) => command.args(["--max-examples", CASES, "--seed", "1"]),
    };
    // It leaves files behind where it runs.
    let output = command.current_dir(folder.path()).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    ensure!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn every_operation_is_described() -> Result<()> {
    let stack = Stack::start().await?;
    // Without a key: whoever writes a client may not have one yet.
    let response = stack.http.get(format!("{}/openapi.json", stack.url)).send().await?;
    ensure!(response.status() == 200, "{}", response.status());
    let document: Value = response.json().await?;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().context("paths")?;
    for (method, path) in [
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{id}"),
        ("post", "/v1/responses/{id}/cancel"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{id}"),
        ("post", "/tokenize"),
        ("post", "/detokenize"),
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/openapi.json"),
    ] {
        let operation = paths.get(path).and_then(|path| path.get(method));
        let operation = operation.with_context(|| format!("{method} {path} is not described"))?;
        let open = ["/health", "/ready", "/openapi.json"].contains(&path);
        assert_eq!(operation["security"].as_array().is_some_and(Vec::is_empty), open, "{method} {path}");
        assert!(operation["responses"]["200"].is_object() || path == "/v1/embeddings", "{method} {path}");
        assert_eq!(
            operation["requestBody"].is_object(),
            method == "post" && !path.ends_with("cancel"),
            "{path}"
        );
    }
    Ok(())
}
