//! `emberline up`: runs nats-server, the workers and the function on this machine as one stack.
//!
//! [`prepare`] decides everything that can be decided before anything runs (the [`ports`], the model, the
//! programs); the result is a [`plan`]. [`with_stack`] starts the parts as [`process`]es of a [`stack`], which
//! restarts workers within the limits of [`restart`] and logs the output of all parts in a [`transcript`].
//! [`crate::running_stack`] records how other commands reach the stack, and [`parent_death`] makes sure that no
//! part outlives it.

pub(crate) mod bus_way;
pub(crate) mod host;
pub(crate) mod parent_death;
pub(crate) mod plan;
pub(crate) mod ports;
pub(crate) mod process;
mod restart;
pub(crate) mod stack;
pub(crate) mod transcript;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use emberline_protocol::bytes::Bytes;
use emberline_protocol::heartbeat::Heartbeat;
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cache::Cache;
use crate::catalogue::Catalogue;
use crate::console::Console;
use crate::nats::access::NatsAccess;
use crate::nats::stored;
use crate::programs;
use crate::pull::Puller;
use crate::running_stack::{RunningStack, StackLock};
use crate::runtime::runtime;
use bus_way::BusWay;
use host::FunctionHost;
use plan::{ALIAS, Backend, Model, Models, NATS_CONFIG, StackPlan, StackUsers};
use ports::{ListenAddress, PortClaim};
use stack::Stack;
use transcript::Transcript;

#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// Where the function listens
    #[arg(long, env = "EMBERLINE_LISTEN", default_value = "127.0.0.1:3000", value_name = "ADDRESS")]
    listen: ListenAddress,
    /// Where nats-server listens
    #[arg(long, env = "EMBERLINE_NATS_LISTEN", default_value = "127.0.0.1:4222", value_name = "ADDRESS")]
    nats_listen: ListenAddress,
    /// The API key that clients must send [default: generated once and kept in the cache folder]
    #[arg(long, env = "EMBERLINE_API_KEY", hide_env_values = true, value_name = "KEY", value_parser = api_key)]
    pub(crate) api_key: Option<String>,
    /// A model of the catalogue, or a path to a .gguf file
    #[arg(long, env = "EMBERLINE_MODEL", default_value = "smollm2-135m-instruct")]
    model: String,
    /// A TOML file that lists several models; it is watched, and models are loaded and unloaded as it changes
    #[arg(long, env = "EMBERLINE_MODELS", value_name = "FILE", conflicts_with = "model")]
    models: Option<PathBuf>,
    /// Where to compute; `auto` takes the GPU if there is one
    #[arg(long, env = "EMBERLINE_BACKEND", value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// How many workers to start
    #[arg(long, env = "EMBERLINE_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// The host that runs the function [default: spin if 4.1 or newer is on PATH, local otherwise]
    #[arg(long, env = "EMBERLINE_HOST", value_enum)]
    host: Option<FunctionHost>,
    /// A catalogue to use in place of the built-in one
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
}

/// A stack that is ready to start: the plan is made and the cache folder locked.
pub(crate) struct PreparedStack {
    plan: StackPlan,
    lock: StackLock,
    transcript: Transcript,
    console: Console,
}

/// Runs the stack until a signal stops it.
pub(crate) fn run(args: &UpArgs, cache: &Cache) -> anyhow::Result<()> {
    let console = Console::default();
    let prepared = prepare(args, cache, console.clone())?;
    let log = prepared.transcript.path().to_owned();
    let banner = async |running: &RunningStack| {
        println!("{}", render_banner(running, &describe_workers(running).await, &log));
        std::future::pending().await
    };
    runtime()?.block_on(with_stack(prepared, banner)).map(|_: Option<()>| ())
}

/// Checks the options, fetches what is missing and makes the plan.
pub(crate) fn prepare(args: &UpArgs, cache: &Cache, console: Console) -> anyhow::Result<PreparedStack> {
    let lock = StackLock::acquire(cache)?;
    let [listen, nats_listen] = ports::check([
        PortClaim { listen: args.listen, part: "function", variable: "EMBERLINE_LISTEN" },
        PortClaim { listen: args.nats_listen, part: "nats-server", variable: "EMBERLINE_NATS_LISTEN" },
    ])?;
    let root = find_built_root()?;
    let (host, host_program) = host::find(args.host, &console)?;
    let worker_program = programs::sibling("emberline-worker")?;
    let catalogue = Catalogue::load(args.catalogue.as_deref())?;
    let puller = Puller::new(cache, &catalogue, &console);
    let plan = StackPlan {
        nats_server: puller.nats_server()?,
        nats_config: root.join(NATS_CONFIG),
        root,
        nats_store: cache.folder("nats")?,
        nats_listen,
        nats_monitoring: None,
        bus_way: BusWay::Plain,
        listen,
        host,
        host_program,
        cache: cache.path(""),
        spin_state: cache.folder("spin")?,
        spin_cache: host::write_spin_cache(cache)?,
        worker_program,
        workers: args.workers.into(),
        backend: args.backend,
        models: match &args.models {
            Some(file) => listed_models(file)?,
            None => Models::One(find_model(&args.model, &puller)?),
        },
        api_key: args.api_key.clone().map_or_else(|| cache.api_key(), Ok)?,
        default_limits: None,
        log_filter: None,
        users: StackUsers::random().context("the system gives no random numbers")?,
    };
    let log = cache.folder("run")?.join("up.log");
    let transcript = Transcript::create(&log, console.clone()).with_context(|| log.display().to_string())?;
    Ok(PreparedStack { plan, lock, transcript, console })
}

