//! The end-to-end tests: a real nats-server, the real function in its host, and real workers.
//!
//! One module per promise, in three groups that `.config/nextest.toml` schedules: [`simulated`] tests
//! mostly wait, [`real_model`] tests use every core, and [`faults`] break something.

mod choice_checks;
mod clients;
mod faults;
mod real_model;
mod simulated;
