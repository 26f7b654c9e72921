//! A client of HTTP/1.1 that costs little, since it shares the cores with what it measures.
//!
//! One connection sends prepared requests one after another and hands the bodies on as they come. It reads
//! only what a chat server sends: a length or chunks, and no trailers.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most headers of a response.
const MAX_HEADERS: usize = 64;
/// Room for what one read brings.
const READ_SIZE: usize = 32 * 1024;

/// Why a request has no complete response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection was closed within a response")]
    Closed,
    #[error("not a response of HTTP/1.1: {0}")]
    Invalid(String),
}

/// A connection that is opened again when the server has closed it.
#[derive(Debug)]
pub(crate) struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    /// What has been received and not been read.
    received: Vec<u8>,
}

/// How the length of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClosed,
}

/// The head of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    status: u16,
    framing: Framing,
    is_last: bool,
}

/// Finds the data in a chunked body.
#[derive(Debug, Default)]
struct ChunkReader {
    /// Bytes of the current chunk that are still to come, the line break at its end included.
    left: usize,
    ended: bool,
}

impl Connection {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, received: Vec::new() }
    }

    /// Opens the connection, if it is not open.
    pub(crate) async fn open(&mut self) -> Result<(), HttpError> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.received.clear();
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a request and calls `take` with each part of the response's body; the response's status.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(&[u8]) + Send,
    ) -> Result<u16, HttpError> {
        self.open().await?;
        let Some(stream) = &mut self.stream else { return Err(HttpError::Closed) };
        let outcome = exchange(stream, &mut self.received, request, &mut take).await;
        if !outcome.as_ref().is_ok_and(|head| !head.is_last) {
            self.stream = None;
        }
        Ok(outcome?.status)
    }
}

async fn exchange(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    request: &[u8],
    take: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Head, HttpError> {
    stream.write_all(request).await?;
    let head = loop {
        if let Some((head, length)) = Head::parse(received)? {
            received.drain(..length);
            break head;
        }
        read(stream, received).await?;
    };
    match head.framing {
        Framing::Length(mut left) => loop {
            let (part, rest) = received.split_at(left.min(received.len()));
            take(part);
            left -= part.len();
            let kept = rest.len();
            received.drain(..received.len() - kept);
            if left == 0 {
                return Ok(head);
            }
            read(stream, received).await?;
        },
        Framing::Chunked => {
            let mut chunks = ChunkReader::default();
            loop {
                let used = chunks.read(received, take)?;
                received.drain(..used);
                if chunks.is_complete() {
                    return Ok(head);
                }
                read(stream, received).await?;
            }
        }
        Framing::UntilClosed => loop {
            take(received.as_slice());
            received.clear();
            match read(stream, received).await {
                Err(HttpError::Closed) => return Ok(head),
                read => read?,
            }
        },
    }
}

async fn read(stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<(), HttpError> {
    received.reserve(READ_SIZE);
    if stream.read_buf(received).await? == 0 { Err(HttpError::Closed) } else { Ok(()) }
}

impl Head {
    /// The head at the beginning of `received` and its length, if it is complete.
    fn parse(received: &[u8]) -> Result<Option<(Self, usize)>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(received).map_err(|error| HttpError::Invalid(error.to_string()))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let value = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok().map(str::trim)
        };
        let is = |name, expected| value(name).is_some_and(|value: &str| value.eq_ignore_ascii_case(expected));
        let framing = if is("transfer-encoding", "chunked") {
            Framing::Chunked
        } else if let Some(length) = value("content-length") {
            Framing::Length(
                length.parse().map_err(|_| HttpError::Invalid(format!("content-length: {length}")))?,
            )
        } else {
            Framing::UntilClosed
        };
        let is_last = framing == Framing::UntilClosed || is("connection", "close");
        let status = response.code.unwrap_or_default();
        Ok(Some((Self { status, framing, is_last }, length)))
    }
}

