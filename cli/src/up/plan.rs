//! What exactly `emberline up` starts: programs, arguments and environment of each part.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::host::Host;
use super::ports::reachable;
use super::process::Program;
use super::transcript::Part;
use crate::cache::random_hex;

/// The name under which the local configuration serves its model.
pub(crate) const ALIAS: &str = "vllm-primary";
/// Seconds that a worker gets for its jobs at the end. The function has gone before, and with it
/// everybody who could read the rest.
const DRAIN_S: &str = "5";

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

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Models {
    One(Model),
    /// What the file lists, which may change; these names are in it now.
    Listed {
        file: PathBuf,
        names: Vec<String>,
    },
}

impl Models {
    /// Their names, with commas.
    pub(crate) fn names(&self) -> String {
        match self {
            Self::One(model) => model.name.clone(),
            Self::Listed { names, .. } => names.join(","),
        }
    }

    /// The alias of the local configuration; the first of several models has it.
    fn alias(&self) -> String {
        let first = match self {
            Self::One(model) => Some(&model.name),
            Self::Listed { names, .. } => names.first(),
        };
        first.map_or_else(String::new, |name| format!("{ALIAS}={name}"))
    }
}

/// Everything that has been decided before anything starts.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The folder with spin.toml and deploy/.
    pub(crate) root: PathBuf,
    pub(crate) nats_server: PathBuf,
    /// JetStream's files.
    pub(crate) nats_store: PathBuf,
    pub(crate) nats_listen: SocketAddr,
    pub(crate) listen: SocketAddr,
    pub(crate) host: Host,
    pub(crate) host_program: PathBuf,
    /// The folder of everything that is kept.
    pub(crate) cache: PathBuf,
    /// What Spin would otherwise keep beside spin.toml.
    pub(crate) spin_state: PathBuf,
    /// The file that tells Spin where to keep compiled components.
    pub(crate) spin_cache: PathBuf,
    pub(crate) worker_program: PathBuf,
    pub(crate) workers: usize,
    pub(crate) backend: Backend,
    pub(crate) models: Models,
    pub(crate) api_key: String,
    pub(crate) passwords: Passwords,
}

/// nats-server's users' passwords, new at each start.
#[derive(Debug, Clone)]
pub(crate) struct Passwords {
    pub(crate) function: String,
    pub(crate) worker: String,
    pub(crate) admin: String,
}

impl Passwords {
    pub(crate) fn random() -> Self {
        // nats-server reads a variable's text as a value: a letter in front keeps it from being a number.
        let password = || format!("p{}", random_hex::<20>());
        Self { function: password(), worker: password(), admin: password() }
    }
}

impl Plan {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", reachable(self.listen))
    }

    /// Where nats-server is reached from this machine.
    pub(crate) fn nats_address(&self) -> SocketAddr {
        reachable(self.nats_listen)
    }

    pub(crate) fn nats(&self) -> Program {
        let config = self.root.join("deploy/nats.conf");
        self.program(
            Part::Nats,
            &self.nats_server,
            &[
                "-c",
                &config.to_string_lossy(),
                "-a",
                &self.nats_listen.ip().to_string(),
                "-p",
                &self.nats_listen.port().to_string(),
                "-sd",
                &self.nats_store.to_string_lossy(),
            ],
            &[
                ("EMBERLINE_FUNCTION_PASSWORD", &self.passwords.function),
                ("EMBERLINE_WORKER_PASSWORD", &self.passwords.worker),
                ("EMBERLINE_ADMIN_PASSWORD", &self.passwords.admin),
            ],
        )
    }

    /// Worker `number`, from 1.
    pub(crate) fn worker(&self, number: usize) -> Program {
        let backend = self.backend.to_possible_value();
        let backend = backend.as_ref().map_or("auto", |value| value.get_name());
        let nats = self.nats_address().to_string();
        let mut env = vec![
            ("EMBERLINE_NATS", nats.as_str()),
            ("EMBERLINE_NATS_USER", "worker"),
            ("EMBERLINE_NATS_PASSWORD", &self.passwords.worker),
            ("EMBERLINE_BACKEND", backend),
            ("EMBERLINE_DRAIN_S", DRAIN_S),
        ];
        // Nothing that was meant for `up` itself may reach the worker by these variables.
        let (path, name, file) = match &self.models {
            Models::One(Model { name, path }) => (path.to_string_lossy(), name.as_str(), Cow::default()),
            Models::Listed { file, .. } => (Cow::default(), "", file.to_string_lossy()),
        };
        env.extend([
            ("EMBERLINE_MODEL_PATH", &*path),
            ("EMBERLINE_MODEL_NAME", name),
            ("EMBERLINE_MODELS", &*file),
        ]);
        env.extend(quiet_layer());
        self.program(Part::Worker(number), &self.worker_program, &[], &env)
    }

    pub(crate) fn function(&self) -> Program {
        let manifest = self.root.join("spin.toml");
        let listen = self.listen.to_string();
        let (manifest, state) = (manifest.to_string_lossy(), self.spin_state.to_string_lossy());
        let cache = self.spin_cache.to_string_lossy();
        let common = ["--from", &manifest, "--listen", &listen];
        let args = match self.host {
            Host::Spin => [&["up"], &common[..], &["--state-dir", &state, "--cache", &cache]].concat(),
            Host::Local => common.to_vec(),
        };
        self.program(
            Part::Function,
            &self.host_program,
            &args,
            &[
                // Here it may be relative to another folder than the program's.
                ("EMBERLINE_CACHE", &self.cache.to_string_lossy()),
                ("SPIN_VARIABLE_NATS_SERVER", &self.nats_address().to_string()),
                ("SPIN_VARIABLE_NATS_USER", "function"),
                ("SPIN_VARIABLE_NATS_PASSWORD", &self.passwords.function),
                ("SPIN_VARIABLE_API_KEY_HASHES", &HEXLOWER.encode(&Sha256::digest(self.api_key.as_bytes()))),
                ("SPIN_VARIABLE_MODELS", &self.models.names()),
                ("SPIN_VARIABLE_MODEL_ALIASES", &self.models.alias()),
            ],
        )
    }

    fn program(&self, part: Part, path: &Path, args: &[&str], env: &[(&str, &str)]) -> Program {
        Program {
            part,
            path: path.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            folder: self.root.clone(),
        }
    }
}

