//! Client packages, frameworks and test suites of others work unchanged: each in its own idioms, by a
//! script of `clients/` that fails where anything is not as that client needs it.
//!
//! EMBERLINE_TEST_CLIENTS says which: `quick` (the default, what `make test` runs), `all` (what
//! `make clients` runs), or names with commas. One stack serves them all.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use emberline_test_kit::paths::{cache, model_path, repository};
use emberline_test_kit::stack::{API_KEY, MODEL, Options, Stack};
use futures::{StreamExt as _, stream};
use serde_json::Value;
use tokio::process::Command;

/// How long one client may take.
const TIME_LIMIT: Duration = Duration::from_secs(900);
/// How many of the quick ones run at once: starting an interpreter takes as long as asking.
const QUICK_AT_ONCE: usize = 3;
/// How much of a failed client's output is shown.
const LINES_OF_OUTPUT: usize = 40;

/// One row of the table.
struct Client {
    /// What it is asked for by.
    name: &'static str,
    /// The folder of `clients/environments/` that pins it.
    environment: &'static str,
    /// The package that it is about.
    package: &'static str,
    /// The script in `clients/` that uses it.
    script: &'static str,
    /// Whether `make test` runs it too.
    quick: bool,
}

const QUICK: bool = true;
const LONG: bool = false;

/// A row for each client; the names of the checks in its script say what it checks.
#[rustfmt::skip]
const CLIENTS: &[Client] = &[
    client("openai-chat", "python", "openai", "openai_chat.py", QUICK),
    client("openai-tools", "python", "openai", "openai_tools.py", QUICK),
    client("openai-responses", "python", "openai", "openai_responses.py", QUICK),
    client("openai-errors", "python", "openai", "openai_errors.py", QUICK),
    client("openai-js", "node", "openai", "openai_client.mjs", QUICK),
    client("ai-sdk", "node", "ai", "ai_sdk_client.mjs", QUICK),
    client("langchain", "python", "langchain-openai", "langchain_client.py", QUICK),
    client("langchain-js", "node", "@langchain/openai", "langchain_client.mjs", QUICK),
    client("llm", "python", "llm", "llm_client.py", QUICK),
    client("litellm", "openai-2", "litellm", "litellm_client.py", QUICK),
    client("instructor", "openai-2", "instructor", "instructor_client.py", QUICK),
    client("openai-agents", "python", "openai-agents", "openai_agents_client.py", QUICK),
    client("openai-agents-js", "node", "@openai/agents", "openai_agents_client.mjs", QUICK),
    client("pydantic-ai", "python", "pydantic-ai-slim", "pydantic_ai_client.py", QUICK),
    client("compliance", "python", "llm-comply", "compliance_client.py", LONG),
    client("llamaindex-js", "node", "@llamaindex/openai", "llamaindex_client.mjs", LONG),
    client("llamaindex", "proxy", "llama-index-llms-openai-like", "llamaindex_client.py", LONG),
    client("litellm-proxy", "proxy", "litellm", "litellm_proxy.py", LONG),
    client("haystack", "frameworks", "haystack-ai", "haystack_client.py", LONG),
    client("smolagents", "frameworks", "smolagents", "smolagents_client.py", LONG),
    client("outlines", "frameworks", "outlines", "outlines_client.py", LONG),
    client("guidance", "frameworks", "guidance", "guidance_client.py", LONG),
    client("aider", "aider", "aider-chat", "aider_client.py", LONG),
    client("codex", "codex", "@openai/codex", "codex_client.mjs", LONG),
    client("lm-eval", "benchmarks", "lm-eval", "lm_eval_client.py", LONG),
    client("guidellm", "benchmarks", "guidellm", "guidellm_client.py", LONG),
    client("genai-bench", "benchmarks", "genai-bench", "genai_bench_client.py", LONG),
    client("aiperf", "aiperf", "aiperf", "aiperf_client.py", LONG),
];

const fn client(
    name: &'static str,
    environment: &'static str,
    package: &'static str,
    script: &'static str,
    quick: bool,
) -> Client {
    Client { name, environment, package, script, quick }
}

enum Outcome {
    Passed,
    /// In one line, and all that it printed at last.
    Failed(String, String),
    /// Why it could not be had.
    NotInstalled(String),
}

