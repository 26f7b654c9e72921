//! The `emberline` command, run as an administrator.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::nats::{ADMIN_SEED, Nats};
use crate::paths::binary;

/// `emberline` with these arguments, connected to a stack's nats-servers as administrator.
pub fn command(nats: &impl Nats, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("emberline")?);
    command
        .args(args)
        .args(["--nats", &nats.urls().join(",")])
        .env("EMBERLINE_ADMIN_NKEY_SEED", ADMIN_SEED)
        .env("EMBERLINE_CACHE", nats.directory().join("cache"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(ca) = nats.ca() {
        command.env("EMBERLINE_NATS_CA", ca);
    }
    Ok(command)
}

/// Runs `emberline`, which must succeed, and returns what it printed.
pub async fn emberline(nats: &impl Nats, args: &[&str]) -> Result<String> {
    let output = command(nats, args)?.output().await.context("emberline")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "emberline {}: {said}", args.join(" "));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Runs `emberline`, which must fail, and returns its stdout and stderr.
pub async fn refused(nats: &impl Nats, args: &[&str]) -> Result<(String, String)> {
    let output = command(nats, args)?.output().await.context("emberline")?;
    ensure!(!output.status.success(), "emberline {} did not fail", args.join(" "));
    Ok((String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// Creates a key with more arguments for its settings, and returns it.
pub async fn new_key(nats: &impl Nats, name: &str, settings: &[&str]) -> Result<String> {
    emberline(nats, &[&["keys", "create", "--name", name], settings].concat()).await
}
