//! Logs what a component prints on its standard output and error, line by line.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Longest line in bytes. Longer ones are split, so that a component can't fill the memory.
const MAX_LINE: usize = 16 * 1024;

/// One output stream of an instance.
///
/// A guest may open the stream again for each piece of a line, so all clones share the unfinished line.
#[derive(Clone)]
pub struct GuestLog(Arc<Shared>);

struct Shared {
    component: Arc<str>,
    line: Mutex<Vec<u8>>,
}

impl GuestLog {
    /// Makes a stream whose lines are logged under the component's name.
    pub fn new(component: Arc<str>) -> Self {
        Self(Arc::new(Shared { component, line: Mutex::default() }))
    }

    fn append(&self, bytes: &[u8]) {
        let mut line = self.0.line.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    line.extend_from_slice(end);
                    self.0.log(&line);
                    line.clear();
                }
                None => line.extend_from_slice(piece),
            }
            if line.len() > MAX_LINE {
                self.0.log(&line);
                line.clear();
            }
        }
    }
}

impl Shared {
    fn log(&self, line: &[u8]) {
        tracing::info!(target: "guest", "{}: {}", self.component, String::from_utf8_lossy(line));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let line = std::mem::take(self.line.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !line.is_empty() {
            self.log(&line);
        }
    }
}

impl IsTerminal for GuestLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestLog {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestLog {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.append(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl OutputStream for GuestLog {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.append(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE)
    }
}

#[async_trait]
impl Pollable for GuestLog {
    async fn ready(&mut self) {}
}
