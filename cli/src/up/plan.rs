//! What `emberline up` starts: the program, arguments and environment of each part.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::bus_way::{BusWay, EdgePlan};
use super::host::FunctionHost;
use super::ports::reachable;
use super::process::Program;
use super::transcript::StackPart;
use crate::key_gen::Nkey;

/// The alias under which a local stack serves its model.
pub(crate) const ALIAS: &str = "vllm-primary";
/// nats-server's configuration in the project's folder.
pub(crate) const NATS_CONFIG: &str = "deploy/nats.conf";
/// Seconds that a worker has to finish its jobs when the stack stops. The function has stopped before, so
/// nobody reads the rest of the answers.
const DRAIN_S: &str = "5";
/// What else would say how a worker reaches NATS.
const OTHER_NATS_OPTIONS: [&str; 8] = [
    "EMBERLINE_NATS_PASSWORD",
    "EMBERLINE_NATS_TOKEN",
    "EMBERLINE_NATS_NKEY_FILE",
    "EMBERLINE_NATS_CREDENTIALS",
    "EMBERLINE_NATS_CA",
    "EMBERLINE_NATS_CLIENT_CERTIFICATE",
    "EMBERLINE_NATS_CLIENT_KEY",
    "EMBERLINE_NATS_TLS_FIRST",
];
/// The name under which a worker serves its simulated engine.
pub(crate) const SIMULATED_MODEL: &str = "simulated-echo";

/// Where the worker computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The GPU if there is one, the CPU otherwise.
    Auto,
    Wgpu,
    Cpu,
}

/// A model file and the name under which it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// The models that the stack serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Models {
    One(Model),
    /// The models that a file lists. The file may change; `names` are those that it lists now.
    Listed {
        file: PathBuf,
        names: Vec<String>,
    },
    /// [`SIMULATED_MODEL`].
    Simulated(SimulatedEngine),
}

/// The pace and size of each worker's simulated engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SimulatedEngine {
    /// Jobs at once.
    pub(crate) slots: u16,
    /// Tokens a second of each job; 0 for as many as it can.
    pub(crate) tokens_per_s: u32,
}

impl Models {
    /// The names, separated by commas.
    pub(crate) fn names(&self) -> String {
        match self {
            Self::One(model) => model.name.clone(),
            Self::Listed { names, .. } => names.join(","),
            Self::Simulated(_) => SIMULATED_MODEL.to_owned(),
        }
    }

    /// The definition of [`ALIAS`], which stands for the first model.
    fn alias(&self) -> String {
        let first = match self {
            Self::One(model) => Some(model.name.as_str()),
            Self::Listed { names, .. } => names.first().map(String::as_str),
            Self::Simulated(_) => Some(SIMULATED_MODEL),
        };
        first.map_or_else(String::new, |name| format!("{ALIAS}={name}"))
    }
}

/// Everything that is decided before anything starts.
#[derive(Debug)]
pub(crate) struct StackPlan {
    /// The folder with spin.toml and deploy/.
    pub(crate) root: PathBuf,
    pub(crate) nats_server: PathBuf,
    /// nats-server's configuration: [`NATS_CONFIG`], or what begins with it.
    pub(crate) nats_config: PathBuf,
    /// The folder of JetStream's files.
    pub(crate) nats_store: PathBuf,
    pub(crate) nats_listen: SocketAddr,
    /// The port at which nats-server reports on itself, if it is to.
    pub(crate) nats_monitoring: Option<u16>,
    pub(crate) bus_way: BusWay,
    pub(crate) listen: SocketAddr,
    pub(crate) host: FunctionHost,
    pub(crate) host_program: PathBuf,
    /// The cache folder.
    pub(crate) cache: PathBuf,
    /// The folder of Spin's state, which Spin would otherwise keep beside spin.toml.
    pub(crate) spin_state: PathBuf,
    /// The wasmtime configuration that names the folder of compiled components.
    pub(crate) spin_cache: PathBuf,
    pub(crate) worker_program: PathBuf,
    pub(crate) workers: usize,
    pub(crate) backend: Backend,
    pub(crate) models: Models,
    pub(crate) api_key: String,
    /// The limits of keys that have none of their own, if they are to differ from those in spin.toml.
    pub(crate) default_limits: Option<String>,
    /// What function and workers log, if it is to differ from what they log by themselves.
    pub(crate) log_filter: Option<&'static str>,
    pub(crate) users: StackUsers,
}

