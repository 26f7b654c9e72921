//! NATS without I/O: bytes to operations and back, the handshake, JetStream's replies,
//! the pool in which idle connections wait, and which server to try.
//!
//! [`codec`] is the protocol, [`handshake`] what a connection begins with, [`jetstream`] what
//! the server answers to a publish and to a direct get, [`round`] several requests at once. The
//! sockets are in `crate::io`.

pub mod codec;
pub mod handshake;
pub mod jetstream;
pub mod pool;
pub mod round;
pub mod servers;
