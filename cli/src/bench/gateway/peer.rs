//! Other gateways: Python packages whose programs run beside Emberline under the same load.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::load::Target;
use super::processes::Part;
use super::system::{Pace, System};
use crate::up::ports::{self, ListenAddress, PortClaim};
use crate::up::process::{Exit, Process, Program};
use crate::up::transcript::{StackPart, Transcript};

/// How long a peer, or one of its workers, may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a program may take from SIGTERM to its end before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// The name under which a peer serves its model.
const MODEL: &str = "simulated";

/// Why a peer can't be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error(
        "{python} has no {package}. Install it ({python} -m pip install '{requirement}') or name another \
         interpreter with {option}"
    )]
    NotInstalled { python: String, package: &'static str, requirement: &'static str, option: &'static str },
    #[error("{python} can't be started: {reason}. Name a Python that has {package} with {option}")]
    NoPython { python: String, package: &'static str, option: &'static str, reason: io::Error },
}

/// A Python package that is measured beside Emberline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    name: &'static str,
    requirement: &'static str,
    option: &'static str,
    /// A module that is imported to see whether the package is complete.
    module: &'static str,
}

/// NVIDIA Dynamo.
pub(crate) const DYNAMO: Package = Package {
    name: "ai-dynamo",
    requirement: "ai-dynamo==1.6.1",
    option: "--dynamo-python (EMBERLINE_DYNAMO_PYTHON)",
    module: "dynamo.llm",
};
/// LiteLLM's proxy.
pub(crate) const LITELLM: Package = Package {
    name: "litellm",
    requirement: "litellm[proxy]>=1.100",
    option: "--litellm-python (EMBERLINE_LITELLM_PYTHON)",
    module: "fastapi",
};

