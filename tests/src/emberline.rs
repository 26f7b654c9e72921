//! The `emberline` command, as whoever keeps the keys calls it.

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::nats::NatsServer;
use crate::stack::binary;

/// Runs `emberline` against a stack's nats-server; what it printed.
pub async fn emberline(nats: &NatsServer, args: &[&str]) -> Result<String> {
    let output = Command::new(binary("emberline")?)
        .args(args)
        .args(["--nats", &nats.address()])
        .env("EMBERLINE_ADMIN_PASSWORD", nats.admin_password())
        .env("EMBERLINE_CACHE", nats.directory().join("cache"))
        .output()
        .await
        .context("emberline")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "emberline {}: {said}", args.join(" "));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Makes a key; more arguments give its settings.
pub async fn new_key(nats: &NatsServer, name: &str, settings: &[&str]) -> Result<String> {
    emberline(nats, &[&["keys", "create", "--name", name], settings].concat()).await
}