/// What keeps Mesa's Vulkan layer for choosing a GPU from complaining on a machine without a desktop.
pub(crate) fn quiet_layer() -> Option<(&'static str, &'static str)> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    (!device_order_matters(is_set)).then_some(("NODEVICE_SELECT", "1"))
}

/// Whether Mesa's Vulkan layer that puts the desktop's GPU first has a desktop or an order to
/// follow. Without either it only complains about the missing desktop.
fn device_order_matters(is_set: impl Fn(&str) -> bool) -> bool {
    ["XDG_RUNTIME_DIR", "NODEVICE_SELECT", "MESA_VK_DEVICE_SELECT", "DRI_PRIME"].into_iter().any(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            root: "/root".into(),
            nats_server: "/bin/nats".into(),
            nats_store: "/store".into(),
            nats_listen: "0.0.0.0:4333".parse().unwrap(),
            listen: "0.0.0.0:3333".parse().unwrap(),
            host: Host::Spin,
            host_program: "/bin/spin".into(),
            cache: "/cache".into(),
            spin_state: "/state".into(),
            spin_cache: "/cache.toml".into(),
            worker_program: "/bin/worker".into(),
            workers: 1,
            backend: Backend::Wgpu,
            models: Models::One(Model { name: "m".into(), path: "/m.gguf".into() }),
            api_key: "abc".into(),
            passwords: Passwords::random(),
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
        let local = Plan { host: Host::Local, ..plan() };
        assert_eq!(local.function().args, common);
    }

    #[test]
    fn an_ipv6_address_of_nats_is_in_brackets_where_a_port_follows() {
        for listen in ["[::1]:4333", "[::]:4333"] {
            let plan = Plan { nats_listen: listen.parse().unwrap(), ..plan() };
            assert_eq!(env(&plan.function(), "SPIN_VARIABLE_NATS_SERVER"), "[::1]:4333");
            assert_eq!(env(&plan.worker(1), "EMBERLINE_NATS"), "[::1]:4333");
        }
        let plan = Plan { nats_listen: "[::1]:4333".parse().unwrap(), ..plan() };
        assert_eq!(plan.nats().args[3], "::1");
    }

    #[test]
    fn no_secret_is_on_a_command_line() {
        let plan = plan();
        for program in [plan.nats(), plan.worker(1), plan.function()] {
            let line = program.args.join(" ");
            for secret in [&plan.passwords.function, &plan.passwords.worker, &plan.api_key] {
                assert!(!line.contains(secret.as_str()), "{line}");
            }
        }
        let nats = plan.nats();
        assert_eq!(env(&nats, "EMBERLINE_WORKER_PASSWORD"), env(&plan.worker(1), "EMBERLINE_NATS_PASSWORD"));
        let function = plan.function();
        assert_eq!(env(&nats, "EMBERLINE_FUNCTION_PASSWORD"), env(&function, "SPIN_VARIABLE_NATS_PASSWORD"));
    }

    #[test]
    fn the_users_own_order_of_devices_stays() {
        assert!(!device_order_matters(|_| false));
        assert!(device_order_matters(|name| name == "DRI_PRIME"));
    }

    #[test]
    fn a_worker_is_told_its_model_and_backend() {
        let worker = plan().worker(2);
        assert_eq!(worker.part, Part::Worker(2));
        assert_eq!(env(&worker, "EMBERLINE_MODEL_PATH"), "/m.gguf");
        assert_eq!(env(&worker, "EMBERLINE_BACKEND"), "wgpu");
        assert_eq!(env(&worker, "EMBERLINE_NATS"), "127.0.0.1:4333");
        assert_eq!(env(&worker, "EMBERLINE_MODELS"), "");
    }

    #[test]
    fn a_file_of_models_goes_to_the_worker_and_its_names_to_the_function() {
        let names = ["a", "b"].map(String::from).to_vec();
        let plan = Plan { models: Models::Listed { file: "/models.toml".into(), names }, ..plan() };
        let (worker, function) = (plan.worker(1), plan.function());
        assert_eq!(env(&worker, "EMBERLINE_MODELS"), "/models.toml");
        assert_eq!(env(&worker, "EMBERLINE_MODEL_PATH"), "");
        assert_eq!(env(&function, "SPIN_VARIABLE_MODELS"), "a,b");
        assert_eq!(env(&function, "SPIN_VARIABLE_MODEL_ALIASES"), "vllm-primary=a");
    }
}
