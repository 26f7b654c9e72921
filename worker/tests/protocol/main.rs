//! What a worker promises on NATS, shown with a real nats-server, the real binary and the
//! simulated engine.

mod jobs;
mod lifecycle;
mod permissions;
mod support;