/// The NKEYs of nats-server's users, generated at each start.
#[derive(Debug, Clone)]
pub(crate) struct StackUsers {
    pub(crate) function: Nkey,
    pub(crate) worker: Nkey,
    pub(crate) admin: Nkey,
}

impl StackUsers {
    pub(crate) fn random() -> io::Result<Self> {
        Ok(Self { function: Nkey::random()?, worker: Nkey::random()?, admin: Nkey::random()? })
    }
}

impl StackPlan {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", reachable(self.listen))
    }

    /// The address at which this machine reaches nats-server.
    pub(crate) fn nats_address(&self) -> SocketAddr {
        reachable(self.nats_listen)
    }

    pub(crate) fn nats(&self) -> Program {
        let (config, store) = (self.nats_config.to_string_lossy(), self.nats_store.to_string_lossy());
        let (address, port) = (self.nats_listen.ip().to_string(), self.nats_listen.port().to_string());
        let mut args = vec!["-c", &config, "-a", &address, "-p", &port, "-sd", &store];
        let monitoring = self.nats_monitoring.map(|port| port.to_string());
        if let Some(port) = &monitoring {
            args.extend(["-m", port]);
        }
        self.program(
            StackPart::Nats,
            &self.nats_server,
            &args,
            &[
                ("EMBERLINE_FUNCTION_NKEY", &self.users.function.public),
                ("EMBERLINE_WORKER_NKEY", &self.users.worker.public),
                ("EMBERLINE_ADMIN_NKEY", &self.users.admin.public),
            ],
        )
    }

    /// The edge, if the function goes through one.
    pub(crate) fn edge(&self) -> Option<Program> {
        let BusWay::Edge(EdgePlan { program, listen, certificate }) = &self.bus_way else { return None };
        let (listen, nats) = (listen.to_string(), self.nats_address().to_string());
        let files = certificate.as_ref().map(|files| {
            [files.certificate.to_string_lossy().into_owned(), files.key.to_string_lossy().into_owned()]
        });
        let mut args = vec!["edge", "--listen", &listen, "--nats", &nats];
        if let Some([certificate, key]) = &files {
            args.extend(["--tls-certificate", certificate, "--tls-key", key]);
        }
        Some(self.program(StackPart::Edge, program, &args, &[]))
    }

    /// Worker `number`, from 1.
    pub(crate) fn worker(&self, number: usize) -> Program {
        let backend = self.backend.to_possible_value();
        let backend = backend.as_ref().map_or("auto", |value| value.get_name());
        let nats = self.nats_address().to_string();
        let cache = self.cache.to_string_lossy();
        let mut env = vec![
            // An inherited value may be relative to another folder than the program's.
            ("EMBERLINE_CACHE", &*cache),
            ("EMBERLINE_NATS", nats.as_str()),
            ("EMBERLINE_NATS_USER", "worker"),
            ("EMBERLINE_NATS_NKEY_SEED", &self.users.worker.seed),
            ("EMBERLINE_BACKEND", backend),
            ("EMBERLINE_DRAIN_S", DRAIN_S),
        ];
        // None of these reaches the worker from the environment of `emberline up`.
        env.extend(OTHER_NATS_OPTIONS.map(|name| (name, "")));
        // All three are set, so that no value from the environment of `emberline up` reaches the worker.
        let (path, name, file) = match &self.models {
            Models::One(Model { name, path }) => (path.to_string_lossy(), name.as_str(), Cow::default()),
            Models::Listed { file, .. } => (Cow::default(), "", file.to_string_lossy()),
            Models::Simulated(_) => (Cow::default(), "", Cow::default()),
        };
        env.extend([
            ("EMBERLINE_MODEL_PATH", &*path),
            ("EMBERLINE_MODEL_NAME", name),
            ("EMBERLINE_MODELS", &*file),
        ]);
        env.extend(device_select_off());
        let args = match self.models {
            Models::Simulated(SimulatedEngine { slots, tokens_per_s }) => vec![
                "--engine=simulated".to_owned(),
                format!("--slots={slots}"),
                format!("--simulated-tokens-per-s={tokens_per_s}"),
            ],
            Models::One(_) | Models::Listed { .. } => Vec::new(),
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.program(StackPart::Worker(number), &self.worker_program, &args, &env)
    }

    pub(crate) fn function(&self) -> Program {
        let manifest = self.root.join("spin.toml");
        let listen = self.listen.to_string();
        let (manifest, state) = (manifest.to_string_lossy(), self.spin_state.to_string_lossy());
        let cache = self.spin_cache.to_string_lossy();
        let common = ["--from", &manifest, "--listen", &listen];
        let args = match self.host {
            FunctionHost::Spin => {
                [&["up"], &common[..], &["--state-dir", &state, "--cache", &cache]].concat()
            }
            FunctionHost::Local => common.to_vec(),
        };
        let (cache_folder, way) =
            (self.cache.to_string_lossy(), self.bus_way.environment(self.nats_address()));
        let key_hash = HEXLOWER.encode(&Sha256::digest(self.api_key.as_bytes()));
        let (models, aliases) = (self.models.names(), self.models.alias());
        let mut env = vec![
            // An inherited value may be relative to another folder than the program's.
            ("EMBERLINE_CACHE", &*cache_folder),
            ("SPIN_VARIABLE_NATS_USER", "function"),
            ("SPIN_VARIABLE_NATS_NKEY_SEED", &self.users.function.seed),
            ("SPIN_VARIABLE_API_KEY_HASHES", &key_hash),
            ("SPIN_VARIABLE_MODELS", &models),
            ("SPIN_VARIABLE_MODEL_ALIASES", &aliases),
        ];
        env.extend(way.iter().map(|(name, value)| (*name, value.as_str())));
        env.extend(self.default_limits.as_deref().map(|limits| ("SPIN_VARIABLE_DEFAULT_LIMITS", limits)));
        self.program(StackPart::Function, &self.host_program, &args, &env)
    }

    fn program(&self, part: StackPart, path: &Path, args: &[&str], env: &[(&str, &str)]) -> Program {
        let log = self.log_filter.map(|filter| ("EMBERLINE_LOG", filter));
        let env = env.iter().copied().chain(log);
        Program {
            part,
            path: path.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            folder: self.root.clone(),
        }
    }
}

