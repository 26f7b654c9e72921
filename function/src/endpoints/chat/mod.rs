//! See [`stream`].

pub mod stream;
