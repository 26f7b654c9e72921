//! How a stack and its workers are started.

use crate::bus_way::BusWay;
use crate::network::TestHost;

/// The real model's name, as in the catalogue.
pub const MODEL: &str = "smollm2-135m-instruct";
/// The simulated engine's model.
pub const SIMULATED_MODEL: &str = "simulated-echo";

/// What computes in a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// No worker at all.
    None,
    /// The real model on the CPU backend.
    Real,
    /// The worker's simulated engine, which serves [`SIMULATED_MODEL`].
    Simulated,
    /// The models that [`Options::worker_args`] name, on the CPU backend.
    Given,
}

/// How to start a stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// What computes.
    pub engine: Engine,
    /// The way of the function to NATS, if it is not that of the whole run.
    pub way: Option<BusWay>,
    /// Where the function looks for NATS, if not where it is: up to three addresses.
    pub through: Vec<String>,
    /// Spin variables on top of the defaults.
    pub variables: Vec<(&'static str, String)>,
    /// Extra arguments of the worker.
    pub worker_args: Vec<String>,
    /// Where workers run.
    pub worker_host: TestHost,
    /// Where workers look for NATS, if not where it is: addresses, separated by commas.
    pub worker_through: Option<String>,
    /// After how many seconds the function's host cuts a request. Spin cuts none: there, only the function knows of it.
    pub request_time_limit_s: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: Engine::Real,
            way: None,
            through: Vec::new(),
            variables: Vec::new(),
            worker_args: Vec::new(),
            worker_host: TestHost::default(),
            worker_through: None,
            request_time_limit_s: None,
        }
    }
}

impl Options {
    /// The simulated engine, with more arguments for its worker.
    pub fn simulated(worker_args: &[&str]) -> Self {
        let worker_args = worker_args.iter().map(|&arg| arg.to_owned()).collect();
        Self { engine: Engine::Simulated, worker_args, ..Self::default() }
    }

    /// The same with one more Spin variable.
    #[must_use]
    pub fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }
}
