//! Several models in one worker, as clients see them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::paths::model_path;
use emberline_test_kit::process::resident_bytes;
use emberline_test_kit::stack::{Engine, MODEL, Options, Stack};
use serde_json::{Value, json};

/// Another name for the same weights.
const TWIN: &str = "twin";

fn ask(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0})
}

/// Replaces the list of models.
fn list(file: &Path, names: &[&str]) -> Result<()> {
    let weights = model_path()?.canonicalize()?;
    let entry = |name: &&str| format!("[[model]]\nname = '{name}'\nsource = '{}'\n", weights.display());
    let next = file.with_extension("next");
    std::fs::write(&next, names.iter().map(entry).collect::<String>())?;
    Ok(std::fs::rename(next, file)?)
}

/// Memory that the worker holds, in bytes.
fn resident(stack: &Stack) -> Result<u64> {
    resident_bytes(stack.worker_id().context("there is no worker")?).context("resident memory is not known")
}

#[tokio::test]
async fn two_models_of_one_worker_answer_until_one_is_removed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("models.toml");
    list(&file, &[MODEL])?;
    let args = ["--models", &file.to_string_lossy(), "--slots", "2", "--cache-memory", "64MiB"];
    let worker_args = args.map(String::from).to_vec();
    let stack =
        Stack::start_with(Options { engine: Engine::Given, worker_args, ..Options::default() }).await?;
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let before = text(&stack.completion(&ask(MODEL)).await?);
    let alone = resident(&stack)?;

    list(&file, &[MODEL, TWIN])?;
    stack.wait_for_models(&[MODEL, TWIN]).await?;
    stack.heartbeat(|beat| beat.models.len() == 2 && beat.capacity == 4).await?;
    let (one, other) = (ask(MODEL), ask(TWIN));
    let (one, other) = tokio::try_join!(stack.completion(&one), stack.completion(&other))?;
    assert_eq!((text(&one), text(&other)), (before.clone(), before.clone()));
    let both = resident(&stack)?;

    list(&file, &[MODEL])?;
    stack.wait_for_models(&[MODEL]).await?;
    stack.heartbeat(|beat| beat.states.len() == 1).await?;
    let after = resident(&stack)?;
    println!("resident: {} MiB with one model, {} with two, {} after", alone >> 20, both >> 20, after >> 20);
    // What comes and goes with answers is not the model's.
    ensure!(both.saturating_sub(after) > (both - alone) / 2, "{alone} {both} {after}");
    let refused = stack.chat(&ask(TWIN)).await?;
    assert_eq!(refused.status(), 404);
    assert_eq!(refused.json::<Value>().await?["error"]["code"], "model_not_found");
    assert_eq!(text(&stack.completion(&ask(MODEL)).await?), before);
    Ok(())
}
