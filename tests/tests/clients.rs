//! The openai packages for Python and JavaScript work unchanged.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use emberline_tests::stack::{API_KEY, Stack, cache, repository};
use serde_json::{Value, json};
use tokio::process::Command;

fn expected_errors() -> Value {
    json!({
        "temperature": [400, "invalid_value", "temperature"],
        "top_logprobs": [400, "invalid_value", "top_logprobs"],
        "unknown": [400, "unknown_parameter", "no_such_parameter"],
        "model": [404, "model_not_found", "model"],
        "key": [401, "invalid_api_key", null],
    })
}

async fn run(stack: &Stack, command: &mut Command) -> Result<Value> {
    let output = command
        .env("OPENAI_BASE_URL", format!("{}/v1", stack.url))
        .env("OPENAI_API_KEY", API_KEY)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    serde_json::from_slice(&output.stdout).context("the client's last line")
}

fn installed(variable: &str, default: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| cache().join(default), PathBuf::from);
    ensure!(path.exists(), "{} is missing: `make test` installs the client packages", path.display());
    Ok(path)
}

#[tokio::test]
async fn the_python_client_works_unchanged() -> Result<()> {
    let python = installed("EMBERLINE_TEST_PYTHON", "clients/python-venv/bin/python")?;
    let stack = Stack::start().await?;
    let mut command = Command::new(python);
    command.arg(repository().join("tests/clients/openai_client.py"));
    let seen = run(&stack, &mut command).await?;
    assert!(seen["text"].as_str().context("text")?.contains("Paris"));
    assert_eq!(seen["errors"], expected_errors());
    Ok(())
}

#[tokio::test]
async fn the_javascript_client_works_unchanged() -> Result<()> {
    let modules = installed("EMBERLINE_TEST_NODE_MODULES", "clients/node/node_modules")?;
    let stack = Stack::start().await?;
    // Modules are looked up from the script's own folder, so it runs from beside them.
    let folder = modules.parent().context("node_modules lies in a folder")?;
    let script = folder.join("openai_client.mjs");
    std::fs::copy(repository().join("tests/clients/openai_client.mjs"), &script)?;
    let mut command = Command::new("node");
    command.arg(script);
    let seen = run(&stack, &mut command).await?;
    assert!(seen["text"].as_str().context("text")?.contains("Paris"));
    assert_eq!(seen["errors"], expected_errors());
    Ok(())
}
