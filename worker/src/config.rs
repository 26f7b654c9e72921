//! The worker's configuration: command line and environment, checked.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use clap::{Parser, ValueEnum};
use emberline_inference::device::Backend;
use emberline_inference::engine::inference::{CacheDtype, PrecisionChoice};
use emberline_inference::network::Quantize;
use emberline_inference::speculation::Speculation;
use emberline_nats_access::{AccessError, NATS_HEADING, NatsArgs, Secrets, parse_server};
use emberline_protocol::bytes::Bytes;
use emberline_protocol::control::ALIVE_TIMEOUT_S;
use emberline_protocol::dead_letter::Prompts;
use emberline_protocol::jetstream_domain::JetStreamDomain;

use crate::nats::NatsConfig;
use crate::registry::file::ModelList;
use crate::registry::options::{
    MAX_SLOTS, ModelOptions, OptionsError, Settings, Source, check_unique, tokens_per_second,
};

/// Takes jobs for its models from NATS, runs them, and publishes what they generate.
///
/// What proves to nats-server who connects is read from EMBERLINE_NATS_NKEY_SEED,
/// EMBERLINE_NATS_PASSWORD, EMBERLINE_NATS_TOKEN or a file: a command line can be seen by everyone on
/// the machine. EMBERLINE_LOG (or RUST_LOG) sets what is logged, such as `debug`.
#[derive(Debug, Clone, Parser)]
#[command(name = "emberline-worker", version)]
pub struct Args {
    /// Addresses of nats-server, separated by commas: nats://HOST:PORT or tls://HOST:PORT
    #[arg(
        long,
        env = "EMBERLINE_NATS",
        default_value = "127.0.0.1:4222",
        value_delimiter = ',',
        value_parser = parse_server,
        value_name = "ADDRESS",
        help_heading = NATS_HEADING
    )]
    pub nats: Vec<ServerAddr>,

    /// How to connect to it.
    #[command(flatten)]
    pub nats_access: NatsArgs,

    /// JetStream domain in which the streams are, where nats-server is a leaf node outside of it
    #[arg(
        long,
        env = "EMBERLINE_NATS_JETSTREAM_DOMAIN",
        value_name = "DOMAIN",
        default_value = "",
        hide_default_value = true,
        help_heading = NATS_HEADING
    )]
    pub nats_jetstream_domain: JetStreamDomain,

    /// A model and the name under which it is served; may be given several times.
    ///
    /// SOURCE is a GGUF file, a folder with safetensors, or hf:ORG/NAME. Without NAME= the model is
    /// named after its source.
    #[arg(long, env = "EMBERLINE_MODEL_PATH", value_name = "[NAME=]SOURCE")]
    pub model: Vec<String>,

    /// The name of the only --model, whose value is then all source
    #[arg(long, env = "EMBERLINE_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// A TOML file of models; it is watched, and models are loaded and unloaded as it changes.
    ///
    /// Each [[model]] has a name and a source (relative to the file) and may have quantize, precision,
    /// slots, cache_memory, max_memory, cache_dtype, context_length and speculation. SIGHUP has the file
    /// read at once, and models that failed tried again.
    #[arg(long, env = "EMBERLINE_MODELS", value_name = "FILE")]
    pub models: Option<OsString>,

    /// Turn weights that are stored with more bits into this format when they are loaded
    #[arg(long, env = "EMBERLINE_QUANTIZE", value_enum)]
    pub quantize: Option<Quantize>,

    /// How products with weights are computed
    #[arg(long, env = "EMBERLINE_PRECISION", value_enum, default_value_t = PrecisionChoice::Exact)]
    pub precision: PrecisionChoice,

    /// Memory for the keys and values of each model, such as 2GiB [default: on a GPU what it has left;
    /// else what the slots need, at most an eighth of what is there]
    #[arg(long, env = "EMBERLINE_CACHE_MEMORY", value_name = "AMOUNT")]
    pub cache_memory: Option<Bytes>,

    /// Most of the device's memory that each model takes, for weights, keys and values, and a step's
    /// results [default: what the device has left, shared by the models that are to be loaded]
    #[arg(long, env = "EMBERLINE_MAX_MEMORY", value_name = "AMOUNT")]
    pub max_memory: Option<Bytes>,

    /// How keys and values are stored
    #[arg(long, env = "EMBERLINE_CACHE_DTYPE", value_enum, default_value_t = CacheDtype::Auto)]
    pub cache_dtype: CacheDtype,

    /// Tokens of prompt and answer together, if less than the model allows
    #[arg(long, env = "EMBERLINE_CONTEXT_LENGTH", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context_length: Option<u32>,

    /// Where to compute; `auto` takes the GPU if there is one (by CUDA where that is compiled in), and
    /// the CPU otherwise
    #[arg(long, env = "EMBERLINE_BACKEND", value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,

    /// The adapter that wgpu is to use: its number, or part of its name
    #[arg(long, env = "EMBERLINE_ADAPTER", value_name = "NAME")]
    pub adapter: Option<String>,

    /// `simulated` needs no model: it says fixed words at a set pace
    #[arg(long, env = "EMBERLINE_ENGINE", value_enum, default_value_t = EngineChoice::Burn)]
    pub engine: EngineChoice,

    /// Jobs of each model to run at once [default: 32; on a GPU one for each 768 tokens of cache, at most 256]
    #[arg(long, env = "EMBERLINE_SLOTS", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SLOTS)))]
    pub slots: Option<u16>,

    /// Tokens of prompts that a step computes beside one token of each running answer [default: 256
    /// on the CPU, 1024 on a GPU]
    ///
    /// Less makes running answers steadier while a long prompt is read, more makes the prompt faster.
    #[arg(long, env = "EMBERLINE_PREFILL_BUDGET", value_name = "TOKENS", value_parser = clap::value_parser!(u16).range(1..))]
    pub prefill_budget: Option<u16>,

    /// Whether a step computes tokens that may follow, beside each answer's last one; texts are the same
    ///
    /// It saves steps where an answer repeats parts of its prompt or of itself, as edited code and summaries
    /// do. `auto` does it on the CPU, as `prompt-lookup`, and not on a GPU.
    #[arg(long, env = "EMBERLINE_SPECULATION", value_enum, default_value_t = Speculation::Auto)]
    pub speculation: Speculation,

    /// Seconds that running jobs get to finish once the worker is told to stop, or their model is removed
    #[arg(long, env = "EMBERLINE_DRAIN_S", default_value_t = 30, value_name = "SECONDS")]
    pub drain_s: u64,

    /// Where to answer probes over HTTP: GET /health and GET /ready [default: nowhere]
    ///
    /// /health is 503 when the engine of a model is stuck, /ready until NATS is connected and all models are
    /// loaded, and while the worker drains.
    #[arg(long, env = "EMBERLINE_HTTP_LISTEN", value_name = "ADDRESS:PORT")]
    pub http_listen: Option<String>,

    /// What happens to the prompts of a job that is given up
    ///
    /// Only with `keep` can `emberline jobs replay` run it again.
    #[arg(long, env = "EMBERLINE_DEAD_LETTER_PROMPTS", value_enum, default_value_t = DeadLetterPrompts::Keep)]
    pub dead_letter_prompts: DeadLetterPrompts,

    /// Tokens per second and job of the simulated engine; 0 for as many as it can
    #[arg(long, default_value_t = 50.0, value_name = "RATE", value_parser = tokens_per_second)]
    pub simulated_tokens_per_s: f64,

    /// Milliseconds without a word from the relay after which a job is given up; for tests.
    #[arg(long, default_value_t = ALIVE_TIMEOUT_S * 1000, hide = true)]
    pub alive_timeout_ms: u64,
}

