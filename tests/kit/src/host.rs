//! The host that runs the function: the project's own, or `spin` if EMBERLINE_TEST_HOST says so.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::bus_way::{BusWay, Edge, SERVER_NAME};
use crate::nats::{FUNCTION_SEED, Nats};
use crate::options::{Engine, MODEL, Options, SIMULATED_MODEL};
use crate::paths::binary;
use crate::process::{ProcessGroup, quiet};
use crate::wait;

/// The key that a stack's function accepts.
pub const API_KEY: &str = "sk-emb-test";
/// Another one.
pub const OTHER_KEY: &str = "sk-emb-other";

/// How often Spin is started when somebody else takes its port meanwhile.
const SPIN_ATTEMPTS: usize = 4;

/// A running host of the function.
pub(crate) struct Host {
    process: ProcessGroup,
    _edge: Option<Edge>,
    /// The function's base URL, without a slash at the end.
    pub(crate) url: String,
}

impl Host {
    /// Starts one and waits until it listens.
    pub(crate) async fn start(nats: &impl Nats, options: &Options) -> Result<Self> {
        match std::env::var("EMBERLINE_TEST_HOST").as_deref() {
            Ok("spin") => {
                let mut again = 1..SPIN_ATTEMPTS;
                loop {
                    // Spin can't be told to choose a port itself.
                    let address = format!("127.0.0.1:{}", free_port().await?);
                    let mut command = Command::new("spin");
                    command.args(["up", "--listen", &address]);
                    command.arg("--state-dir").arg(nats.directory().join("spin"));
                    match Self::spawn(command, nats, options).await {
                        Err(error) if again.next().is_none() => return Err(error),
                        Err(_) => {}
                        started => return started,
                    }
                }
            }
            Ok("local") | Err(_) => {
                let mut command = Command::new(binary("emberline-host")?);
                command.args(["--listen", "127.0.0.1:0"]);
                if let Some(seconds) = options.request_time_limit_s {
                    command.arg("--request-time-limit").arg(seconds.to_string());
                }
                Self::spawn(command, nats, options).await
            }
            Ok(other) => bail!("EMBERLINE_TEST_HOST must be local or spin, not '{other}'"),
        }
    }

    async fn spawn(mut command: Command, nats: &impl Nats, options: &Options) -> Result<Self> {
        let way = options.way.map_or_else(BusWay::of_this_run, Ok)?;
        let mut servers = if options.through.is_empty() { nats.addresses() } else { options.through.clone() };
        let edge = match way {
            BusWay::Nats | BusWay::Tls => None,
            BusWay::Edge => Some(Edge::start(&servers, &[]).await?),
            BusWay::SecureEdge => Some(Edge::start_secure(&servers, nats.directory()).await?),
        };
        if let Some(edge) = &edge {
            servers = vec![edge.address.clone()];
        }
        if let Some(ca) = edge.as_ref().and_then(|edge| edge.ca.as_ref()) {
            trust(&mut command, ca)?;
        }
        let servers = servers.into_iter().zip(["nats_server", "nats_server_b", "nats_server_c"]);
        let servers = servers.map(|(address, name)| (name, address));
        let ca = nats.ca().filter(|_| way == BusWay::Tls).map(fs::read_to_string).transpose()?;
        let tls = [("nats_tls_server_name", SERVER_NAME.to_owned()), ("nats_tls_ca", ca.unwrap_or_default())];
        let variables = servers.chain(tls).chain([("nats_scheme", way.scheme().to_owned())]);
        for (name, value) in variables.chain(defaults(options)).chain(options.variables.iter().cloned()) {
            command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
        }
        command.arg("--from").arg(way.manifest(nats.directory())?);
        let mut process = ProcessGroup::spawn(quiet(&mut command).stdout(Stdio::piped()))?;
        let mut lines = BufReader::new(process.0.stdout.take().context("no stdout")?).lines();
        let serving = async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, url)) = line.split_once("Serving ") {
                    return Ok(url.trim().trim_end_matches('/').to_owned());
                }
            }
            bail!("the host ended before it served: run with EMBERLINE_TEST_LOGS=1 to see why")
        };
        let url = wait::within("the host serves", serving).await?;
        // Keeps the pipe open and empty, so that the host never blocks on its own output.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { process, _edge: edge, url })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.0.id()
    }
}

/// Has the host's requests trust an authority: the project's own host by the environment, Spin by its runtime
/// configuration.
fn trust(command: &mut Command, ca: &Path) -> Result<()> {
    command.env("SSL_CERT_FILE", ca);
    if command.as_std().get_program() == "spin" {
        let config = ca.with_file_name("runtime-config.toml");
        let tls = format!(
            "[[client_tls]]\ncomponent_ids = [\"function\"]\nhosts = [\"localhost\"]\nca_roots_file = {:?}\n",
            ca.to_string_lossy()
        );
        fs::write(&config, tls)?;
        command.arg("--runtime-config-file").arg(config);
    }
    Ok(())
}

/// Variables of the function that every stack sets.
fn defaults(options: &Options) -> [(&'static str, String); 6] {
    let model = if options.engine == Engine::Simulated { SIMULATED_MODEL } else { MODEL };
    [
        ("nats_user", "function".to_owned()),
        ("nats_nkey_seed", FUNCTION_SEED.to_owned()),
        ("api_key_hashes", format!("{},{}", sha256_hex(API_KEY), sha256_hex(OTHER_KEY))),
        ("models", model.to_owned()),
        ("model_aliases", format!("vllm-primary={model}")),
        ("request_time_limit_s", options.request_time_limit_s.unwrap_or(0).to_string()),
    ]
}

async fn free_port() -> Result<u16> {
    Ok(tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

fn sha256_hex(text: &str) -> String {
    use sha2::Digest as _;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(text))
}
