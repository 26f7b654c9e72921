//! What the requests of one instance share.
//!
//! An instance serves many requests, some at the same time, and is dropped when it is idle: nothing here
//! may be relied on.

use std::rc::Rc;

use crate::access::keys::KeyCache;
use crate::admission::heartbeats::ServedCache;
use crate::admission::seen::SeenCounters;
use crate::config::{ConfigCache, DEFAULT_INSTANCE_MEMORY};
use crate::memory::Memory;
use crate::nats::NatsEndpoint;
use crate::nats::bus::{Bus, Connections};
use crate::platform::Host;

/// Connections to NATS, and what was read there a moment ago.
pub struct Instance {
    /// The host that it runs on.
    pub host: Host,
    /// The settings.
    pub config: ConfigCache,
    /// What the workers' heartbeats said.
    pub served: ServedCache,
    /// Records of keys.
    pub keys: KeyCache,
    /// What the counters of keys and models were.
    pub counters: SeenCounters,
    /// What its requests hold.
    pub memory: Rc<Memory>,
    connections: Rc<Connections>,
}

impl Instance {
    /// An instance that has served nothing yet.
    pub fn new(host: Host) -> Rc<Self> {
        let (config, served, keys, counters) = Default::default();
        let memory = Memory::new(DEFAULT_INSTANCE_MEMORY);
        Rc::new(Self { host, config, served, keys, counters, memory, connections: Rc::default() })
    }

    /// NATS at `endpoint`.
    pub fn bus(&self, endpoint: &NatsEndpoint) -> Bus {
        Bus::new(self.host.clone(), endpoint.clone(), Rc::clone(&self.connections))
    }
}
