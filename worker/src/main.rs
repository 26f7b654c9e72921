//! The worker's process: arguments, logging, the engine, signals.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use emberline_worker::bench::{self, BenchArgs};
use emberline_worker::config::{Args, Config, ConfigError, EngineConfig};
use emberline_worker::engine::Engine;
use emberline_worker::engine::burn::{self, LoadOptions};
use emberline_worker::engine::simulated::SimulatedEngine;
use emberline_worker::model::LoadError;
use emberline_worker::serve::serve;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// What the worker says; of its libraries, only what goes wrong.
const LOG_DEFAULT: &str = "warn,emberline_worker=info";

#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    serve: Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the engine on this machine and print JSON; `emberline bench engine` shows a table
    Bench(BenchArgs),
}

fn main() -> ExitCode {
    let Cli { serve, command } = Cli::parse();
    start_logging();
    let outcome = match command {
        Some(Command::Bench(args)) => measure(&args),
        None => run(serve),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("emberline-worker: {}", one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &BenchArgs) -> anyhow::Result<()> {
    let measurement = bench::run(args)?;
    println!("{}", serde_json::to_string(&measurement)?);
    Ok(())
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = args.into_config(password()?)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| anyhow!("can't start the runtime: {e}"))?;
    let outcome = runtime.block_on(work(&config));
    // The engine may be in the middle of a long step; that must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn work(config: &Config) -> anyhow::Result<()> {
    let mut stop = stop_signals()?;
    let (engine, slots) = (config.engine.clone(), usize::from(config.slots));
    let loading = tokio::task::spawn_blocking(move || load(engine, slots));
    let engine = tokio::select! {
        // What panics has said why in the log.
        loaded = loading => loaded.map_err(|e| anyhow!("loading the model failed: {e}. See the log above"))??,
        _ = stop.changed() => return Ok(()),
    };
    Ok(serve(config, engine, stop).await?)
}

fn load(engine: EngineConfig, slots: usize) -> Result<Box<dyn Engine>, LoadError> {
    match engine {
        EngineConfig::Simulated { name, tokens_per_s } => {
            tracing::warn!("the simulated engine: fixed words, no model");
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Ok(Box::new(SimulatedEngine::new(name, slots, tokens_per_s, now.as_secs())))
        }
        EngineConfig::Burn { path, name, backend, adapter } => {
            let backend = backend.into();
            let options = LoadOptions { backend, adapter, slots, ..LoadOptions::new(path, name) };
            Ok(Box::new(burn::load(&options)?))
        }
    }
}

fn password() -> Result<Option<String>, ConfigError> {
    match std::env::var("EMBERLINE_NATS_PASSWORD") {
        Ok(password) => Ok(Some(password)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(ConfigError::PasswordEncoding),
    }
}

fn start_logging() {
    let filter = ["EMBERLINE_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|filter| !filter.is_empty()))
        .unwrap_or_else(|| LOG_DEFAULT.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    std::panic::set_hook(Box::new(|panic| tracing::error!("{}", one_line(&panic.to_string()))));
}

/// Counts SIGTERM and SIGINT from now on.
fn stop_signals() -> anyhow::Result<watch::Receiver<u32>> {
    let listen = |kind| signal(kind).map_err(|e| anyhow!("can't listen for signals: {e}"));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
