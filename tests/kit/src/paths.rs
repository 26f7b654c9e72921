//! Where the repository, its programs and the cached downloads are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::options::MODEL;

/// The top folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program of this workspace, built by `cargo build --workspace` beside this test.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("a test lies in target/<profile>/deps")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{name} is not built: run `cargo build --workspace`, or `make test`");
    Ok(path)
}

/// The folder that `emberline` and `deploy/setup.sh` download to.
pub fn cache() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    of("EMBERLINE_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|x| x.join("emberline")))
        .or_else(|| of("HOME").map(|h| h.join(".cache/emberline")))
        .unwrap_or_else(|| PathBuf::from("emberline-cache"))
}

/// The real model's file.
pub fn model_path() -> Result<PathBuf> {
    let path = std::env::var_os("EMBERLINE_TEST_MODEL")
        .map_or_else(|| cache().join("models").join(format!("{MODEL}.gguf")), PathBuf::from);
    ensure!(
        path.exists(),
        "the model is not at {}: run `make test`, which fetches it, or set EMBERLINE_TEST_MODEL",
        path.display()
    );
    Ok(path)
}
