//! What the operator asked for: command line and environment, checked.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use clap::{Parser, ValueEnum};
use emberline_shared::control::ALIVE_TIMEOUT_S;

/// Takes jobs for one model from NATS, runs it, and publishes what it generates.
///
/// The NATS password is read from EMBERLINE_NATS_PASSWORD only: a command line can be seen by
/// everyone on the machine. EMBERLINE_LOG (or RUST_LOG) sets what is logged, such as `debug`.
#[derive(Debug, Clone, Parser)]
#[command(name = "emberline-worker", version)]
pub struct Args {
    /// Addresses of nats-server, separated by commas
    #[arg(long, env = "EMBERLINE_NATS", default_value = "127.0.0.1:4222", value_delimiter = ',')]
    pub nats: Vec<ServerAddr>,

    /// User name at nats-server
    #[arg(long, env = "EMBERLINE_NATS_USER", default_value = "worker")]
    pub nats_user: String,

    /// The model: a GGUF file
    #[arg(long, env = "EMBERLINE_MODEL_PATH", value_name = "PATH.gguf")]
    pub model: Option<OsString>,

    /// Name under which the model is served [default: the file's name without its extension]
    #[arg(long, env = "EMBERLINE_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// Where to compute; `auto` takes the GPU if there is one, and the CPU otherwise
    #[arg(long, env = "EMBERLINE_BACKEND", value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,

    /// The adapter that wgpu is to use: its number, or part of its name
    #[arg(long, env = "EMBERLINE_ADAPTER", value_name = "NAME")]
    pub adapter: Option<String>,

    /// `simulated` needs no model: it says fixed words at a set pace
    #[arg(long, env = "EMBERLINE_ENGINE", value_enum, default_value_t = EngineChoice::Burn)]
    pub engine: EngineChoice,

    /// Jobs to run at once
    #[arg(long, env = "EMBERLINE_SLOTS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub slots: u16,

    /// Seconds that running jobs get to finish once the worker is told to stop
    #[arg(long, env = "EMBERLINE_DRAIN_S", default_value_t = 30, value_name = "SECONDS")]
    pub drain_s: u64,

    /// Tokens per second and job of the simulated engine; 0 for as many as it can
    #[arg(long, default_value_t = 50.0, value_name = "RATE", value_parser = rate)]
    pub simulated_tokens_per_s: f64,

    /// Milliseconds without a word from the relay after which a job is given up; for tests.
    #[arg(long, default_value_t = ALIVE_TIMEOUT_S * 1000, hide = true)]
    pub alive_timeout_ms: u64,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The GPU if there is one, the CPU otherwise.
    Auto,
    /// wgpu: Vulkan, Metal or DX12.
    Wgpu,
    /// burn's CPU backend.
    Cpu,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// The model, by burn.
    Burn,
    /// Fixed words, no model.
    Simulated,
}

/// A configuration that a worker can start from.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach NATS.
    pub bus: BusConfig,
    /// What to run.
    pub engine: EngineConfig,
    /// Jobs at once.
    pub slots: u16,
    /// How long running jobs get once the worker is told to stop.
    pub drain: Duration,
    /// How long a job goes on without a word from its relay.
    pub alive_timeout: Duration,
}

/// How to reach NATS.
#[derive(Clone)]
pub struct BusConfig {
    /// Any of these servers.
    pub servers: Vec<ServerAddr>,
    /// The user name.
    pub user: String,
    /// `None` for a server that asks for none.
    pub password: Option<String>,
}

impl std::fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusConfig")
            .field("servers", &self.servers)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineConfig {
    /// A model by burn.
    Burn {
        /// The GGUF file.
        path: PathBuf,
        /// Name under which it is served.
        name: String,
        /// Where to compute.
        backend: BackendChoice,
        /// The adapter's number, or part of its name.
        adapter: Option<String>,
    },
    /// No model.
    Simulated {
        /// Begins with `simulated`.
        name: String,
        /// Per job; 0 for as many as it can.
        tokens_per_s: f64,
    },
}

