//! `emberline-host`: serves the application of a `spin.toml` on this machine.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use emberline_host::allowed_hosts::AllowedHosts;
use emberline_host::function::{self, ComponentSettings};
use emberline_host::manifest::Manifest;
use emberline_host::server::{AppInfo, Phase, Server};
use emberline_host::variables::Variables;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Serves a Spin application on this machine, as `spin up` would.
///
/// Prints one line, `Serving http://ADDRESS`, once it accepts connections; logs go to stderr.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The manifest, or the directory that holds spin.toml
    #[arg(long, value_name = "FILE", default_value = "spin.toml")]
    from: PathBuf,
    /// Where to listen; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS:PORT", env = "EMBERLINE_LISTEN", default_value = "127.0.0.1:3000")]
    listen: String,
    /// Sets a variable of the application, as does SPIN_VARIABLE_NAME in the environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    variable: Vec<(String, String)>,
    /// How long running responses may continue after SIGINT or SIGTERM; Spin cuts them off at once
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    grace_s: u64,
    /// Cuts each request after this time, counted from its arrival: stands in for hosts that do so. Spin does not
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    request_time_limit: Option<u64>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the async runtime can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(arguments));
    // A component in an endless loop must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    let filter = ["EMBERLINE_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "info".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let grace = Duration::from_secs(arguments.grace_s);
    let listen = arguments.listen.clone();
    // Without a cache, compiling takes seconds; it must not block the runtime's threads.
    let server = tokio::task::spawn_blocking(move || load(arguments)).await??;
    let listener = TcpListener::bind(&listen).await.with_context(|| {
        format!(
            "can't listen on {listen}. Stop the process that uses it, or set another address with --listen or EMBERLINE_LISTEN"
        )
    })?;
    let (phase, watcher) = watch::channel(Phase::Serving);
    let signals = Signals::new().context("can't handle signals")?;
    print_address(&listener)?;
    tokio::spawn(stop_on_signal(signals, phase, grace));
    server.run(listener, watcher).await;
    Ok(())
}

fn load(arguments: Arguments) -> anyhow::Result<std::sync::Arc<Server>> {
    let manifest = Manifest::load(&arguments.from)?;
    let given: BTreeMap<String, String> = arguments.variable.into_iter().collect();
    let variables = Variables::resolve(&manifest.variables, &given, |name| std::env::var(name))?;
    let engine = function::engine(cache_folder().as_deref())?;
    let mut functions = BTreeMap::new();
    for (name, component) in manifest.components {
        let expand = |(name, template)| Ok((name, variables.expand(&template)?));
        let settings = ComponentSettings {
            name: name.clone(),
            variables: component.variables.into_iter().map(expand).collect::<anyhow::Result<_>>()?,
            environment: component.environment,
            allowed_hosts: AllowedHosts::parse(&component.allowed_outbound_hosts, &variables)
                .with_context(|| format!("component.{name}"))?,
        };
        functions.insert(name, function::load(&engine, &component.source, settings)?);
    }
    let info = AppInfo { name: manifest.name, version: manifest.version };
    let time_limit = arguments.request_time_limit.map(Duration::from_secs);
    Ok(Server::new(info, manifest.router, functions, time_limit))
}

/// The folder in which compiled components are cached.
fn cache_folder() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = || from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    let own = from("EMBERLINE_CACHE").or_else(|| caches().map(|caches| caches.join("emberline")))?;
    Some(own.join("wasmtime"))
}

/// Prints the address on one line, which other programs wait for.
fn print_address(listener: &TcpListener) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "Serving http://{}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(())
}

/// Drains the server at the first signal; stops it after `grace` or at a second signal.
async fn stop_on_signal(mut signals: Signals, phase: watch::Sender<Phase>, grace: Duration) {
    signals.next().await;
    tracing::info!(
        "stopping; running responses have {} s, a second signal cuts them off now",
        grace.as_secs()
    );
    phase.send_replace(Phase::Draining);
    tokio::select! {
        () = signals.next() => {}
        () = tokio::time::sleep(grace) => {}
    }
    phase.send_replace(Phase::Stopped);
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
