//! Client packages of others work unchanged: each in its own idioms, by a script in `clients/` that
//! fails where anything is not as that client needs it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use emberline_tests::stack::{API_KEY, MODEL, Options, Stack, cache, repository};
use serde_json::{Value, json};
use tokio::process::Command;

/// The clients that work with the newest openai package for Python, and those that need version 2.
const PYTHON: (&str, &str) = ("EMBERLINE_TEST_PYTHON", "clients/python-venv/bin/python");
const PYTHON_OPENAI_2: (&str, &str) =
    ("EMBERLINE_TEST_PYTHON_OPENAI_2", "clients/python-openai-2-venv/bin/python");
const NODE_MODULES: (&str, &str) = ("EMBERLINE_TEST_NODE_MODULES", "clients/node/node_modules");

/// The real model, and one called `absent` that is known and that no worker serves.
async fn start() -> Result<Stack> {
    let variables = vec![("models", format!("{MODEL},absent"))];
    Stack::start_with(Options { variables, ..Options::default() }).await
}

/// What `make clients` has installed, or what a variable says.
fn installed((variable, default): (&str, &str)) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| cache().join(default), PathBuf::from);
    ensure!(path.exists(), "{} is missing: `make clients` installs the client packages", path.display());
    Ok(path)
}

/// Runs a script of `clients/` in Python; the JSON that it prints.
async fn python(environment: (&str, &str), script: &str) -> Result<Value> {
    let stack = start().await?;
    let mut command = Command::new(installed(environment)?);
    command.arg(repository().join("tests/clients").join(script));
    run(&stack, &mut command).await
}

/// Runs a script of `clients/` in Node; the JSON that it prints.
async fn node(script: &str) -> Result<Value> {
    let modules = installed(NODE_MODULES)?;
    let stack = start().await?;
    // Modules are looked up from the script's own folder, so it runs from beside them.
    let beside = modules.parent().context("node_modules lies in a folder")?.join(script);
    std::fs::copy(repository().join("tests/clients").join(script), &beside)?;
    run(&stack, Command::new("node").arg(beside)).await
}

async fn run(stack: &Stack, command: &mut Command) -> Result<Value> {
    let output = command
        .env("OPENAI_BASE_URL", format!("{}/v1", stack.url))
        .env("OPENAI_API_KEY", API_KEY)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // These two call home.
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .env("LANGSMITH_TRACING", "false")
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    let last = output.stdout.trim_ascii().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(last).context("the client's last line")
}

/// The golden answer to the question that each client asks.
fn assert_answered(seen: &Value) -> Result<()> {
    let text = seen["text"].as_str().context("text")?;
    assert!(text.contains("Paris"), "{text}");
    Ok(())
}

#[tokio::test]
async fn openai_for_python_chats() -> Result<()> {
    assert_answered(&python(PYTHON, "openai_chat.py").await?)
}

#[tokio::test]
async fn openai_for_python_calls_functions_and_parses() -> Result<()> {
    let seen = python(PYTHON, "openai_tools.py").await?;
    assert!(seen["parse"]["by"].is_string(), "{seen}");
    Ok(())
}

#[tokio::test]
async fn openai_for_python_uses_responses() -> Result<()> {
    let seen = python(PYTHON, "openai_responses.py").await?;
    assert_answered(&seen)?;
    let refused = json!({
        "previous_response_id": [400, "unsupported_parameter", "previous_response_id"],
        "store": [400, "unsupported_parameter", "store"],
        "temperature": [400, "invalid_value", "temperature"],
        "unknown": [404, "not_found", null],
    });
    assert_eq!(seen["refused"], refused);
    Ok(())
}

#[tokio::test]
async fn openai_for_python_maps_errors_retries_and_gives_up() -> Result<()> {
    let seen = python(PYTHON, "openai_errors.py").await?;
    let errors = json!({
        "temperature": [400, "invalid_value", "temperature"],
        "top_logprobs": [400, "invalid_value", "top_logprobs"],
        "unknown": [400, "unknown_parameter", "no_such_parameter"],
        "unsupported": [400, "unsupported_parameter", "modalities[1]"],
        "model": [404, "model_not_found", "model"],
        "absent": [503, "no_worker", "model"],
        "stream": [400, "invalid_value", "temperature"],
    });
    assert_eq!(seen["errors"], errors);
    assert_eq!(seen["keys"], json!([401, "invalid_api_key", null]));
    Ok(())
}

#[tokio::test]
async fn openai_for_javascript_works() -> Result<()> {
    let seen = node("openai_client.mjs").await?;
    assert_answered(&seen)?;
    let errors = json!({
        "temperature": [400, "invalid_value", "temperature"],
        "top_logprobs": [400, "invalid_value", "top_logprobs"],
        "unknown": [400, "unknown_parameter", "no_such_parameter"],
        "model": [404, "model_not_found", "model"],
        "key": [401, "invalid_api_key", null],
        "absent": [503, "no_worker", "model"],
    });
    assert_eq!(seen["errors"], errors);
    Ok(())
}

#[tokio::test]
async fn the_ai_sdk_works() -> Result<()> {
    let seen = node("ai_sdk_client.mjs").await?;
    assert_answered(&seen)?;
    let errors = json!({
        "temperature": [400, false, "invalid_value"],
        "model": [404, false, "model_not_found"],
        "absent": [503, true, "no_worker"],
        "key": [401, false, "invalid_api_key"],
    });
    assert_eq!(seen["errors"], errors);
    Ok(())
}

#[tokio::test]
async fn langchain_works() -> Result<()> {
    assert_answered(&python(PYTHON, "langchain_client.py").await?)
}

#[tokio::test]
async fn the_llm_command_line_works() -> Result<()> {
    assert_answered(&python(PYTHON, "llm_client.py").await?)
}

#[tokio::test]
async fn litellm_works() -> Result<()> {
    let seen = python(PYTHON_OPENAI_2, "litellm_client.py").await?;
    assert_answered(&seen)?;
    let errors = json!({"temperature": 400, "context": 400, "model": 404, "absent": 503, "key": 401});
    assert_eq!(seen["errors"], errors);
    Ok(())
}

#[tokio::test]
async fn instructor_works() -> Result<()> {
    let seen = python(PYTHON_OPENAI_2, "instructor_client.py").await?;
    assert!(seen["json_schema"]["city"].is_string(), "{seen}");
    Ok(())
}
