//! The models of a worker: which are wanted, how they are loaded, and what they are doing.
//!
//! [`options`] says what a model is, [`file`] reads and watches the list of them, [`load`] makes an
//! engine of one if there is memory for it. [`model_registry`] starts and ends an [`instance`] for each,
//! and keeps the [`status`] that the heartbeat shows. Open [`model_registry`] first.

pub mod file;
pub mod instance;
pub mod load;
pub mod model_registry;
pub mod options;
pub mod status;
