//! How the commands reach NATS: [`access`] connects, [`stored`] reads streams, [`jetstream_api`] sends
//! JetStream's own requests, and [`name`] reads names that become parts of subjects.

pub(crate) mod access;
pub(crate) mod jetstream_api;
pub(crate) mod name;
pub(crate) mod stored;
