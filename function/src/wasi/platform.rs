//! The host as Spin offers it, by WASI 0.3.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::{FutureExt, LocalBoxFuture};
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};
use spin_sdk::wasip3::random::random;
use spin_sdk::wasip3::sockets::ip_name_lookup::resolve_addresses;

use super::exchange::Exchange;
use super::socket::{Socket, from_wasi};
use crate::nats::address::ServerUrl;
use crate::platform::{ByteStream, Platform};

pub(super) struct SpinPlatform;

impl Platform for SpinPlatform {
    #[cfg(feature = "spin")]
    fn variable(&self, name: &'static str) -> LocalBoxFuture<'static, Result<String, String>> {
        spin_sdk::variables::get(name).map(|value| value.map_err(|error| error.to_string())).boxed_local()
    }

    #[cfg(not(feature = "spin"))]
    fn variable(&self, name: &'static str) -> LocalBoxFuture<'static, Result<String, String>> {
        std::future::ready(crate::config::from_environment(name)).boxed_local()
    }

    fn connect(&self, address: SocketAddr) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>> {
        Box::pin(async move {
            let socket = Socket::connect(address).await.map_err(|code| format!("{code:?}"))?;
            Ok(Box::new(socket) as Box<dyn ByteStream>)
        })
    }

    fn look_up(&self, name: String) -> LocalBoxFuture<'static, Result<Vec<IpAddr>, String>> {
        Box::pin(async move {
            let addresses = resolve_addresses(name.clone()).await.map_err(|code| {
                format!(
                    "this host does not look up '{name}' ({code:?}); give an IP address, and with tls the server's \
                     name in nats_tls_server_name"
                )
            })?;
            Ok(addresses.into_iter().map(from_wasi).collect())
        })
    }

    fn exchange(&self, edge: ServerUrl) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>> {
        Box::pin(async move {
            let exchange = Exchange::begin(&edge).await?;
            Ok(Box::new(exchange) as Box<dyn ByteStream>)
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
