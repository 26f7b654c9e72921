//! Who sends a request ([`keys`]), and which models they may use ([`caller`]).

pub mod caller;
pub mod keys;
