//! Streams one chat answer: `emberline-example-chat [PROMPT]`.

use std::env;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

fn main() -> ExitCode {
    match chat() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sends the prompt and prints the answer as it comes.
fn chat() -> Result<()> {
    let base = variable("OPENAI_BASE_URL", "http://127.0.0.1:3000/v1");
    let prompt =
        env::args().nth(1).unwrap_or_else(|| "What is machine learning? Answer in one sentence.".into());
    let body = json!({
        "model": variable("MODEL", "smollm2-135m-instruct"),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 200,
        "stream": true,
    });

    // An error's status comes with a body that says more.
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let response = agent
        .post(format!("{base}/chat/completions"))
        .header("authorization", format!("Bearer {}", variable("OPENAI_API_KEY", "unused")))
        .send_json(body)
        .with_context(|| format!("{base} can't be reached"))?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        bail!("status {status}: {}", body.read_to_string()?);
    }

    // Each event is a line `data: {chunk}`, the last one `data: [DONE]`. Between them are empty lines and,
    // while no token comes, comments that begin with a colon.
    let mut out = io::stdout().lock();
    for line in BufReader::new(body.into_reader()).lines() {
        let line = line.context("the stream broke off")?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            writeln!(out)?;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).context("a chunk is no JSON")?;
        if let Some(error) = chunk.get("error") {
            bail!("{error}");
        }
        if let Some(text) = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str) {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
    }
    bail!("the answer is not complete")
}

/// The value of a variable of the environment, or `default` where it is not set.
fn variable(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}