/// What runs the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// The model, on burn.
    Burn,
    /// Fixed words, no model.
    Simulated,
}

/// What happens to the prompts of a job that is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeadLetterPrompts {
    /// They stay with the job for a week, for whoever may read the stream DEAD.
    Keep,
    /// A SHA-256 takes the place of each; a short text can be guessed from it.
    Hash,
    /// They are removed.
    Drop,
}

impl From<DeadLetterPrompts> for Prompts {
    fn from(choice: DeadLetterPrompts) -> Self {
        match choice {
            DeadLetterPrompts::Keep => Self::Keep,
            DeadLetterPrompts::Hash => Self::Hash,
            DeadLetterPrompts::Drop => Self::Drop,
        }
    }
}

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach NATS.
    pub nats: NatsConfig,
    /// What to serve.
    pub models: ModelList,
    /// How long running jobs may go on once the worker is told to stop, or their model is removed.
    pub drain: Duration,
    /// How long a job goes on without an `alive` message from its relay.
    pub alive_timeout: Duration,
    /// What happens to the prompts of jobs that are given up.
    pub dead_letter_prompts: Prompts,
    /// Where to answer probes.
    pub http_listen: Option<String>,
}

/// Arguments that are not a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ConfigError {
    #[error("no model: give --model PATH.gguf or set EMBERLINE_MODEL_PATH, or give --models FILE")]
    NoModel,
    #[error("--model {model}: {reason}")]
    Model { model: String, reason: OptionsError },
    #[error("--model-name {name}: {reason}")]
    Name { name: String, reason: OptionsError },
    #[error("--model-name names one model, but there are {0}; give each as --model NAME=SOURCE")]
    NameOfMany(usize),
    #[error("--model {0}: the simulated engine has no model; leave --model out or choose --engine burn")]
    SimulatedModel(String),
    #[error(transparent)]
    Nats(#[from] AccessError),
}