/// Arguments that don't make a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ConfigError {
    #[error("no model: give --model PATH.gguf or set EMBERLINE_MODEL_PATH")]
    NoModel,
    #[error("--model {0}: the file's name can't be used as a model name; give one with --model-name NAME")]
    NoModelName(PathBuf),
    #[error(
        "--model-name {0}: the simulated engine's model must be named 'simulated…', so that nobody takes it for a real one"
    )]
    NotNamedSimulated(String),
    #[error("--model {0}: the simulated engine has no model; leave --model out or choose --engine burn")]
    SimulatedModel(PathBuf),
    #[error("EMBERLINE_NATS_PASSWORD is not valid UTF-8; set it to text")]
    PasswordEncoding,
}

/// The model that the simulated engine serves when it is given no name.
pub const SIMULATED_MODEL: &str = "simulated-echo";

impl Args {
    /// Checks the arguments; `password` comes from EMBERLINE_NATS_PASSWORD.
    ///
    /// Empty values count as absent: that is what a launcher's unset variable expands to.
    pub fn into_config(self, password: Option<String>) -> Result<Config, ConfigError> {
        let some = |text: Option<String>| text.filter(|t| !t.is_empty());
        let path = self.model.filter(|path| !path.is_empty()).map(PathBuf::from);
        let name = some(self.model_name);
        let engine = match self.engine {
            EngineChoice::Burn => {
                let path = path.ok_or(ConfigError::NoModel)?;
                let name = match name {
                    Some(name) => name,
                    None => path
                        .file_stem()
                        .and_then(|stem| stem.to_str())
                        .map(str::to_owned)
                        .ok_or_else(|| ConfigError::NoModelName(path.clone()))?,
                };
                EngineConfig::Burn { path, name, backend: self.backend, adapter: some(self.adapter) }
            }
            EngineChoice::Simulated => {
                if let Some(path) = path {
                    return Err(ConfigError::SimulatedModel(path));
                }
                let name = name.unwrap_or_else(|| SIMULATED_MODEL.to_owned());
                if !name.starts_with("simulated") {
                    return Err(ConfigError::NotNamedSimulated(name));
                }
                EngineConfig::Simulated { name, tokens_per_s: self.simulated_tokens_per_s }
            }
        };
        Ok(Config {
            bus: BusConfig { servers: self.nats, user: self.nats_user, password: some(password) },
            engine,
            slots: self.slots,
            drain: Duration::from_secs(self.drain_s),
            alive_timeout: Duration::from_millis(self.alive_timeout_ms),
        })
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("give a number of tokens per second, 0 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        let args = Args::try_parse_from([&["emberline-worker"], args].concat()).unwrap();
        args.into_config(Some("secret".into()))
    }

    #[test]
    fn the_model_is_named_after_its_file() {
        let engine = config(&["--model", "/m/smollm2-135m-instruct.gguf"]).unwrap().engine;
        let EngineConfig::Burn { name, .. } = engine else { panic!("{engine:?}") };
        assert_eq!(name, "smollm2-135m-instruct");
        let engine = config(&["--model", "/m/x.gguf", "--model-name", "y"]).unwrap().engine;
        assert!(matches!(engine, EngineConfig::Burn { name, .. } if name == "y"));
    }

    #[test]
    fn a_real_engine_needs_a_model_and_a_simulated_one_takes_none() {
        assert_eq!(config(&["--model", ""]).unwrap_err(), ConfigError::NoModel);
        let error = config(&["--engine", "simulated", "--model", "x.gguf"]).unwrap_err();
        assert_eq!(error, ConfigError::SimulatedModel("x.gguf".into()));
    }

    #[test]
    fn a_simulated_model_says_so() {
        let engine = config(&["--engine", "simulated"]).unwrap().engine;
        assert_eq!(engine, EngineConfig::Simulated { name: SIMULATED_MODEL.into(), tokens_per_s: 50.0 });
        let error = config(&["--engine", "simulated", "--model-name", "gpt"]).unwrap_err();
        assert_eq!(error, ConfigError::NotNamedSimulated("gpt".into()));
    }

    #[test]
    fn several_servers_may_be_named_and_no_password_is_shown() {
        let config = config(&["--nats", "127.0.0.1:4222,nats://10.0.0.2:4223", "--model", "m.gguf"]).unwrap();
        assert_eq!(config.bus.servers.len(), 2);
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn nonsense_is_refused_by_the_parser() {
        for bad in
            [["--slots", "0"], ["--simulated-tokens-per-s", "-1"], ["--backend", "cuda"], ["--nats", ":x"]]
        {
            assert!(Args::try_parse_from([&["emberline-worker"], &bad[..]].concat()).is_err(), "{bad:?}");
        }
    }
}
