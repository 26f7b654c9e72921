//! The function's settings: Spin variables in, typed values out.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use emberline_api::models::{InvalidAlias, ModelNames};
use emberline_protocol::bytes::Bytes;
use emberline_protocol::error::ApiError;
use emberline_protocol::jetstream_domain::InvalidDomain;
use emberline_protocol::key::{InvalidLimit, KeyLimits};

use crate::access::caller::{InvalidKeyHash, KeyHashes};
use crate::cache::Cache;
use crate::http::cors::{InvalidOrigin, Origins};
use crate::http::reply::internal_error;
use crate::nats::NatsEndpoint;
use crate::nats::address::{InvalidServers, ServerUrl};
use crate::nats::credentials::{Credentials, Given, InvalidCredentials, Proof};
use crate::nats::tls::{TlsError, TlsSettings};
use crate::platform::{Host, report};

/// Every variable that the function reads, with the value that it has where the host knows none; `spin.toml` declares
/// them with the same values.
pub const VARIABLES: [(&str, &str); 24] = [
    (SERVERS_VARIABLE, "nats://127.0.0.1:4222"),
    ("nats_user", "function"),
    ("nats_password", ""),
    ("nats_token", ""),
    ("nats_nkey_seed", ""),
    ("nats_credentials", ""),
    ("nats_tls_server_name", ""),
    ("nats_tls_ca", ""),
    ("nats_tls_handshake_first", "false"),
    ("nats_tls_client_certificate", ""),
    ("nats_tls_client_key", ""),
    (DOMAIN_VARIABLE, ""),
    ("api_key_hashes", ""),
    ("default_limits", "requests_per_minute=60000,tokens_per_minute=60000000"),
    ("models", ""),
    ("model_aliases", ""),
    ("max_body_bytes", "4194304"),
    ("request_timeout_s", "600"),
    (TIME_LIMIT_VARIABLE, "0"),
    ("no_worker_wait_s", "0"),
    ("queue_limit", "1000"),
    (CORS_VARIABLE, ""),
    ("background_retention_s", "600"),
    ("instance_memory", "512MiB"),
];

/// The servers. In spin.toml it is made of the way (`nats_scheme`) and of the addresses (`nats_server` and others),
/// since each entry of `allowed_outbound_hosts` stands for one address.
const SERVERS_VARIABLE: &str = "nats_url";

/// The JetStream domain in which the streams are.
const DOMAIN_VARIABLE: &str = "nats_jetstream_domain";

/// Whose pages may use the API; every answer depends on it, even one that needs nothing else.
const CORS_VARIABLE: &str = "cors_allowed_origins";

/// The time after which the host cuts requests.
const TIME_LIMIT_VARIABLE: &str = "request_time_limit_s";
/// Shortest time after which a host may cut requests, in seconds: their answers end a little before it.
const MIN_TIME_LIMIT_S: u64 = 5;

/// How long settings are believed without reading the variables again, in nanoseconds.
const SETTINGS_TTL_NS: u64 = 1_000_000_000;
/// Longest time that a request may be given, in seconds.
const MAX_TIMEOUT_S: u64 = 24 * 60 * 60;
/// Most jobs that a model's queue may be given room for.
const MAX_QUEUE: u64 = 1_000_000;
/// The memory of an instance before its settings are known.
pub const DEFAULT_INSTANCE_MEMORY: usize = 512 * 1024 * 1024;
/// The least and the most memory that the requests of an instance may be given. WebAssembly has 4 GiB, of which an
/// instance needs some for itself.
const MIN_MEMORY: u64 = 1024 * 1024;
const MAX_MEMORY: u64 = 3 * 1024 * 1024 * 1024;
/// Longest time that an answer may be stored, in seconds; NATS stores none for longer than this and
/// [`MAX_TIMEOUT_S`] together.
const MAX_RETENTION_S: u64 = 24 * 60 * 60;

