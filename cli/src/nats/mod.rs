//! How the commands reach NATS: [`access`] connects, [`stored`] reads streams, and [`jetstream_api`] sends
//! JetStream's own requests.

pub(crate) mod access;
pub(crate) mod jetstream_api;
pub(crate) mod stored;
