//! The worker's process: arguments, logging, and signals (SIGTERM, SIGINT, SIGHUP).

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use emberline_inference::bench::{self, BenchArgs};
use emberline_nats_access::Secrets;
use emberline_worker::config::{Args, Config};
use emberline_worker::logging;
use emberline_worker::registry::load::load_engine;
use emberline_worker::serve::{Signals, serve};
use emberline_worker::shader_cache;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

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

#[allow(unsafe_code)]
fn main() -> ExitCode {
    // SAFETY: this is the only thread so far.
    let kept = unsafe { shader_cache::keep() };
    let Cli { serve, command } = Cli::parse();
    logging::start();
    if let Err(error) = kept {
        tracing::debug!(%error, "compiled kernels are not kept; EMBERLINE_CACHE names a folder for them");
    }
    let outcome = match command {
        Some(Command::Bench(args)) => run_bench(&args),
        None => run_worker(serve),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("emberline-worker: {}", logging::one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn run_bench(args: &BenchArgs) -> anyhow::Result<()> {
    let measurement = bench::run(args)?;
    println!("{}", serde_json::to_string(&measurement)?);
    Ok(())
}

fn run_worker(args: Args) -> anyhow::Result<()> {
    let config = args.into_config(Secrets::from_env()?)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| anyhow!("can't start the runtime: {e}"))?;
    let outcome = runtime.block_on(serve_until_stopped(&config));
    // The engine may be in the middle of a long step; the process does not wait for it.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn serve_until_stopped(config: &Config) -> anyhow::Result<()> {
    let signals = signals(config.models.is_watched())?;
    Ok(serve(config, Arc::new(load_engine), signals).await?)
}

/// Counts SIGTERM, SIGINT and, if there is a file to read again, SIGHUP. Otherwise SIGHUP ends the
/// process, as by default.
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