/// All settings, valid.
#[derive(Clone)]
pub struct Config {
    /// The NATS servers.
    pub nats: NatsEndpoint,
    /// Keys that may use the API.
    pub keys: KeyHashes,
    /// OutputLimits of keys that have none of their own.
    pub default_limits: KeyLimits,
    /// Configured models and aliases.
    pub names: ModelNames,
    /// Largest request body.
    pub max_body_bytes: u64,
    /// How many seconds a request may take at most.
    pub request_timeout_s: u64,
    /// How long after its arrival the host cuts a request; `None` if it cuts none.
    pub request_time_limit: Option<Duration>,
    /// How many seconds a request for a configured model waits for a worker; 0 for not at all.
    pub no_worker_wait_s: u64,
    /// Largest number of jobs of a model that may wait or run.
    pub queue_limit: u64,
    /// Whose pages may use the API.
    pub origins: Origins,
    /// How many seconds after its deadline an answer that can be asked for again is stored at least.
    pub background_retention_s: u32,
    /// Bytes that the requests of an instance may hold.
    pub instance_memory: usize,
}

/// A variable that is missing or has a value that can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum ConfigError {
    #[error("variable '{0}' is not declared; spin.toml lists it under [component.function.variables]")]
    Missing(&'static str),
    #[error("{SERVERS_VARIABLE} (in spin.toml made of nats_scheme and nats_server): {0}")]
    Servers(#[from] InvalidServers),
    #[error(transparent)]
    Credentials(#[from] InvalidCredentials),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0} '{1}' is neither true nor false")]
    Flag(&'static str, String),
    #[error("{DOMAIN_VARIABLE}: {0}")]
    Domain(#[from] InvalidDomain),
    #[error("api_key_hashes: {0}")]
    Keys(#[from] InvalidKeyHash),
    #[error("default_limits: {0}")]
    OutputLimits(#[from] InvalidLimit),
    #[error("model_aliases: {0}")]
    Aliases(#[from] InvalidAlias),
    #[error("{CORS_VARIABLE}: {0}")]
    Origins(#[from] InvalidOrigin),
    #[error("{0} '{1}' is not an amount of memory from {min} to {max}. Write it like 512MiB",
        min = Bytes(MIN_MEMORY), max = Bytes(MAX_MEMORY))]
    Memory(&'static str, String),
    #[error("{0} '{1}' is not a whole number from {2} to {3}")]
    Number(&'static str, String, u64, u64),
    #[error(
        "{TIME_LIMIT_VARIABLE} '{0}' is neither 0, for a host that cuts no requests, nor a whole number from \
         {MIN_TIME_LIMIT_S} to {MAX_TIMEOUT_S}"
    )]
    TimeLimit(String),
}

/// The settings as they were a moment ago: to read them takes a call of the host for each variable.
pub struct ConfigCache(Cache<(), Rc<Config>>);

impl Default for ConfigCache {
    fn default() -> Self {
        Self(Cache::new(1, SETTINGS_TTL_NS))
    }
}

impl ConfigCache {
    /// The settings. Those that can't be used are not remembered.
    pub async fn read(&self, host: &Host) -> Result<Rc<Config>, ApiError> {
        if let Some(config) = self.fresh(host) {
            return Ok(config);
        }
        let asked_ns = host.monotonic_ns();
        let config = Rc::new(Config::read(host).await?);
        self.0.put((), asked_ns, Rc::clone(&config));
        Ok(config)
    }

    /// Whose pages may use the API. If the variable can't be read, no other origin may.
    pub async fn origins(&self, host: &Host) -> Origins {
        match self.fresh(host) {
            Some(config) => config.origins.clone(),
            // It counts for answers, too, that say that other settings are wrong.
            None => {
                let origins = host.variable(CORS_VARIABLE).await.unwrap_or_default();
                Origins::parse(&origins).unwrap_or_default()
            }
        }
    }

    fn fresh(&self, host: &Host) -> Option<Rc<Config>> {
        self.0.get(&(), host.monotonic_ns())
    }
}

impl Config {
    /// How long a request may take at most.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }

    /// How long a job may live, in milliseconds.
    pub fn job_life_ms(&self) -> u64 {
        self.request_timeout_s.saturating_mul(1000)
    }

    /// How long a stored request may live, in milliseconds.
    pub fn stored_life_ms(&self) -> u64 {
        u64::from(self.background_retention_s).saturating_mul(1000).saturating_add(self.job_life_ms())
    }

    /// Reads the settings from the host. What is wrong with them is for the log only.
    async fn read(host: &Host) -> Result<Self, ApiError> {
        let mut values = BTreeMap::new();
        for (name, _) in VARIABLES {
            match host.variable(name).await {
                Ok(value) => {
                    values.insert(name, value);
                }
                Err(error) => report("configuration", format_args!("variable '{name}': {error}")),
            }
        }
        Self::parse(&values).map_err(|error| {
            report("configuration", error);
            internal_error()
        })
    }

    /// Reads the values of [`VARIABLES`].
    pub fn parse(values: &BTreeMap<&'static str, String>) -> Result<Self, ConfigError> {
        let get =
            |name: &'static str| values.get(name).map(|value| value.trim()).ok_or(ConfigError::Missing(name));
        let from = |min, name, max| {
            let text = get(name)?;
            match text.parse::<u64>() {
                Ok(n) if (min..=max).contains(&n) => Ok(n),
                _ => Err(ConfigError::Number(name, text.to_owned(), min, max)),
            }
        };
        let number = |name, max| from(1, name, max);
        let memory = |name| {
            let text = get(name)?;
            let bytes =
                text.parse::<Bytes>().ok().filter(|Bytes(bytes)| (MIN_MEMORY..=MAX_MEMORY).contains(bytes));
            let bytes = bytes.and_then(|Bytes(bytes)| usize::try_from(bytes).ok());
            bytes.ok_or_else(|| ConfigError::Memory(name, text.to_owned()))
        };
        let flag = |name| match get(name)? {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(ConfigError::Flag(name, other.to_owned())),
        };
        let given = Given {
            password: get("nats_password")?,
            token: get("nats_token")?,
            nkey_seed: get("nats_nkey_seed")?,
            credentials: get("nats_credentials")?,
        };
        let tls = TlsSettings {
            server_name: get("nats_tls_server_name")?.to_owned(),
            ca: get("nats_tls_ca")?.to_owned(),
            handshake_first: flag("nats_tls_handshake_first")?,
            client_certificate: get("nats_tls_client_certificate")?.to_owned(),
            client_key: get("nats_tls_client_key")?.to_owned(),
        };
        tls.check()?;
        Ok(Self {
            nats: NatsEndpoint {
                servers: ServerUrl::parse_list(get(SERVERS_VARIABLE)?)?,
                credentials: Credentials { user: get("nats_user")?.to_owned(), proof: Proof::parse(&given)? },
                tls,
                domain: get(DOMAIN_VARIABLE)?.parse()?,
            },
            keys: KeyHashes::parse(get("api_key_hashes")?)?,
            default_limits: KeyLimits::parse(get("default_limits")?)?,
            names: ModelNames::parse(get("models")?, get("model_aliases")?)?,
            max_body_bytes: number("max_body_bytes", u64::from(u32::MAX))?,
            request_timeout_s: number("request_timeout_s", MAX_TIMEOUT_S)?,
            request_time_limit: parse_time_limit(get(TIME_LIMIT_VARIABLE)?)?,
            no_worker_wait_s: from(0, "no_worker_wait_s", MAX_TIMEOUT_S)?,
            queue_limit: number("queue_limit", MAX_QUEUE)?,
            origins: Origins::parse(get(CORS_VARIABLE)?)?,
            background_retention_s: u32::try_from(number("background_retention_s", MAX_RETENTION_S)?)
                .unwrap_or(u32::MAX),
            instance_memory: memory("instance_memory")?,
        })
    }
}

/// Prefix of the environment variables that set variables where the host has none of its own.
#[cfg(all(target_family = "wasm", not(feature = "spin")))]
const ENVIRONMENT_PREFIX: &str = "EMBERLINE_";

/// The value of a variable from the environment, or its default.
#[cfg(all(target_family = "wasm", not(feature = "spin")))]
pub fn from_environment(name: &str) -> Result<String, String> {
    let variable = format!("{ENVIRONMENT_PREFIX}{}", name.to_ascii_uppercase());
    match std::env::var(&variable) {
        Ok(value) => Ok(value),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("{variable} is not UTF-8")),
        Err(std::env::VarError::NotPresent) => {
            let default = VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            default.map(str::to_owned).ok_or_else(|| format!("{variable} is not set"))
        }
    }
}

/// Seconds after which the host cuts a request; 0 for never.
fn parse_time_limit(text: &str) -> Result<Option<Duration>, ConfigError> {
    match text.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(seconds) if (MIN_TIME_LIMIT_S..=MAX_TIMEOUT_S).contains(&seconds) => {
            Ok(Some(Duration::from_secs(seconds)))
        }
        _ => Err(ConfigError::TimeLimit(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(changes: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
        let (models, aliases) = (("models", "a"), ("model_aliases", "b=a"));
        let defaults = VARIABLES.into_iter().chain([models, aliases]);
        defaults.chain(changes.iter().copied()).map(|(name, value)| (name, value.to_owned())).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = Config::parse(&values(&[])).unwrap();
        assert_eq!(config.nats.servers, [ServerUrl::plain("127.0.0.1:4222".parse().unwrap())]);
        assert!(!config.nats.domain.is_named());
        assert_eq!(config.names.resolve("b"), "a");
        assert_eq!((config.max_body_bytes, config.instance_memory), (4 << 20, DEFAULT_INSTANCE_MEMORY));
    }

    #[test]
    fn servers_without_a_port_are_left_out() {
        let servers = "tls://[::1]:4222,tls://127.0.0.1:0,tls://10.0.0.3:4223";
        let config = Config::parse(&values(&[(SERVERS_VARIABLE, servers)])).unwrap();
        let shown: Vec<String> = config.nats.servers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["tls://[::1]:4222", "tls://10.0.0.3:4223"]);
    }

    #[test]
    fn a_host_cuts_requests_only_if_the_settings_say_so() {
        for (text, seconds) in [("0", None), ("5", Some(5)), ("86400", Some(86400))] {
            let config = Config::parse(&values(&[("request_time_limit_s", text)])).unwrap();
            assert_eq!(config.request_time_limit, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        for (name, value) in [
            ("nats_url", "127.0.0.1:4222"),
            ("nats_url", "nats://127.0.0.1:0"),
            ("nats_url", "nats://a:b@127.0.0.1:4222"),
            ("nats_url", ""),
            ("nats_nkey_seed", "x"),
            ("nats_credentials", "x"),
            ("nats_tls_ca", "x"),
            ("nats_tls_handshake_first", "yes"),
            ("nats_tls_client_certificate", "x"),
            ("nats_tls_client_key", "x"),
            ("nats_jetstream_domain", "$JS.hub.API"),
            ("api_key_hashes", "abc"),
            ("default_limits", "requests=1"),
            ("model_aliases", "x"),
            ("max_body_bytes", "0"),
            ("max_body_bytes", "4 MiB"),
            ("request_timeout_s", "1e9"),
            ("request_timeout_s", "86401"),
            ("request_time_limit_s", "4"),
            ("request_time_limit_s", "86401"),
            ("request_time_limit_s", "30s"),
            ("no_worker_wait_s", "-1"),
            ("no_worker_wait_s", "86401"),
            ("queue_limit", "0"),
            ("cors_allowed_origins", "example.com"),
            ("background_retention_s", "86401"),
            ("instance_memory", "512"),
            ("instance_memory", "4GiB"),
            ("instance_memory", "much"),
        ] {
            let error = Config::parse(&values(&[(name, value)])).err().unwrap().to_string();
            assert!(error.contains(name), "{name}={value}: {error}");
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        for (name, _) in VARIABLES {
            let mut values = values(&[]);
            values.remove(name);
            let error = Config::parse(&values).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    /// The entries of a table in spin.toml.
    fn manifest_table(name: &str) -> BTreeMap<&'static str, &'static str> {
        let manifest = include_str!("../../spin.toml");
        let section = manifest.split(&format!("[{name}]\n")).nth(1).unwrap().split("\n[").next().unwrap();
        let lines = section.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(" = ")).collect()
    }

    #[test]
    fn spin_toml_declares_exactly_these_variables() {
        let declared: Vec<_> = manifest_table("component.function.variables").into_keys().collect();
        let mut wanted = VARIABLES.map(|(name, _)| name).to_vec();
        wanted.sort_unstable();
        assert_eq!(declared, wanted);
    }

    #[test]
    fn spin_toml_has_the_same_defaults() {
        let declared = manifest_table("variables");
        for (name, value) in VARIABLES {
            // Made of others there, or naming the model that `make up` serves.
            if ![SERVERS_VARIABLE, "models", "model_aliases"].contains(&name) {
                assert!(declared[name].starts_with(&format!("{{ default = \"{value}\"")), "{name}");
            }
        }
    }
}
