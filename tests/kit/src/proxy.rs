//! Proxies in front of nats-server: one counts round trips, one is slow, one can be interrupted.

mod counting;
mod delaying;
mod faulty;

pub use counting::CountingProxy;
pub use delaying::DelayingProxy;
pub use faulty::FaultyProxy;
