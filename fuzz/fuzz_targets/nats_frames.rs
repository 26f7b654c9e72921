//! The NATS protocol as the function reads it: the cuts of the network make no difference, and
//! nothing that a server sends makes it panic.

#![no_main]

use emberline_function::nats::address::Scheme;
use emberline_function::nats::codec::{CodecError, Decoder};
use emberline_function::nats::{handshake, jetstream};
use emberline_protocol::jetstream_domain::JetStreamDomain;
use libfuzzer_sys::fuzz_target;
use watermelon_proto::proto::ServerOp;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, stream) = input;
    let at_once = decode([stream]);
    let cut = decode(pieces(&cuts, stream));
    assert_eq!(format!("{at_once:?}"), format!("{cut:?}"));
    let mut batch = jetstream::Batch::default();
    for op in at_once.0 {
        match op {
            ServerOp::Info { info } => {
                drop(handshake::check(&info, &JetStreamDomain::default(), Scheme::Nats))
            }
            ServerOp::Message { message } => {
                let _ = jetstream::read_ack(&message);
                let _ = batch.push(message);
            }
            _ => {}
        }
    }
});

/// What could be decoded, and how it ended.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<ServerOp>, Result<(), CodecError>) {
    let (mut decoder, mut ops) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.decode() {
                Ok(Some(op)) => ops.push(op),
                Ok(None) => break,
                Err(error) => return (ops, Err(error)),
            }
        }
    }
    (ops, Ok(()))
}

/// The stream in pieces of these lengths, the rest as the last one.
fn pieces<'a>(lengths: &[u8], mut stream: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = stream.split_at(usize::from(*length).min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces.push(stream);
    pieces
}
