//! The host as Spin offers it, by WASI 0.3.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::{FutureExt, LocalBoxFuture};
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};
use spin_sdk::wasip3::random::random;

use super::socket::Socket;
use crate::platform::{ByteStream, Platform};

pub(super) struct SpinPlatform;

impl Platform for SpinPlatform {
    fn variable(&self, name: &'static str) -> LocalBoxFuture<'static, Result<String, String>> {
        spin_sdk::variables::get(name).map(|value| value.map_err(|error| error.to_string())).boxed_local()
    }

    fn connect(&self, address: SocketAddr) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>> {
        Box::pin(async move {
            let socket = Socket::connect(address).await.map_err(|code| format!("{code:?}"))?;
            Ok(Box::new(socket) as Box<dyn ByteStream>)
        })
    }

    fn unix_ms(&self) -> u64 {
        let now = system_clock::now();
        let seconds = u64::try_from(now.seconds).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::from(now.nanoseconds).div_euclid(1_000_000))
    }

    fn monotonic_ns(&self) -> u64 {
        monotonic_clock::now()
    }

    fn sleep(&self, wait: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(spin_sdk::time::sleep(wait))
    }

    fn random_u64(&self) -> u64 {
        random::get_random_u64()
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        spin_sdk::wasip3::spawn(task);
    }
}
