//! The worker's process: arguments, logging, the engine, signals.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use emberline_inference::bench::{self, BenchArgs};
use emberline_worker::config::{Args, Config, ConfigError};
use emberline_worker::registry::load::load_engine;
use emberline_worker::serve::{Signals, serve};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// What the worker says; of its libraries, only what goes wrong.
const LOG_DEFAULT: &str = "warn,emberline_worker=info,emberline_inference=info";

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
    let signals = signals(config.models.is_watched())?;
    Ok(serve(config, Arc::new(load_engine), signals).await?)
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

/// Counts signals from now on. SIGHUP ends the process as ever, unless there is a file to read again.
fn signals(is_watched: bool) -> anyhow::Result<Signals> {
    let listen = |kind| signal(kind).map_err(|e| anyhow!("can't listen for signals: {e}"));
    let (term, int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (stop, stops) = watch::channel(0);
    let stop = Arc::new(stop);
    count(term, Arc::clone(&stop));
    count(int, stop);
    let (hang_up, hang_ups) = watch::channel(0);
    if is_watched {
        count(listen(SignalKind::hangup())?, Arc::new(hang_up));
    }
    Ok(Signals { stop: stops, hang_up: hang_ups })
}

fn count(mut signal: Signal, counter: Arc<watch::Sender<u32>>) {
    tokio::spawn(async move {
        while signal.recv().await.is_some() {
            counter.send_modify(|count| *count += 1);
        }
    });
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