impl ChunkReader {
    /// Calls `take` with the data in `received`; how many bytes have been read.
    fn read(&mut self, received: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<usize, HttpError> {
        const LINE_BREAK: usize = 2;
        let mut rest = received;
        loop {
            if self.left > 0 {
                let (part, behind) = rest.split_at(self.left.min(rest.len()));
                let data = part.len().min(self.left.saturating_sub(LINE_BREAK));
                if let Some(data) = part.get(..data).filter(|data| !data.is_empty()) {
                    take(data);
                }
                self.left -= part.len();
                rest = behind;
            }
            if self.left > 0 || self.ended {
                return Ok(received.len() - rest.len());
            }
            match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete((length, size))) => {
                    self.left = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(LINE_BREAK);
                    self.ended = size == 0;
                    rest = rest.get(length..).unwrap_or_default();
                }
                Ok(httparse::Status::Partial) => return Ok(received.len() - rest.len()),
                Err(_) => return Err(HttpError::Invalid("a chunk without a size".to_owned())),
            }
        }
    }

    /// Whether the last chunk has been read to its end.
    fn is_complete(&self) -> bool {
        self.ended && self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_head_says_how_long_its_body_is() {
        let parse = |text: &str| Head::parse(text.as_bytes()).unwrap().map(|(head, _)| head);
        assert_eq!(parse("HTTP/1.1 200 OK\r\ncontent-"), None);
        let head = parse("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n").unwrap();
        assert_eq!(head, Head { status: 200, framing: Framing::Length(12), is_last: false });
        let head =
            parse("HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(head, Head { status: 503, framing: Framing::Chunked, is_last: true });
        assert!(parse("HTTP/1.1 200 OK\r\n\r\n").unwrap().is_last);
        assert!(Head::parse(b"NATS/1.0\r\n\r\n").is_err());
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n").is_err());
    }

    /// Reads a chunked body that arrives in two parts; its data.
    fn chunks(body: &[u8], split: usize) -> (Vec<u8>, bool) {
        let (mut reader, mut data, mut received) = (ChunkReader::default(), Vec::new(), Vec::new());
        for part in [&body[..split], &body[split..]] {
            received.extend_from_slice(part);
            let used = reader.read(&received, &mut |part| data.extend_from_slice(part)).unwrap();
            received.drain(..used);
        }
        (data, reader.is_complete())
    }

    proptest! {
        #[test]
        fn chunks_are_joined_wherever_they_are_split(parts in proptest::collection::vec("[a-z\r\n]{1,40}", 0..6), at in 0.0..=1.0_f64) {
            let mut body: String = parts.iter().map(|part| format!("{:x}\r\n{part}\r\n", part.len())).collect();
            body.push_str("0\r\n\r\n");
            let split = (at * body.len() as f64) as usize;
            prop_assert_eq!(chunks(body.as_bytes(), split), (parts.concat().into_bytes(), true));
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_not_complete() {
        assert_eq!(chunks(b"3\r\nabc\r\n", 2), (b"abc".to_vec(), false));
        assert_eq!(chunks(b"0\r\n\r", 2), (Vec::new(), false));
        assert!(ChunkReader::default().read(b"x\r\n", &mut |_| ()).is_err());
    }

    #[tokio::test]
    async fn a_connection_is_used_again_and_opened_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut ports = Vec::new();
            for answers in [
                vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", "HTTP/1.1 404 No\r\n\r\ncd"],
                vec!["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nef\r\n0\r\n\r\n"],
            ] {
                let (mut stream, peer) = listener.accept().await.unwrap();
                ports.push(peer.port());
                for answer in answers {
                    let mut request = [0; 3];
                    stream.read_exact(&mut request).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            ports
        });
        let mut connection = Connection::new(address);
        for expected in [(200, "ab"), (404, "cd"), (200, "ef")] {
            let mut body = Vec::new();
            let status = connection.exchange(b"GET", |part| body.extend_from_slice(part)).await.unwrap();
            assert_eq!((status, std::str::from_utf8(&body).unwrap()), expected);
        }
        let ports = server.await.unwrap();
        assert_ne!(ports[0], ports[1]);
    }
}
