//! Workers, NATS, functions and clients die or are cut off; nothing that was promised is lost.

mod bus_trouble;
mod chaos;
mod chaos_model;
mod cluster;
mod engines;
mod network;
mod partition;
mod rolling;
mod soak;
mod vanish;
