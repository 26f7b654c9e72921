//! How the commands reach NATS: [`access`] connects, [`stored`] reads streams, [`jetstream_api`] sends
//! JetStream's own requests, [`name`] reads names that become parts of subjects, and [`global_args`] has options
//! of a command taken by its subcommands.

pub(crate) mod access;
mod global_args;
pub(crate) mod jetstream_api;
pub(crate) mod name;
pub(crate) mod stored;
