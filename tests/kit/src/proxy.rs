//! Proxies in front of nats-server: one counts round trips, one can be interrupted.

mod counting;
mod faulty;

pub use counting::CountingProxy;
pub use faulty::FaultyProxy;
