//! Builds the component that the tests run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Builds the fixture component once.
pub(crate) fn fixture() -> &'static Path {
    static FIXTURE: OnceLock<PathBuf> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture/Cargo.toml");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet", "--locked", "--target", "wasm32-wasip2", "--manifest-path"])
            .arg(source)
            .arg("--target-dir")
            .arg(target)
            .status()
            .expect("cargo starts");
        assert!(status.success(), "the fixture doesn't build; is the target wasm32-wasip2 installed?");
        target.join("wasm32-wasip2/debug/emberline_host_fixture.wasm")
    })
}