/// Starts the stack, runs `work` once it is ready, and stops the stack in any case.
///
/// `None` if a signal ended the stack before the work was done.
pub(crate) async fn with_stack<T>(
    prepared: PreparedStack,
    work: impl AsyncFnOnce(&RunningStack) -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let PreparedStack { plan, lock, transcript, console } = prepared;
    let mut stop_signals = StopSignals::listen()?;
    let mut stack = Stack::new(&plan, &transcript, &console);
    let running = RunningStack {
        pid: std::process::id(),
        url: plan.url(),
        api_key: plan.api_key.clone(),
        nats: plan.nats_address().to_string(),
        worker_seed: plan.users.worker.seed.clone(),
        admin_seed: plan.users.admin.seed.clone(),
    };
    let outcome = tokio::select! {
        () = stop_signals.recv() => Ok(None),
        outcome = async {
            stack.start().await?;
            lock.publish(&running)?;
            tokio::select! {
                error = stack.supervise() => Err(error.into()),
                done = work(&running) => done.map(Some),
            }
        } => outcome,
    };
    console.print("stopping");
    transcript.mute();
    tokio::select! {
        () = stack.stop() => {}
        () = stop_signals.recv() => stack.kill().await,
    }
    outcome
}

/// The signals that stop the stack: SIGINT, SIGTERM and SIGHUP.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl StopSignals {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// The folder of the project: the current one or one above it, whichever has spin.toml.
pub(crate) fn find_root() -> io::Result<Option<PathBuf>> {
    let here = std::env::current_dir()?;
    Ok(here.ancestors().find(|folder| folder.join("spin.toml").is_file()).map(Path::to_owned))
}

/// The folder with spin.toml, the built function and deploy/nats.conf: what was installed with this program, or else
/// the project's folder.
pub(crate) fn find_built_root() -> anyhow::Result<PathBuf> {
    if let Some(installed) = programs::installed_root() {
        return Ok(installed);
    }
    let root = find_root()
        .context("the current folder is unknown")?
        .context("no spin.toml here or in a folder above; run emberline in a checkout of the project, or install it with pip")?;
    let wasm = root.join("build/function.wasm");
    ensure!(wasm.is_file(), "{} is missing; build it with `make function`", wasm.display());
    Ok(root)
}

/// Reads the names of the models that a file lists; the worker reads the rest.
fn listed_models(file: &Path) -> anyhow::Result<Models> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(default)]
        model: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let what = || format!("--models: {}", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    let listed: Listed = toml::from_str(&text).with_context(what)?;
    let names = listed.model.into_iter().map(|model| model.name).collect();
    Ok(Models::Listed { file: std::fs::canonicalize(file).with_context(what)?, names })
}

pub(crate) fn find_model(wanted: &str, puller: &Puller<'_>) -> anyhow::Result<Model> {
    let path = Path::new(wanted);
    if path.extension().is_none_or(|extension| extension != "gguf") {
        return Ok(Model { name: wanted.to_owned(), path: puller.model(wanted)? });
    }
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let name = name.with_context(|| format!("EMBERLINE_MODEL: {wanted} has no name before .gguf"))?;
    // Both characters are separators in the lists of names that the function reads.
    ensure!(
        !name.contains([',', '=']),
        "EMBERLINE_MODEL: the name of {wanted} has a ',' or '='; rename the file"
    );
    let path = std::fs::canonicalize(path).with_context(|| format!("EMBERLINE_MODEL: {wanted}"))?;
    Ok(Model { name: name.to_owned(), path })
}

fn api_key(text: &str) -> Result<String, &'static str> {
    let sendable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if sendable { Ok(text.to_owned()) } else { Err("must be visible ASCII characters without spaces") }
}

/// Describes the served models and their devices, from the heartbeats.
async fn describe_workers(running: &RunningStack) -> String {
    let heartbeats = async {
        let access = NatsAccess::worker(&running.nats, running.worker_seed.clone())?;
        stored::heartbeats(&access.connect().await?).await
    };
    describe(&heartbeats.await.unwrap_or_default())
}

/// `smollm2-135m-instruct on CPU (flex, 2 threads), takes at most 640.0 MiB`.
fn describe(heartbeats: &[Heartbeat]) -> String {
    let model = |beat: &Heartbeat, name: &str| {
        let status = beat.states.iter().find(|status| status.name == name);
        let memory = status.and_then(|status| status.memory);
        let memory = memory.map(|bytes| format!(", takes at most {}", Bytes(bytes)));
        format!("{name} on {}{}", beat.device, memory.unwrap_or_default())
    };
    let served =
        heartbeats.iter().flat_map(|beat| beat.models.iter().map(|served| model(beat, &served.name)));
    let mut served: Vec<String> = served.collect();
    served.sort();
    let different = served.chunk_by(|a, b| a == b).filter_map(|same| match same {
        [one] => Some(one.clone()),
        [first, ..] => Some(format!("{first}, in each of {} workers", same.len())),
        [] => None,
    });
    different.collect::<Vec<_>>().join("; ")
}

