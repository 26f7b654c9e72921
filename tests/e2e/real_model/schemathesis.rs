//! The API is what /openapi.json says: schemathesis makes requests of it, good and bad ones, and
//! finds no answer that the document does not describe, and no failure of the server.
//!
//! EMBERLINE_TEST_CASES says how many requests for each operation; `make schemathesis` asks for 2,000, drawn
//! anew each time.

use std::env;

use anyhow::{Result, ensure};
use emberline_test_kit::paths::{cache, repository};
use emberline_test_kit::stack::{API_KEY, Stack};
use tokio::process::Command;

const CASES: &str = "50";

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
