//! A TCP connection over `wasi:sockets` 0.3.

use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use spin_sdk::wasip3::sockets::types::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, TcpSocket,
};
use spin_sdk::wasip3::wit_bindgen::FutureReader;
use spin_sdk::wasip3::wit_stream;

use super::byte_stream::{ByteReader, ByteWriter};
use crate::platform::{BodySink, ByteStream, Closed};

type Outcome = FutureReader<Result<(), ErrorCode>>;

/// A connected socket.
pub(super) struct Socket {
    reader: ByteReader,
    writer: ByteWriter,
    // Nobody waits for these, but dropping the first would end the sending direction.
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
            _outcomes: (sent, received),
            _socket: socket,
        })
    }
}

impl ByteStream for Socket {
    fn poll_flush(&mut self, cx: &mut Context<'_>, unsent: &mut Vec<u8>) -> Poll<Result<(), Closed>> {
        self.writer.poll_write(cx, &mut || (!unsent.is_empty()).then(|| mem::take(unsent)))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<Result<(), Closed>> {
        self.reader.poll_read(cx, sink)
    }

    fn park(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed> {
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

pub(super) fn from_wasi(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => IpAddr::from([a, b, c, d]),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => IpAddr::from([a, b, c, d, e, f, g, h]),
    }
}