impl Package {
    /// The installed version, if the package can be imported.
    pub(crate) fn version(&self, python: &str) -> Result<String, PeerError> {
        let Self { name: package, requirement, option, module } = *self;
        let script = format!("import importlib.metadata as m, {module}; print(m.version('{package}'))");
        let run =
            Command::new(python).args(["-c", &script]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        let python = python.to_owned();
        let output = match run {
            Ok(output) => output,
            Err(reason) => return Err(PeerError::NoPython { python, package, option, reason }),
        };
        if !output.status.success() {
            return Err(PeerError::NotInstalled { python, package, requirement, option });
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The programs of a peer that run.
struct Programs<'a> {
    python: PathBuf,
    folder: PathBuf,
    transcript: &'a Transcript,
    running: Vec<Process>,
    exits: mpsc::UnboundedSender<Exit>,
}

impl<'a> Programs<'a> {
    fn new(python: &str, folder: &Path, transcript: &'a Transcript) -> Self {
        // Whether a program runs is asked for, not waited for.
        let (exits, _) = mpsc::unbounded_channel();
        // It is started in another folder; a name alone is looked up on PATH.
        let is_path = python.contains(std::path::MAIN_SEPARATOR);
        let absolute = is_path.then(|| std::path::absolute(python).ok()).flatten();
        let python = absolute.unwrap_or_else(|| python.into());
        Self { python, folder: folder.to_owned(), transcript, running: Vec::new(), exits }
    }

    fn start(
        &mut self,
        name: &'static str,
        path: &Path,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let program = Program {
            part: StackPart::Peer(name),
            path: path.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            folder: self.folder.clone(),
        };
        self.running.push(Process::spawn(&program, self.transcript, &self.exits)?);
        Ok(())
    }

    fn start_python(
        &mut self,
        name: &'static str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let python = self.python.clone();
        self.start(name, &python, args, env)
    }

    fn parts(&self) -> Vec<Part> {
        let part = |process: &Process| match process.part() {
            StackPart::Peer(name) => Some(Part { name, group: process.group() }),
            StackPart::Nats | StackPart::Edge | StackPart::Worker(_) | StackPart::Function => None,
        };
        self.running.iter().filter_map(part).collect()
    }

    /// Waits until `target` answers as it should.
    async fn wait_for(&self, target: &Target) -> anyhow::Result<()> {
        self.wait_until(async || target.probe().await.map_err(|error| error.to_string())).await
    }

    /// Waits until `ready` says so.
    async fn wait_until(&self, ready: impl AsyncFn() -> Result<(), String>) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let Err(reason) = ready().await else { return Ok(()) };
            if let Some(ended) = self.running.iter().find(|process| !process.is_alive()) {
                let part = ended.part();
                bail!("{part} ended. Its last lines:\n{}", self.transcript.tail(part));
            }
            if began.elapsed() > READY_TIMEOUT {
                bail!("not ready after {} s: {reason}", READY_TIMEOUT.as_secs());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn kill(&mut self, name: &'static str) {
        for process in self.running.extract_if(.., |process| process.part() == StackPart::Peer(name)) {
            process.kill();
            process.ended().await;
        }
    }

    async fn stop(&mut self) {
        join_all(self.running.iter().map(|process| process.stop(GRACE))).await;
        self.running.clear();
    }
}

/// Addresses on the loopback interface that are free.
fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    let listen: ListenAddress = "127.0.0.1:0".parse()?;
    let claim = PortClaim { listen, part: "peer", variable: "the address of the loopback interface" };
    Ok(ports::check([claim; N])?)
}

/// NVIDIA Dynamo: its frontend, and its mocker in place of workers. They find each other by files and talk over TCP.
pub(crate) struct Dynamo<'a> {
    programs: Programs<'a>,
    target: Target,
    pace: Pace,
    model: PathBuf,
    /// Workers that the frontend has known; it goes on listing dead ones for a while.
    known_workers: Vec<u64>,
}

/// The names of the two workers.
const MOCKERS: [&str; 2] = ["mocker", "second mocker"];
/// A ratio so high that the mocker waits for nothing. 0 is said to mean that, and version 1.6.1 takes it for 1.
const NO_PAUSES: &str = "1000000";
/// How many tokens a second the mocker makes of one stream at a ratio of 1.
const TOKENS_PER_S: f64 = 172.0;
/// How often a request may go on with another worker.
const MIGRATIONS: &str = "3";

impl<'a> Dynamo<'a> {
    pub(crate) fn new(
        python: &str,
        pace: Pace,
        folder: &Path,
        transcript: &'a Transcript,
    ) -> anyhow::Result<Self> {
        let model = folder.join("model");
        write_model(&model).with_context(|| model.display().to_string())?;
        let [address] = free_addresses()?;
        let target = Target { address, api_key: None, model: MODEL.to_owned() };
        let programs = Programs::new(python, folder, transcript);
        Ok(Self { programs, target, pace, model, known_workers: Vec::new() })
    }

    /// Variables and options that frontend and mocker share.
    fn shared(&self) -> ([(&'static str, String); 4], [&'static str; 4]) {
        let store = self.programs.folder.join("discovery");
        let env = [
            ("DYN_FILE_KV", store.to_string_lossy().into_owned()),
            // The model is in a folder, and what is logged for each request is no part of the work.
            ("HF_HUB_OFFLINE", "1".to_owned()),
            ("DYN_LOG", "warn".to_owned()),
            ("DYN_SDK_DISABLE_ANSI_LOGGING", "1".to_owned()),
        ];
        (env, ["--discovery-backend", "file", "--request-plane", "tcp"])
    }

    fn start_program(&mut self, name: &'static str, own: &[&str]) -> anyhow::Result<()> {
        let (env, shared) = self.shared();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.programs.start_python(name, &[own, &shared[..]].concat(), &env)
    }

    fn start_mocker(&mut self, name: &'static str) -> anyhow::Result<()> {
        let ratio = |pace: u32| (f64::from(pace) / TOKENS_PER_S).to_string();
        let ratio = self.pace.tokens_per_s.map_or_else(|| NO_PAUSES.to_owned(), ratio);
        let model = self.model.to_string_lossy().into_owned();
        let of_model = ["-m", "dynamo.mocker", "--model-path", &model, "--model-name", MODEL];
        let of_engine = ["--speedup-ratio", &ratio, "--max-num-seqs", "512", "--kv-bytes-per-token", "256"];
        self.start_program(name, &[&of_model[..], &of_engine[..]].concat())
    }

    /// The workers that the frontend lists.
    async fn listed_workers(&self) -> Result<Vec<u64>, String> {
        let (_, body) =
            Target::get(self.target.address, "/health").await.map_err(|error| error.to_string())?;
        let health: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let instances = health["instances"].as_array().map_or(&[][..], Vec::as_slice);
        let serving = instances.iter().filter(|instance| instance["endpoint"] == "generate");
        Ok(serving.filter_map(|instance| instance["instance_id"].as_u64()).collect())
    }
}

impl System for Dynamo<'_> {
    async fn start(&mut self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.programs.folder.join("discovery"))?;
        let port = self.target.address.port().to_string();
        let listen = ["--http-host", "127.0.0.1", "--http-port", &port];
        let own = [&["-m", "dynamo.frontend"], &listen[..], &["--migration-limit", MIGRATIONS]].concat();
        self.start_program("frontend", &own)?;
        self.start_mocker(MOCKERS[0])?;
        self.programs.wait_for(&self.target).await?;
        self.known_workers = self.listed_workers().await.map_err(anyhow::Error::msg)?;
        Ok(())
    }

    async fn stop(&mut self) {
        self.programs.stop().await;
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn parts(&self) -> Vec<Part> {
        self.programs.parts()
    }

    async fn start_worker(&mut self, number: usize) -> anyhow::Result<()> {
        self.start_mocker(mocker(number))?;
        let is_listed = async || {
            let listed = self.listed_workers().await?;
            let is_new = listed.iter().any(|worker| !self.known_workers.contains(worker));
            if is_new { Ok(()) } else { Err("the frontend does not list the worker".to_owned()) }
        };
        self.programs.wait_until(is_listed).await?;
        self.known_workers.extend(self.listed_workers().await.map_err(anyhow::Error::msg)?);
        Ok(())
    }

    async fn kill_worker(&mut self, number: usize) {
        self.programs.kill(mocker(number)).await;
    }
}

fn mocker(number: usize) -> &'static str {
    if number == 1 { MOCKERS[0] } else { MOCKERS[1] }
}

/// Writes the least that Dynamo reads of a model: its shape, a tokenizer of whole words and a chat template. The
/// mocker makes tokens between 1,000 and 2,000.
fn write_model(folder: &Path) -> io::Result<()> {
    const WORDS: usize = 4096;
    const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
    let words =
        SPECIAL.iter().map(|&word| word.to_owned()).chain((SPECIAL.len()..WORDS).map(|id| format!("w{id}")));
    let vocabulary: serde_json::Map<String, Value> =
        words.zip(0..).map(|(word, id)| (word, Value::from(id))).collect();
    let special = SPECIAL.iter().zip(0..).map(|(word, id)| {
        json!({
            "id": id, "content": word, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    });
    let config = json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": WORDS,
        "hidden_size": 64,
        "head_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    });
    let generation_config = json!({"bos_token_id": 1, "eos_token_id": 2});
    std::fs::create_dir_all(folder)?;
    for (name, content) in [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
        ("config.json", config),
        ("generation_config.json", generation_config),
    ] {
        std::fs::write(folder.join(name), content.to_string())?;
    }
    Ok(())
}

/// The server behind LiteLLM's proxy.
pub(crate) const BACKEND: &str = "backend";

/// LiteLLM's proxy before a server that does nothing.
pub(crate) struct LiteLlm<'a> {
    programs: Programs<'a>,
    target: Target,
    backend: SocketAddr,
}

impl<'a> LiteLlm<'a> {
    pub(crate) fn new(python: &str, folder: &Path, transcript: &'a Transcript) -> anyhow::Result<Self> {
        let [address, backend] = free_addresses()?;
        let key = format!("sk-{}", crate::cache::random_hex::<16>());
        let target = Target { address, api_key: Some(key), model: MODEL.to_owned() };
        Ok(Self { programs: Programs::new(python, folder, transcript), target, backend })
    }
}

impl System for LiteLlm<'_> {
    async fn start(&mut self) -> anyhow::Result<()> {
        let key = self.target.api_key.clone().unwrap_or_default();
        let parameters = json!({
            "model": "openai/fixed",
            "api_base": format!("http://{}/v1", self.backend),
            "api_key": "none",
        });
        // YAML takes JSON.
        let config = json!({
            "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
            "general_settings": {"master_key": key},
        });
        let file = self.programs.folder.join("litellm.yaml");
        std::fs::write(&file, config.to_string())?;
        let emberline = std::env::current_exe()?;
        self.programs.start(
            BACKEND,
            &emberline,
            &["bench", "backend", "--listen", &self.backend.to_string()],
            &[],
        )?;
        let (file, port) = (file.to_string_lossy(), self.target.address.port().to_string());
        let args = [
            "-c",
            "import litellm; litellm.run_server()",
            "--config",
            &file,
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--telemetry",
            "False",
        ];
        let env = [
            ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
            ("LITELLM_LOG", "ERROR"),
            ("LITELLM_MODE", "PRODUCTION"),
        ];
        self.programs.start_python("proxy", &args, &env)?;
        self.programs.wait_for(&self.target).await
    }

    async fn stop(&mut self) {
        self.programs.stop().await;
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn parts(&self) -> Vec<Part> {
        self.programs.parts()
    }

    async fn start_worker(&mut self, _: usize) -> anyhow::Result<()> {
        bail!("LiteLLM's proxy takes nothing over")
    }

    async fn kill_worker(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_package_is_reported_with_what_to_install() {
        let package = Package { module: "sys", name: "no-such-package", ..DYNAMO };
        let error = package.version("python3").unwrap_err().to_string();
        assert!(error.contains("python3 -m pip install 'ai-dynamo==1.6.1'"), "{error}");
        assert!(error.contains("EMBERLINE_DYNAMO_PYTHON"), "{error}");
        let error = LITELLM.version("/no/such/python").unwrap_err().to_string();
        assert!(error.contains("/no/such/python") && error.contains("EMBERLINE_LITELLM_PYTHON"), "{error}");
    }

    #[test]
    fn the_tokenizer_has_a_word_for_each_token_of_the_mocker() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
        let tokenizer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(tokenizer["model"]["vocab"]["w1999"], 1999);
        assert_eq!(tokenizer["model"]["vocab"]["</s>"], 2);
        assert_eq!(tokenizer["added_tokens"][2]["id"], 2);
    }
}
