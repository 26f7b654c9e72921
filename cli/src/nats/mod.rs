//! How the commands reach NATS: [`access`] connects and reads streams, [`jetstream_api`] sends JetStream's
//! own requests.

pub(crate) mod access;
pub(crate) mod jetstream_api;