#[tokio::test]
async fn clients_work() -> Result<()> {
    let wanted = env::var("EMBERLINE_TEST_CLIENTS").unwrap_or_else(|_| "quick".to_owned());
    let clients = chosen(&wanted)?;
    // The real model, and one called `absent` that is known and that no worker serves.
    let variables = vec![("models", format!("{MODEL},absent"))];
    let stack = Stack::start_with(Options { variables, ..Options::default() }).await?;
    // Those of a benchmark or a long test have the server for themselves.
    let at_once = if wanted == "quick" { QUICK_AT_ONCE } else { 1 };
    let mut runs = stream::iter(clients)
        .map(async |client| {
            let begun = Instant::now();
            (client, client.run(&stack).await, begun.elapsed())
        })
        .buffered(at_once);
    let (mut bad, mut outputs) = (Vec::new(), Vec::new());
    while let Some((client, outcome, took)) = runs.next().await {
        let outcome = outcome?;
        let (word, why) = match &outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why, _) => ("FAILED", why.as_str()),
            Outcome::NotInstalled(why) => ("not installed", why.as_str()),
        };
        let version = client.version().unwrap_or_default();
        let seconds = took.as_secs_f32();
        println!("{:<18} {version:<12} {word:<13} {seconds:>6.1} s  {why}", client.name);
        match outcome {
            Outcome::Failed(_, output) => {
                bad.push(client.name);
                outputs.push(format!("--- {}\n{output}", client.name));
            }
            // `all` means all that this machine can have.
            Outcome::NotInstalled(_) if wanted != "all" => bad.push(client.name),
            Outcome::NotInstalled(_) | Outcome::Passed => {}
        }
    }
    ensure!(bad.is_empty(), "did not pass: {}\n{}", bad.join(", "), outputs.join("\n"));
    Ok(())
}

/// The clients that EMBERLINE_TEST_CLIENTS asks for.
fn chosen(wanted: &str) -> Result<Vec<&'static Client>> {
    match wanted {
        "all" => Ok(CLIENTS.iter().collect()),
        "quick" => Ok(CLIENTS.iter().filter(|client| client.quick).collect()),
        names => names
            .split(',')
            .map(|name| {
                let found = CLIENTS.iter().find(|client| client.name == name);
                found.with_context(|| {
                    let known: Vec<_> = CLIENTS.iter().map(|client| client.name).collect();
                    format!("there is no client '{name}' among {}", known.join(", "))
                })
            })
            .collect(),
    }
}

impl Client {
    /// Where `deploy/setup.sh` installs it.
    fn folder(&self) -> PathBuf {
        cache().join("clients").join(self.environment)
    }

    fn is_for_node(&self) -> bool {
        Path::new(self.script).extension() == Some(OsStr::new("mjs"))
    }

    /// Why it is not there, if it isn't.
    fn missing(&self) -> Option<String> {
        if self.folder().join("installed").exists() {
            return None;
        }
        let log = fs::read_to_string(self.folder().with_extension("log")).unwrap_or_default();
        Some(log.lines().last().map_or_else(|| "run `make clients`".to_owned(), ToOwned::to_owned))
    }

    /// The version that is installed.
    fn version(&self) -> Result<String> {
        if self.is_for_node() {
            let file = self.folder().join("node_modules").join(self.package).join("package.json");
            let package: Value = serde_json::from_slice(&fs::read(file)?)?;
            return Ok(package["version"].as_str().context("a version")?.to_owned());
        }
        let wanted = format!("{}-", self.package.replace('-', "_"));
        for python in fs::read_dir(self.folder().join("lib"))? {
            for package in fs::read_dir(python?.path().join("site-packages"))? {
                let name = package?.file_name().to_string_lossy().into_owned();
                let version = name.strip_prefix(&wanted).and_then(|rest| rest.strip_suffix(".dist-info"));
                if let Some(version) = version {
                    return Ok(version.to_owned());
                }
            }
        }
        bail!("{} is not there", self.package)
    }

    /// Runs its script, in an empty folder that is its home.
    async fn run(&self, stack: &Stack) -> Result<Outcome> {
        if let Some(why) = self.missing() {
            return Ok(Outcome::NotInstalled(why));
        }
        let script = repository().canonicalize()?.join("tests/clients").join(self.script);
        let home = tempfile::tempdir()?;
        let mut command = if self.is_for_node() {
            // Modules are looked up from the script's own folder, so it runs from beside them.
            let beside = self.folder().join(self.script);
            fs::copy(script, &beside)?;
            let mut command = Command::new("node");
            command.arg(beside);
            command
        } else {
            let mut command = Command::new(self.folder().join("bin/python"));
            command.arg(script);
            command
        };
        command
            .current_dir(&home)
            .env("HOME", home.path())
            .env("OPENAI_BASE_URL", format!("{}/v1", stack.url))
            .env("OPENAI_API_KEY", API_KEY)
            .env("EMBERLINE_TEST_MODEL", model_path()?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // None of them may call home, nor look for models on a hub.
            .env("ANONYMIZED_TELEMETRY", "False")
            .env("DO_NOT_TRACK", "1")
            .env("HAYSTACK_TELEMETRY_ENABLED", "False")
            .env("HF_HUB_OFFLINE", "1")
            .env("LANGSMITH_TRACING", "false")
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .env("OPENAI_AGENTS_DISABLE_TRACING", "1")
            .kill_on_drop(true);
        let Ok(output) = tokio::time::timeout(TIME_LIMIT, command.output()).await else {
            let why = format!("not done after {} s", TIME_LIMIT.as_secs());
            return Ok(Outcome::Failed(why.clone(), why));
        };
        let output = output.with_context(|| format!("{command:?}"))?;
        if output.status.success() {
            return Ok(Outcome::Passed);
        }
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(LINES_OF_OUTPUT)..).unwrap_or_default();
        let why = last.last().map_or_else(|| output.status.to_string(), |line| (*line).to_owned());
        Ok(Outcome::Failed(why.chars().take(160).collect(), last.join("\n")))
    }
}
