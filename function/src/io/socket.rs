//! A TCP connection over `wasi:sockets` 0.3.

use std::mem;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use spin_sdk::wasip3::sockets::types::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, TcpSocket,
};
use spin_sdk::wasip3::wit_bindgen::FutureReader;
use spin_sdk::wasip3::wit_stream;

use super::stream::{ByteReader, ByteWriter, Closed};

type Outcome = FutureReader<Result<(), ErrorCode>>;

/// A connected socket with its unsent bytes.
pub(super) struct Socket {
    reader: ByteReader,
    writer: ByteWriter,
    unsent: Vec<u8>,
    // Nobody waits for these, but dropping the first would say that nobody may send any more.
    _outcomes: (Outcome, Outcome),
    _socket: TcpSocket,
}

impl Socket {
    /// Connects, without a limit of time. Does not bind: Spin refuses that up to wasmtime 47.
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, ErrorCode> {
        let (family, address) = to_wasi(address);
        let socket = TcpSocket::create(family)?;
        socket.connect(address).await?;
        let (writer, outgoing) = wit_stream::new();
        let sent = socket.send(outgoing);
        let (incoming, received) = socket.receive();
        Ok(Self {
            reader: ByteReader::new(incoming),
            writer: ByteWriter::new(writer),
            unsent: Vec::new(),
            _outcomes: (sent, received),
            _socket: socket,
        })
    }

    /// Adds to what is sent by the next [`Socket::poll_flush`].
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
    }

    /// Sends what has been queued.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let unsent = &mut self.unsent;
        self.writer.poll_write(cx, || (!unsent.is_empty()).then(|| mem::take(unsent)))
    }

    /// Passes the next received bytes to `sink`.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        sink: impl FnOnce(&[u8]),
    ) -> Poll<Result<(), Closed>> {
        self.reader.poll_read(cx, sink)
    }

    /// Makes the socket ready to wait for another task; queued bytes stay queued.
    pub(super) fn park(&mut self, sink: impl FnOnce(&[u8])) -> Result<(), Closed> {
        if self.writer.is_idle() { self.reader.park(sink) } else { Err(Closed) }
    }
}

fn to_wasi(address: SocketAddr) -> (IpAddressFamily, IpSocketAddress) {
    match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            let v4 = Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) };
            (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(v4))
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            let v6 = Ipv6SocketAddress {
                port: v6.port(),
                flow_info: 0,
                address: (a, b, c, d, e, f, g, h),
                scope_id: 0,
            };
            (IpAddressFamily::Ipv6, IpSocketAddress::Ipv6(v6))
        }
    }
}