/// The simulated engine's model where no name is given.
pub const SIMULATED_MODEL: &str = "simulated-echo";

impl Args {
    /// Checks the arguments; `secrets` are those of the environment.
    ///
    /// Empty values count as absent: that is what a launcher's unset variable expands to.
    pub fn into_config(self, secrets: Secrets) -> Result<Config, ConfigError> {
        let settings = Settings {
            backend: self.backend,
            adapter: some(self.adapter),
            slots: self.slots,
            quantize: self.quantize,
            precision: self.precision,
            cache_memory: self.cache_memory,
            max_memory: self.max_memory,
            cache_dtype: self.cache_dtype,
            context_length: self.context_length,
            prefill_budget: self.prefill_budget,
            speculation: self.speculation,
            tokens_per_s: self.simulated_tokens_per_s,
        };
        let models: Vec<String> = self.model.into_iter().filter(|model| !model.is_empty()).collect();
        let name = some(self.model_name);
        let file = self.models.filter(|path| !path.is_empty()).map(PathBuf::from);
        let fixed = match (self.engine, models.as_slice()) {
            (EngineChoice::Simulated, []) => vec![simulated(name, &settings)?],
            (EngineChoice::Simulated, [model, ..]) => return Err(ConfigError::SimulatedModel(model.clone())),
            (EngineChoice::Burn, []) if file.is_none() => return Err(ConfigError::NoModel),
            (EngineChoice::Burn, models) => named(models, name, &settings)?,
        };
        Ok(Config {
            nats: NatsConfig {
                access: self.nats_access.access(self.nats, secrets, "worker")?,
                domain: self.nats_jetstream_domain,
            },
            models: ModelList::new(fixed, file, settings),
            drain: Duration::from_secs(self.drain_s),
            alive_timeout: Duration::from_millis(self.alive_timeout_ms),
            dead_letter_prompts: self.dead_letter_prompts.into(),
            http_listen: some(self.http_listen),
        })
    }
}