fn render_banner(running: &RunningStack, workers: &str, log: &Path) -> String {
    let RunningStack { url, api_key, .. } = running;
    format!(
        r#"
Emberline is ready: {workers}

  URL      {url}
  API key  {api_key}
  model    {ALIAS}
  log      {}

Try it:

{}

Ctrl-C stops everything."#,
        log.display(),
        render_curl(url, api_key)
    )
}

fn render_curl(url: &str, api_key: &str) -> String {
    format!(
        r#"curl {url}/v1/chat/completions -H "Content-Type: application/json" -H "Authorization: Bearer {api_key}" \
  -d '{{"model":"{ALIAS}","messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"What is machine learning?"}}],"temperature":0.7,"max_tokens":500}}'"#
    )
}

#[cfg(test)]
mod tests {
    use emberline_protocol::heartbeat::{ModelState, ModelStatus, ServedModel};

    use super::*;

    #[test]
    fn the_printed_curl_line_is_the_one_in_the_readme() {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let readme = one_line(include_str!("../../../README.md"));
        let printed = one_line(&render_curl("$BASE", "YOUR_API_KEY"));
        assert!(readme.contains(&printed), "README.md lacks: {printed}");
    }

    #[test]
    fn the_banner_shows_the_memory_of_each_model() {
        let beat = |models: &[(&str, Option<u64>)]| {
            let states = models.iter().map(|(name, memory)| ModelStatus {
                name: (*name).to_owned(),
                state: ModelState::Serving,
                reason: None,
                capacity: 1,
                active: 0,
                pace: 0.0,
                memory: *memory,
                loaded_percent: None,
            });
            let served = models.iter().map(|(name, _)| ServedModel {
                name: (*name).to_owned(),
                context_length: 1,
                created: 0,
            });
            Heartbeat {
                device: "CPU (flex)".to_owned(),
                models: served.collect(),
                states: states.collect(),
                ..Heartbeat::default()
            }
        };
        let one = beat(&[("m", Some(640 << 20))]);
        assert_eq!(describe(std::slice::from_ref(&one)), "m on CPU (flex), takes at most 640.0 MiB");
        let expected = "m on CPU (flex), takes at most 640.0 MiB, in each of 2 workers; s on CPU (flex)";
        assert_eq!(describe(&[one.clone(), beat(&[("s", None)]), one]), expected);
        // A model that is being replaced by another of its name is listed twice, the new one first.
        let mut replaced = beat(&[("m", Some(2 << 30)), ("m", Some(1 << 30))]);
        replaced.models.pop();
        assert_eq!(describe(&[replaced]), "m on CPU (flex), takes at most 2.0 GiB");
        assert_eq!(describe(&[]), "");
    }

    #[test]
    fn a_model_file_is_named_after_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, console) = (Cache::at(dir.path()), Console::default());
        let catalogue = Catalogue::load(None).unwrap();
        let puller = Puller::new(&cache, &catalogue, &console);
        let file = dir.path().join("My.Model-Q8_0.gguf");
        let find = |path: &Path| find_model(path.to_str().unwrap(), &puller);
        assert!(find(&file).unwrap_err().to_string().contains("EMBERLINE_MODEL"));
        std::fs::write(&file, "").unwrap();
        let model = find(&file).unwrap();
        assert_eq!((model.name.as_str(), model.path), ("My.Model-Q8_0", file.canonicalize().unwrap()));
        assert!(find(&dir.path().join("a=b.gguf")).unwrap_err().to_string().contains("rename"));
        assert!(find_model("no-such", &puller).unwrap_err().to_string().contains("not in the catalogue"));
    }

    #[test]
    fn the_names_are_read_from_a_file_of_models() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("models.toml");
        let error = format!("{:#}", listed_models(&file).unwrap_err());
        assert!(error.contains("--models") && error.contains("models.toml"), "{error}");
        std::fs::write(&file, "[[model]]\nname = 'b'\nsource = 'x'\n[[model]]\nname = 'a'\n").unwrap();
        let names = ["b", "a"].map(String::from).to_vec();
        let file_in_full = file.canonicalize().unwrap();
        assert_eq!(listed_models(&file).unwrap(), Models::Listed { file: file_in_full, names });
        std::fs::write(&file, "[[model]").unwrap();
        assert!(listed_models(&file).is_err());
    }

    #[test]
    fn keys_that_no_header_can_carry_are_refused() {
        assert_eq!(api_key("k-1_.~").as_deref(), Ok("k-1_.~"));
        for bad in ["", "a b", "ü", "a\n"] {
            assert!(api_key(bad).is_err(), "{bad:?}");
        }
    }
}
