//! Measures llama.cpp with the same weights, through the Python package llama-cpp-python.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use emberline_protocol::measurement::LlamaCpp;

/// Prints a [`LlamaCpp`] as JSON.
const SCRIPT: &str = include_str!("llama_bench.py");
/// The exit status of the script if the package is not installed.
const NOT_INSTALLED: i32 = 3;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LlamaError {
    #[error(
        "llama.cpp was not found: {python} has no llama-cpp-python. Install it ({python} -m pip install \
         llama-cpp-python) or name another interpreter with --llama-python"
    )]
    NotInstalled { python: String },
    #[error(
        "llama.cpp was not found: {python} can't be started: {source}. Name a Python with --llama-python"
    )]
    NoPython { python: String, source: io::Error },
    #[error(
        "llama.cpp failed: {0}. llama-cpp-python may have been built by a compiler that is too old for this \
         processor; build it again with a newer one"
    )]
    Crashed(String),
    #[error("llama.cpp failed: {0}")]
    Failed(String),
    #[error("llama.cpp's results can't be read: {0}")]
    Output(#[from] serde_json::Error),
}

/// The sizes to measure, which are those of our own measurement.
#[derive(Debug, Clone)]
pub(crate) struct LlamaLoad<'a> {
    pub(crate) model: &'a Path,
    pub(crate) threads: usize,
    pub(crate) gpu: bool,
    pub(crate) prompts: Vec<usize>,
    pub(crate) batches: Vec<usize>,
    pub(crate) quick: bool,
}

impl LlamaLoad<'_> {
    /// Runs llama.cpp in a process of its own.
    pub(crate) fn measure(&self, python: &str) -> Result<LlamaCpp, LlamaError> {
        let output = self
            .command(python)
            .output()
            .map_err(|source| LlamaError::NoPython { python: python.to_owned(), source })?;
        read(&output, python)
    }

    fn command(&self, python: &str) -> Command {
        let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let (steps, repeat) = if self.quick { ("16", "2") } else { ("32", "5") };
        let mut command = Command::new(python);
        command
            .args(["-c", SCRIPT, "--model"])
            .arg(self.model)
            .args(["--threads", &self.threads.to_string()])
            .args(["--prompts", &list(&self.prompts)])
            .args(["--batches", &list(&self.batches)])
            .args(["--steps", steps, "--repeat", repeat])
            .stdin(Stdio::null());
        if self.gpu {
            command.arg("--gpu");
        }
        command
    }
}

fn read(output: &Output, python: &str) -> Result<LlamaCpp, LlamaError> {
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout)?);
    }
    if output.status.code() == Some(NOT_INSTALLED) {
        return Err(LlamaError::NotInstalled { python: python.to_owned() });
    }
    if let Some(signal) = output.status.signal() {
        return Err(LlamaError::Crashed(format!("killed by signal {signal}")));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    Err(LlamaError::Failed(last.map_or_else(|| output.status.to_string(), |line| line.trim().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::ExitStatus;

    /// `status` is encoded as by wait(2).
    fn outcome(status: i32, stdout: &str, stderr: &str) -> Result<LlamaCpp, LlamaError> {
        let status = ExitStatus::from_raw(status);
        read(&Output { status, stdout: stdout.into(), stderr: stderr.into() }, "python9")
    }

    #[test]
    fn results_are_read() {
        let rate =
            r#"{"batch":1,"prompt_tokens":8,"tokens_per_s":2.0,"seconds":4.0,"fastest_s":4,"slowest_s":5}"#;
        let json = format!(
            r#"{{"version":"0.3","system":"AVX","gpu":false,"threads":2,"prefill":[{rate}],"decode":[],"peak_memory":9}}"#
        );
        let measured = outcome(0, &json, "").unwrap();
        assert_eq!(measured.prefill.first().map(|rate| rate.prompt_tokens), Some(8));
        assert!(matches!(outcome(0, "no", ""), Err(LlamaError::Output(_))));
    }

    #[test]
    fn errors_about_missing_programs_name_the_remedy() {
        let error = outcome(NOT_INSTALLED << 8, "", "").unwrap_err().to_string();
        assert!(error.contains("python9 -m pip install llama-cpp-python"), "{error}");
        let load = LlamaLoad {
            model: Path::new("m"),
            threads: 1,
            gpu: false,
            prompts: vec![],
            batches: vec![],
            quick: true,
        };
        let error = load.measure("/no/such/python").unwrap_err().to_string();
        assert!(error.contains("/no/such/python") && error.contains("--llama-python"), "{error}");
    }

    #[test]
    fn a_failure_is_reported_by_its_last_line() {
        let error = outcome(1 << 8, "", "Traceback\nValueError: x\n\n").unwrap_err().to_string();
        assert_eq!(error, "llama.cpp failed: ValueError: x");
        let error = outcome(11, "", "").unwrap_err().to_string();
        assert!(error.contains("killed by signal 11"), "{error}");
    }

    #[test]
    fn the_script_compiles_and_takes_the_arguments() {
        // The error names the missing package or the missing model; either way the script was run.
        let load = LlamaLoad {
            model: Path::new("/no/such/model.gguf"),
            threads: 1,
            gpu: false,
            prompts: vec![8],
            batches: vec![1],
            quick: true,
        };
        let error = load.measure("python3").unwrap_err();
        assert!(
            matches!(&error, LlamaError::NotInstalled { .. })
                || error.to_string().contains("/no/such/model.gguf"),
            "{error}"
        );
    }
}
