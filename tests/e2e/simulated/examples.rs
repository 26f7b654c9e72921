//! The clients of `examples/` print the answer that the API gives, and fail where there is none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::paths::{binary, cache, repository};
use emberline_test_kit::simulated::{paced, words};
use emberline_test_kit::stack::{API_KEY, Options, SIMULATED_MODEL, Stack};
use emberline_test_kit::wait;
use serde_json::json;
use tokio::process::Command;

const PROMPT: &str = "What is an ember?";

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&["--simulated-tokens-per-s", "0"])).await?;
    cases::run(2, cases![&stack; curl, python, javascript, rust]).await
}

#[tokio::test]
async fn on_a_host_that_cuts_requests() -> Result<()> {
    // The answer of 200 words takes 8 s. The function ends a request after 3 s or, if it knows nothing of the limit, the
    // host cuts it after 5 s.
    for known in ["5", "0"] {
        let options = paced(25, 4, &[("request_time_limit_s", known)]);
        let stack = Stack::start_with(Options { request_time_limit_s: Some(5), ..options }).await?;
        cases::run(2, cases![&stack; python_background, javascript_background]).await?;
    }
    Ok(())
}

/// A file of `examples/`, which must be there.
fn example(name: &str) -> Result<PathBuf> {
    repository().join("examples").join(name).canonicalize().with_context(|| format!("examples/{name}"))
}

/// The client packages that `deploy/setup.sh clients` installs.
fn packages(environment: &str) -> PathBuf {
    cache().join("clients").join(environment)
}

async fn curl(stack: &Stack) -> Result<()> {
    check(stack, || Ok(Command::new(example("curl/chat.sh")?))).await
}

async fn python(stack: &Stack) -> Result<()> {
    check(stack, || python_client("chat.py")).await
}

async fn javascript(stack: &Stack) -> Result<()> {
    check(stack, || javascript_client("chat.mjs")).await
}

async fn python_background(stack: &Stack) -> Result<()> {
    survives_the_cut(stack, python_client("background.py")?).await
}

async fn javascript_background(stack: &Stack) -> Result<()> {
    survives_the_cut(stack, javascript_client("background.mjs")?).await
}

fn python_client(name: &str) -> Result<Command> {
    let mut command = Command::new(packages("python").join("bin/python"));
    command.arg(example("python")?.join(name));
    Ok(command)
}

fn javascript_client(name: &str) -> Result<Command> {
    // Modules are looked up from the script's own folder, so it runs from beside them.
    let script = packages("node").join(format!("example_{name}"));
    fs::copy(example("javascript")?.join(name), &script)?;
    let mut command = Command::new("node");
    command.arg(&script);
    Ok(command)
}

async fn rust(stack: &Stack) -> Result<()> {
    example("rust/Cargo.toml")?;
    check(stack, || Ok(Command::new(binary("emberline-example-chat")?))).await
}

/// Runs a client with the right key, and with a wrong one.
async fn check(stack: &Stack, client: impl Fn() -> Result<Command>) -> Result<()> {
    let (succeeded, printed, complaint) = run(client()?, stack, API_KEY).await?;
    ensure!(succeeded, "{complaint}");
    let body = json!({
        "model": SIMULATED_MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": PROMPT}],
    });
    let answer = stack.completion(&body).await?;
    let text = answer["choices"][0]["message"]["content"].as_str().context("content")?;
    assert_eq!(printed.trim_end(), text.trim_end());

    let (succeeded, printed, complaint) = run(client()?, stack, "sk-emb-wrong").await?;
    ensure!(!succeeded && printed.trim().is_empty() && !complaint.trim().is_empty(), "{printed} {complaint}");
    Ok(())
}

/// Runs a client whose answer takes longer than its host lets a request take.
async fn survives_the_cut(stack: &Stack, client: Command) -> Result<()> {
    let (succeeded, printed, complaint) = run(client, stack, API_KEY).await?;
    ensure!(succeeded, "{complaint}");
    assert_eq!(printed.trim_end(), words(200).trim_end());
    Ok(())
}

/// Whether a client succeeded, and what it wrote to stdout and stderr.
async fn run(mut client: Command, stack: &Stack, key: &str) -> Result<(bool, String, String)> {
    client.arg(PROMPT).current_dir(Path::new("/"));
    client.env("OPENAI_BASE_URL", format!("{}/v1", stack.url)).env("OPENAI_API_KEY", key);
    client.env("MODEL", SIMULATED_MODEL).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    let output = wait::within("the client ends", async {
        client.output().await.with_context(|| format!("can't run {client:?}"))
    });
    let output = output.await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}