/// The variable that turns off Mesa's device-selection layer for Vulkan, where that layer would only
/// complain about a missing desktop.
pub(crate) fn device_select_off() -> Option<(&'static str, &'static str)> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    (!device_select_matters(is_set)).then_some(("NODEVICE_SELECT", "1"))
}

/// Whether Mesa's device-selection layer has anything to do: it puts the desktop's GPU first, or follows the
/// order that a variable gives.
fn device_select_matters(is_set: impl Fn(&str) -> bool) -> bool {
    ["XDG_RUNTIME_DIR", "NODEVICE_SELECT", "MESA_VK_DEVICE_SELECT", "DRI_PRIME"].into_iter().any(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::bus_way::CertificateFiles;

    fn plan() -> StackPlan {
        StackPlan {
            root: "/root".into(),
            nats_server: "/bin/nats".into(),
            nats_config: "/nats.conf".into(),
            nats_store: "/store".into(),
            nats_listen: "0.0.0.0:4333".parse().unwrap(),
            nats_monitoring: None,
            bus_way: BusWay::Plain,
            listen: "0.0.0.0:3333".parse().unwrap(),
            host: FunctionHost::Spin,
            host_program: "/bin/spin".into(),
            cache: "/cache".into(),
            spin_state: "/state".into(),
            spin_cache: "/cache.toml".into(),
            worker_program: "/bin/worker".into(),
            workers: 1,
            backend: Backend::Wgpu,
            models: Models::One(Model { name: "m".into(), path: "/m.gguf".into() }),
            api_key: "abc".into(),
            default_limits: None,
            log_filter: None,
            users: StackUsers::random().unwrap(),
        }
    }

    fn env<'a>(program: &'a Program, name: &str) -> &'a str {
        &program.env.iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn the_function_gets_addresses_hashes_and_the_alias() {
        let function = plan().function();
        let common = ["--from", "/root/spin.toml", "--listen", "0.0.0.0:3333"];
        let spins_own = ["--state-dir", "/state", "--cache", "/cache.toml"];
        assert_eq!(function.args, [&["up"], &common[..], &spins_own].concat());
        assert_eq!(env(&function, "SPIN_VARIABLE_NATS_SERVER"), "127.0.0.1:4333");
        assert_eq!(env(&function, "SPIN_VARIABLE_MODEL_ALIASES"), "vllm-primary=m");
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(env(&function, "SPIN_VARIABLE_API_KEY_HASHES"), hash);
        let local = StackPlan { host: FunctionHost::Local, ..plan() };
        assert_eq!(local.function().args, common);
    }

    #[test]
    fn the_function_goes_to_nats_server_or_to_its_edge() {
        let plan = |bus_way| StackPlan { bus_way, ..plan() };
        let way = |plan: &StackPlan| {
            let function = plan.function();
            ["SPIN_VARIABLE_NATS_SCHEME", "SPIN_VARIABLE_NATS_SERVER"]
                .map(|name| env(&function, name).to_owned())
        };
        let tls = plan(BusWay::Tls { ca: "PEM".into() });
        assert_eq!(way(&tls), ["tls", "127.0.0.1:4333"]);
        assert_eq!(env(&tls.function(), "SPIN_VARIABLE_NATS_TLS_CA"), "PEM");
        assert!(tls.edge().is_none());
        let edge = |certificate| {
            let listen = "127.0.0.1:8443".parse().unwrap();
            plan(BusWay::Edge(EdgePlan { program: "/emberline".into(), listen, certificate }))
        };
        let open = edge(None);
        assert_eq!(way(&open), ["http", "127.0.0.1:8443"]);
        let args = ["edge", "--listen", "127.0.0.1:8443", "--nats", "127.0.0.1:4333"];
        assert_eq!(open.edge().unwrap().args, args);
        let secure = edge(Some(CertificateFiles { certificate: "/c.pem".into(), key: "/c.key".into() }));
        assert_eq!(way(&secure), ["https", "127.0.0.1:8443"]);
        assert_eq!(env(&secure.function(), "SSL_CERT_FILE"), "/c.pem");
        let of_tls = ["--tls-certificate", "/c.pem", "--tls-key", "/c.key"];
        assert_eq!(secure.edge().unwrap().args[args.len()..], of_tls);
    }

    #[test]
    fn an_ipv6_address_of_nats_is_in_brackets_where_a_port_follows() {
        for listen in ["[::1]:4333", "[::]:4333"] {
            let plan = StackPlan { nats_listen: listen.parse().unwrap(), ..plan() };
            assert_eq!(env(&plan.function(), "SPIN_VARIABLE_NATS_SERVER"), "[::1]:4333");
            assert_eq!(env(&plan.worker(1), "EMBERLINE_NATS"), "[::1]:4333");
        }
        let plan = StackPlan { nats_listen: "[::1]:4333".parse().unwrap(), ..plan() };
        assert_eq!(plan.nats().args[3], "::1");
    }

    #[test]
    fn no_secret_is_on_a_command_line() {
        let plan = plan();
        for program in [plan.nats(), plan.worker(1), plan.function()] {
            let line = program.args.join(" ");
            for secret in [&plan.users.function.seed, &plan.users.worker.seed, &plan.api_key] {
                assert!(!line.contains(secret.as_str()), "{line}");
            }
        }
        let (nats, users) = (plan.nats(), &plan.users);
        assert_eq!(env(&nats, "EMBERLINE_WORKER_NKEY"), users.worker.public);
        assert_eq!(env(&plan.worker(1), "EMBERLINE_NATS_NKEY_SEED"), users.worker.seed);
        assert_eq!(env(&nats, "EMBERLINE_FUNCTION_NKEY"), users.function.public);
        assert_eq!(env(&plan.function(), "SPIN_VARIABLE_NATS_NKEY_SEED"), users.function.seed);
        assert!(nats.env.iter().all(|(_, value)| !value.starts_with("SU")));
    }

    #[test]
    fn the_users_own_device_order_is_kept() {
        assert!(!device_select_matters(|_| false));
        assert!(device_select_matters(|name| name == "DRI_PRIME"));
    }

    #[test]
    fn a_worker_gets_its_model_and_backend() {
        let worker = plan().worker(2);
        assert_eq!(worker.part, StackPart::Worker(2));
        assert_eq!(env(&worker, "EMBERLINE_MODEL_PATH"), "/m.gguf");
        assert_eq!(env(&worker, "EMBERLINE_BACKEND"), "wgpu");
        assert_eq!(env(&worker, "EMBERLINE_NATS"), "127.0.0.1:4333");
        assert_eq!(env(&worker, "EMBERLINE_MODELS"), "");
    }

    #[test]
    fn a_file_of_models_goes_to_the_worker_and_its_names_to_the_function() {
        let names = ["a", "b"].map(String::from).to_vec();
        let plan = StackPlan { models: Models::Listed { file: "/models.toml".into(), names }, ..plan() };
        let (worker, function) = (plan.worker(1), plan.function());
        assert_eq!(env(&worker, "EMBERLINE_MODELS"), "/models.toml");
        assert_eq!(env(&worker, "EMBERLINE_MODEL_PATH"), "");
        assert_eq!(env(&function, "SPIN_VARIABLE_MODELS"), "a,b");
        assert_eq!(env(&function, "SPIN_VARIABLE_MODEL_ALIASES"), "vllm-primary=a");
    }

    #[test]
    fn a_stack_to_be_measured_simulates_its_model_and_reports_on_its_nats_server() {
        let engine = SimulatedEngine { slots: 512, tokens_per_s: 0 };
        let plan = StackPlan {
            models: Models::Simulated(engine),
            nats_monitoring: Some(8333),
            default_limits: Some("requests_per_minute=9".into()),
            log_filter: Some("warn"),
            ..plan()
        };
        let (worker, function) = (plan.worker(1), plan.function());
        assert_eq!(worker.args, ["--engine=simulated", "--slots=512", "--simulated-tokens-per-s=0"]);
        assert_eq!(env(&worker, "EMBERLINE_MODEL_PATH"), "");
        assert_eq!(env(&function, "SPIN_VARIABLE_MODEL_ALIASES"), "vllm-primary=simulated-echo");
        assert_eq!(env(&function, "SPIN_VARIABLE_DEFAULT_LIMITS"), "requests_per_minute=9");
        assert_eq!((env(&function, "EMBERLINE_LOG"), env(&worker, "EMBERLINE_LOG")), ("warn", "warn"));
        assert_eq!(plan.nats().args[8..], ["-m", "8333"]);
    }
}