fn some(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn simulated(name: Option<String>, settings: &Settings) -> Result<ModelOptions, ConfigError> {
    let source = Source::Simulated { tokens_per_s: settings.tokens_per_s };
    let name = name.unwrap_or_else(|| SIMULATED_MODEL.to_owned());
    ModelOptions::new(&name, source, settings.clone()).map_err(|reason| ConfigError::Name { name, reason })
}

/// The models of the command line.
fn named(
    models: &[String],
    name: Option<String>,
    settings: &Settings,
) -> Result<Vec<ModelOptions>, ConfigError> {
    let refused = |model: &str, reason| ConfigError::Model { model: model.to_owned(), reason };
    let models = match (name, models) {
        (Some(name), [source]) => {
            let source = Source::parse(source, settings.tokens_per_s).map_err(|e| refused(source, e))?;
            let model = ModelOptions::new(&name, source, settings.clone());
            vec![model.map_err(|reason| ConfigError::Name { name, reason })?]
        }
        (Some(_), several @ [_, _, ..]) => return Err(ConfigError::NameOfMany(several.len())),
        (_, models) => {
            let parsed = models.iter().map(|model| {
                ModelOptions::parse(model, settings.clone()).map_err(|reason| refused(model, reason))
            });
            parsed.collect::<Result<Vec<_>, _>>()?
        }
    };
    check_unique(&models).map_err(|(name, reason)| refused(name, reason))?;
    Ok(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        let args = Args::try_parse_from([&["emberline-worker"], args].concat()).unwrap();
        args.into_config(Secrets::default())
    }

    /// Name and source of each model.
    fn models(args: &[&str]) -> Result<Vec<(String, Source)>, ConfigError> {
        let (wanted, _) = config(args)?.models.open().unwrap();
        Ok(wanted.models.into_values().map(|model| (model.name, model.source)).collect())
    }

    fn weights(name: &str, source: &str) -> (String, Source) {
        (name.to_owned(), Source::Weights(source.parse().unwrap()))
    }

    #[test]
    fn models_are_named_or_named_after_their_files() {
        assert_eq!(models(&["--model", "/m/smol.gguf"]), Ok(vec![weights("smol", "/m/smol.gguf")]));
        assert_eq!(
            models(&["--model", "/m/a=b.gguf", "--model-name", "y"]),
            Ok(vec![weights("y", "/m/a=b.gguf")])
        );
        let both = models(&["--model", "a=/m/x.gguf", "--model", "hf:org/b"]);
        assert_eq!(both, Ok(vec![weights("a", "/m/x.gguf"), weights("org/b", "hf:org/b")]));
    }

    #[test]
    fn models_that_contradict_each_other_are_refused() {
        let twice = models(&["--model", "a=x", "--model", "a=y"]).unwrap_err();
        assert_eq!(twice, ConfigError::Model { model: "a".into(), reason: OptionsError::Twice });
        let error = models(&["--model", "a=x", "--model", "b=y", "--model-name", "c"]).unwrap_err();
        assert_eq!(error, ConfigError::NameOfMany(2));
        let error = models(&["--model", "a="]).unwrap_err();
        assert_eq!(error, ConfigError::Model { model: "a=".into(), reason: OptionsError::NoSource });
    }

    #[test]
    fn a_real_engine_needs_a_model_and_a_simulated_one_takes_none() {
        assert_eq!(models(&["--model", "", "--models", ""]).unwrap_err(), ConfigError::NoModel);
        let error = models(&["--engine", "simulated", "--model", "x.gguf"]).unwrap_err();
        assert_eq!(error, ConfigError::SimulatedModel("x.gguf".into()));
    }

    #[test]
    fn a_simulated_model_says_so() {
        let simulated = Source::Simulated { tokens_per_s: 50.0 };
        assert_eq!(models(&["--engine", "simulated"]), Ok(vec![(SIMULATED_MODEL.into(), simulated)]));
        let error = models(&["--engine", "simulated", "--model-name", "gpt"]).unwrap_err();
        assert_eq!(error, ConfigError::Name { name: "gpt".into(), reason: OptionsError::NotNamedSimulated });
    }

    #[test]
    fn a_file_of_models_may_be_all_there_is_or_come_on_top() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("models.toml");
        std::fs::write(&file, "[[model]]\nname = 'b'\nsource = '/m/b.gguf'\n").unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(models(&["--models", file]), Ok(vec![weights("b", "/m/b.gguf")]));
        let both = models(&["--models", file, "--model", "a=x.gguf"]);
        assert_eq!(both, Ok(vec![weights("a", "x.gguf"), weights("b", "/m/b.gguf")]));
    }

    #[test]
    fn several_servers_may_be_named_and_who_connects() {
        let nats = "127.0.0.1:4222,tls://nats-1:4223";
        let config = config(&["--nats", nats, "--nats-user", "pool", "--model", "m.gguf"]).unwrap();
        assert_eq!(config.nats.access.address(), "127.0.0.1:4222,nats-1:4223");
        assert_eq!(config.nats.access.user(), "pool");
    }

    #[test]
    fn nonsense_is_refused_by_the_parser() {
        for bad in [
            ["--slots", "0"],
            ["--simulated-tokens-per-s", "-1"],
            ["--backend", "cuda"],
            ["--nats", ":x"],
            ["--nats-jetstream-domain", "a.b"],
            ["--cache-memory", "much"],
            ["--max-memory", "much"],
            ["--cache-dtype", "q8"],
            ["--quantize", "q2"],
            ["--speculation", "on"],
            ["--precision", "half"],
            ["--context-length", "0"],
            ["--dead-letter-prompts", "some"],
        ] {
            assert!(Args::try_parse_from([&["emberline-worker"], &bad[..]].concat()).is_err(), "{bad:?}");
        }
    }
}
