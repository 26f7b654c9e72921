//! The real model that tests run, and reference numbers for it.

#![allow(dead_code)] // each test uses a part of it

pub(crate) mod golden;

use std::path::{Path, PathBuf};

/// The real model's file: EMBERLINE_TEST_MODEL, or where `make test` puts it.
pub(crate) fn model_path() -> PathBuf {
    let path = std::env::var_os("EMBERLINE_TEST_MODEL")
        .map_or_else(|| cache().join("models/smollm2-135m-instruct.gguf"), PathBuf::from);
    assert!(
        path.exists(),
        "the model is not at {}: run `make test`, which fetches it, or set EMBERLINE_TEST_MODEL",
        path.display()
    );
    path
}

/// Emberline's cache folder.
fn cache() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("EMBERLINE_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|folder| folder.join("emberline")))
        .or_else(|| of("HOME").map(|folder| folder.join(".cache/emberline")))
        .unwrap_or_else(|| PathBuf::from("emberline-cache"))
}

/// The repository's folder.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
