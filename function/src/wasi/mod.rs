//! Spin: the only code that exists for WebAssembly alone. [`SpinPlatform`] is the host, [`http`] the HTTP entry.

mod byte_stream;
mod exchange;
mod http;
mod platform;
mod socket;
