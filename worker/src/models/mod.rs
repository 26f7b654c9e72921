//! The models of a worker: which are wanted, how they are loaded, and what they are doing.
//!
//! [`options`] says what a model is, [`file`] reads and watches the list of them, [`load`] makes an
//! engine of one if there is [`memory`] for it. [`fleet`] starts and ends an [`instance`] for each,
//! and keeps the [`board`] that the heartbeat tells. Open [`fleet`] first.

pub mod board;
pub mod file;
pub mod fleet;
pub mod instance;
pub mod load;
pub mod memory;
pub mod options;
