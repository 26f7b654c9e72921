//! The host of the function as tokio offers it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use emberline_function::nats::address::ServerUrl;
use emberline_function::platform::{ByteStream, Closed, Host, Platform};
use futures::future::{FutureExt, LocalBoxFuture};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Unix milliseconds on every clock of the tests: no window of a limit ends while one runs.
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;

pub(crate) struct TokioPlatform {
    variables: BTreeMap<&'static str, String>,
    started: Instant,
}

impl TokioPlatform {
    pub(crate) fn host(variables: BTreeMap<&'static str, String>) -> Host {
        Rc::new(Self { variables, started: Instant::now() })
    }
}

/// Runs a test, with the tasks that it spawns, on one thread.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

impl Platform for TokioPlatform {
    fn variable(&self, name: &'static str) -> LocalBoxFuture<'static, Result<String, String>> {
        let value = self.variables.get(name).cloned().ok_or_else(|| format!("no variable {name}"));
        std::future::ready(value).boxed_local()
    }

    fn connect(&self, address: SocketAddr) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            Ok(Box::new(TokioStream(stream)) as Box<dyn ByteStream>)
        })
    }

    fn look_up(&self, name: String) -> LocalBoxFuture<'static, Result<Vec<IpAddr>, String>> {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name, 0)).await.map_err(|error| error.to_string())?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }

    /// Edges are tested through the component, since the host's HTTP is what matters there.
    fn exchange(&self, _: ServerUrl) -> LocalBoxFuture<'static, Result<Box<dyn ByteStream>, String>> {
        Box::pin(std::future::ready(Err("these tests have no edge".to_owned())))
    }

    fn unix_ms(&self) -> u64 {
        NOW_MS
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap()
    }

    fn sleep(&self, wait: Duration) -> LocalBoxFuture<'static, ()> {
        tokio::time::sleep(wait).boxed_local()
    }

    fn random_u64(&self) -> u64 {
        rand::random()
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        tokio::task::spawn_local(task);
    }
}

struct TokioStream(TcpStream);

impl ByteStream for TokioStream {
    fn poll_flush(&mut self, cx: &mut Context<'_>, unsent: &mut Vec<u8>) -> Poll<Result<(), Closed>> {
        while !unsent.is_empty() {
            let written = ready!(Pin::new(&mut self.0).poll_write(cx, unsent)).map_err(|_| Closed)?;
            unsent.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<Result<(), Closed>> {
        let mut bytes = [0; 4096];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer)).map_err(|_| Closed)?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err(Closed));
        }
        sink(buffer.filled());
        Poll::Ready(Ok(()))
    }

    fn park(&mut self, _sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed> {
        Ok(())
    }
}
