//! The way on which a stack's function reaches NATS. EMBERLINE_TEST_BUS chooses it for a whole run: `nats` (a socket
//! in clear text, the default), `tls`, `edge` (HTTP through `emberline edge`, with sockets forbidden) or `secure-edge`
//! (the same with HTTPS).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::certificates::Authority;
use crate::paths::{binary, repository};
use crate::process::ProcessGroup;
use crate::wait;

/// The name in the certificates of nats-servers.
pub const SERVER_NAME: &str = "nats.emberline.test";

/// The name in the certificates of edges.
const EDGE_NAME: &str = "localhost";

/// A way to NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusWay {
    /// A socket in clear text.
    Nats,
    /// A socket with TLS inside.
    Tls,
    /// HTTP to an edge.
    Edge,
    /// HTTPS to an edge.
    SecureEdge,
}

impl BusWay {
    /// The way that EMBERLINE_TEST_BUS names.
    pub fn of_this_run() -> Result<Self> {
        match std::env::var("EMBERLINE_TEST_BUS").as_deref() {
            Ok("nats") | Err(_) => Ok(Self::Nats),
            Ok("tls") => Ok(Self::Tls),
            Ok("edge") => Ok(Self::Edge),
            Ok("secure-edge") => Ok(Self::SecureEdge),
            Ok(other) => bail!("EMBERLINE_TEST_BUS must be nats, tls, edge or secure-edge, not '{other}'"),
        }
    }

    /// `nats_scheme` in spin.toml.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Tls => "tls",
            Self::Edge => "http",
            Self::SecureEdge => "https",
        }
    }

    /// The manifest: spin.toml, or a copy in `folder` that forbids sockets.
    pub(crate) fn manifest(self, folder: &Path) -> Result<PathBuf> {
        let manifest = repository().join("spin.toml");
        if matches!(self, Self::Nats | Self::Tls) {
            return Ok(manifest);
        }
        let component = repository().join("build/function.wasm").canonicalize()?;
        let text = fs::read_to_string(manifest)?
            .replace("\"*://{{", &format!("\"{}://{{{{", self.scheme()))
            .replace("\"build/function.wasm\"", &format!("{:?}", component.to_string_lossy()));
        let copy = folder.join("spin.toml");
        fs::write(&copy, text)?;
        Ok(copy)
    }
}

/// A running `emberline edge`; it ends when this is dropped.
pub struct Edge {
    process: ProcessGroup,
    /// Where it listens: host and port.
    pub address: String,
    /// The file with the certificate of the authority behind its own, if it speaks TLS.
    pub ca: Option<PathBuf>,
}

impl Edge {
    /// Starts one in front of these servers, with more arguments.
    pub async fn start(nats: &[String], args: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary("emberline")?);
        command.args(["edge", "--listen", "127.0.0.1:0", "--nats", &nats.join(",")]).args(args);
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = ProcessGroup::spawn(&mut command)?;
        let mut lines = BufReader::new(process.0.stdout.take().context("no stdout")?).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, rest)) = line.split_once("://") {
                    return Ok(rest.split(['/', ' ']).next().unwrap_or(rest).to_owned());
                }
            }
            bail!("the edge ended before it listened")
        };
        let address = wait::within("the edge listens", listening).await?;
        // Keeps the pipe open and empty, so that the edge never blocks on its own output.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { process, address, ca: None })
    }

    /// The same with TLS, and with its files below `folder`. Its address has a name, which the certificate has, too.
    pub async fn start_secure(nats: &[String], folder: &Path) -> Result<Self> {
        // Each has its own authority, which its function may read late.
        let folder = tempfile::tempdir_in(folder)?.keep();
        let authority = Authority::new()?;
        let files = authority.certificate(&folder, "edge", &[EDGE_NAME])?;
        let [certificate, key] = [&files.certificate, &files.key].map(|path| path.to_string_lossy());
        let edge = Self::start(nats, &["--tls-certificate", &certificate, "--tls-key", &key]).await?;
        let port = edge.address.rsplit_once(':').context("no port")?.1;
        Ok(Self {
            address: format!("{EDGE_NAME}:{port}"),
            ca: Some(authority.write(&folder, "ca.pem")?),
            ..edge
        })
    }

    /// Its process id.
    pub fn id(&self) -> Option<u32> {
        self.process.0.id()
    }
}
