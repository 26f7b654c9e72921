//! `emberline edge`: the way to nats-server for functions whose host gives them HTTP and no sockets.
//!
//! `POST /nats` is one connection to nats-server: the request's body goes there, and what nats-server sends is
//! the response's body, both at once. The bytes are passed on as they are. So the function speaks NATS, with
//! TLS in it if nats-server wants that, and nats-server says who may do what; the edge has no rights of its own.
//!
//! [`server`] answers HTTP, [`servers`] finds a nats-server that answers, [`tunnel`] passes bytes on within the
//! limits that [`throttle`] and the options set, [`tls`] reads the certificate.

mod server;
mod servers;
mod throttle;
mod tls;
mod tunnel;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use emberline_protocol::bytes::Bytes;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use server::{Edge, Limits, Phase};
use servers::{NatsServers, ServerAddress};
use tls::Certificate;
use tokio_rustls::TlsAcceptor;

/// How long what has been sent may take to reach clients when the edge ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Args)]
pub(crate) struct EdgeArgs {
    /// Where to listen; port 0 chooses a free one
    #[arg(
        long,
        env = "EMBERLINE_EDGE_LISTEN",
        default_value = "127.0.0.1:8443",
        value_name = "ADDRESS:PORT"
    )]
    listen: String,
    /// Addresses of nats-server, separated by commas; a connection goes to the first that answers
    #[arg(
        long,
        env = "EMBERLINE_NATS",
        default_value = "127.0.0.1:4222",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    nats: Vec<ServerAddress>,
    /// Certificate (PEM, with the ones between it and its CA) for HTTPS; SIGHUP has it read again
    #[arg(long, env = "EMBERLINE_EDGE_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "EMBERLINE_EDGE_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Connections to nats-server at once
    #[arg(long, env = "EMBERLINE_EDGE_MAX_CONNECTIONS", default_value_t = 1000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Seconds after which a connection is cut on which nothing was sent; nats-server asks every 120 s
    #[arg(long, env = "EMBERLINE_EDGE_IDLE_S", default_value_t = 300, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    idle_s: u64,
    /// Bytes per second of all connections and both directions together, such as 100MiB [default: no limit]
    #[arg(long, env = "EMBERLINE_EDGE_MAX_BYTES_PER_S", value_name = "AMOUNT")]
    max_bytes_per_s: Option<Bytes>,
    /// Seconds that connections get to end by themselves once the edge is told to stop
    #[arg(long, env = "EMBERLINE_EDGE_DRAIN_S", default_value_t = 30, value_name = "SECONDS")]
    drain_s: u64,
}

pub(crate) fn run(args: EdgeArgs) -> anyhow::Result<()> {
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("the async runtime can't be started")?.block_on(serve(args))
}

fn log_to_stderr() {
    let filter = ["EMBERLINE_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "info".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

async fn serve(args: EdgeArgs) -> anyhow::Result<()> {
    let certificate = args.tls_certificate.zip(args.tls_key).map(|(file, key)| Certificate { file, key });
    let acceptor = certificate.as_ref().map(Certificate::load).transpose()?;
    let limits = Limits {
        connections: args.max_connections,
        idle: Duration::from_secs(args.idle_s),
        bytes_per_s: args.max_bytes_per_s.map(|Bytes(bytes)| bytes),
    };
    let mut stop = StopSignals::listen().context("can't listen for signals")?;
    let listener = TcpListener::bind(&args.listen).await.with_context(|| {
        format!(
            "can't listen on {}. Stop the process that uses it, or set another address with --listen or EMBERLINE_EDGE_LISTEN",
            args.listen
        )
    })?;
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    print_address(scheme, &listener)?;
    let (acceptor_sender, acceptor) = watch::channel(acceptor);
    if let Some(certificate) = certificate {
        let hang_up = signal(SignalKind::hangup()).context("can't listen for signals")?;
        tokio::spawn(reload(certificate, hang_up, acceptor_sender));
    }
    let (phase, watcher) = watch::channel(Phase::Serving);
    let edge = Edge::new(NatsServers::new(args.nats), limits, watcher);
    let stop_in_order = async {
        stop.recv().await;
        tracing::info!(
            drain_s = args.drain_s,
            "draining: connections may end by themselves, a second signal cuts them"
        );
        phase.send_replace(Phase::Draining);
        tokio::select! {
            () = edge.all_closed() => {}
            () = stop.recv() => {}
            () = tokio::time::sleep(Duration::from_secs(args.drain_s)) => {}
        }
        phase.send_replace(Phase::Stopped);
    };
    tokio::join!(edge.serve(listener, acceptor, FLUSH_TIMEOUT), stop_in_order);
    Ok(())
}

/// Prints the address on one line, which other programs wait for.
fn print_address(scheme: &str, listener: &TcpListener) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "Serving {scheme}://{}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(())
}

/// Reads the certificate again at each SIGHUP. One that can't be used leaves the old one in place.
async fn reload(certificate: Certificate, mut hang_up: Signal, acceptor: watch::Sender<Option<TlsAcceptor>>) {
    while hang_up.recv().await.is_some() {
        match certificate.load() {
            Ok(new) => {
                acceptor.send_replace(Some(new));
                tracing::info!("the certificate has been read again");
            }
            Err(error) => tracing::error!(%error, "the certificate stays as it was"),
        }
    }
}

/// The signals that stop the edge: SIGINT and SIGTERM.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
