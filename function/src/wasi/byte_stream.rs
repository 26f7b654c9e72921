//! Component-model byte streams, wrapped so that polling can stop and go on without loss.
//!
//! The bindings' read and write futures borrow their stream, and dropping one loses what it
//! had transferred. Here the future owns the stream and stays until it is done.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use spin_sdk::wasip3::wit_bindgen::{StreamReader, StreamResult, StreamWriter};

use crate::platform::{BodySink, Closed};

const READ_SIZE: usize = 16 * 1024;

type Reading = Pin<Box<dyn Future<Output = (StreamReader<u8>, StreamResult, Vec<u8>)>>>;
type Writing = Pin<Box<dyn Future<Output = (StreamWriter<u8>, bool)>>>;

enum ReadState {
    Idle(StreamReader<u8>, Vec<u8>),
    Busy(Reading),
    Closed,
}

/// The reading end of a stream.
pub(super) struct ByteReader {
    state: ReadState,
    cancel: Rc<Cell<bool>>,
}

impl ByteReader {
    pub(super) fn new(stream: StreamReader<u8>) -> Self {
        let state = ReadState::Idle(stream, Vec::with_capacity(READ_SIZE));
        Self { state, cancel: Rc::new(Cell::new(false)) }
    }

    /// Passes the next bytes to `sink`.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<(), Closed>> {
        let mut reading = match mem::replace(&mut self.state, ReadState::Closed) {
            ReadState::Closed => return Poll::Ready(Err(Closed)),
            ReadState::Idle(stream, buffer) => start_read(stream, buffer, Rc::clone(&self.cancel)),
            ReadState::Busy(reading) => reading,
        };
        let Poll::Ready((stream, result, mut buffer)) = reading.as_mut().poll(cx) else {
            self.state = ReadState::Busy(reading);
            return Poll::Pending;
        };
        sink(&buffer);
        if result == StreamResult::Dropped && buffer.is_empty() {
            return Poll::Ready(Err(Closed));
        }
        buffer.clear();
        self.state = ReadState::Idle(stream, buffer);
        Poll::Ready(Ok(()))
    }

    /// Takes back a read that has begun: a stream with one can't move to another task.
    /// Bytes that had arrived go to `sink`.
    pub(super) fn park(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed> {
        if matches!(self.state, ReadState::Idle(..)) {
            return Ok(());
        }
        self.cancel.set(true);
        let cancelled = self.poll_read(&mut Context::from_waker(Waker::noop()), sink);
        self.cancel.set(false);
        match cancelled {
            Poll::Ready(result) => result,
            Poll::Pending => Err(Closed),
        }
    }
}

fn start_read(mut stream: StreamReader<u8>, buffer: Vec<u8>, cancel: Rc<Cell<bool>>) -> Reading {
    Box::pin(async move {
        let (result, buffer) = {
            let mut read = pin!(stream.read(buffer));
            poll_fn(
                |cx| if cancel.get() { Poll::Ready(read.as_mut().cancel()) } else { read.as_mut().poll(cx) },
            )
            .await
        };
        (stream, result, buffer)
    })
}

enum WriteState {
    Idle(StreamWriter<u8>),
    Busy(Writing),
    Closed,
}

/// The writing end of a stream. Dropping it ends the stream.
pub(super) struct ByteWriter(WriteState);

impl ByteWriter {
    pub(super) fn new(stream: StreamWriter<u8>) -> Self {
        Self(WriteState::Idle(stream))
    }

    /// Whether nothing is being written.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.0, WriteState::Idle(_))
    }
}

impl BodySink for ByteWriter {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        next: &mut dyn FnMut() -> Option<Vec<u8>>,
    ) -> Poll<Result<(), Closed>> {
        loop {
            let mut writing = match mem::replace(&mut self.0, WriteState::Closed) {
                WriteState::Closed => return Poll::Ready(Err(Closed)),
                WriteState::Busy(writing) => writing,
                WriteState::Idle(stream) => match next() {
                    Some(bytes) => start_write(stream, bytes),
                    None => {
                        self.0 = WriteState::Idle(stream);
                        return Poll::Ready(Ok(()));
                    }
                },
            };
            match writing.as_mut().poll(cx) {
                Poll::Ready((stream, true)) => self.0 = WriteState::Idle(stream),
                Poll::Ready((_, false)) => return Poll::Ready(Err(Closed)),
                Poll::Pending => {
                    self.0 = WriteState::Busy(writing);
                    return Poll::Pending;
                }
            }
        }
    }
}

fn start_write(mut stream: StreamWriter<u8>, bytes: Vec<u8>) -> Writing {
    Box::pin(async move {
        let unwritten = stream.write_all(bytes).await;
        (stream, unwritten.is_empty())
    })
}
