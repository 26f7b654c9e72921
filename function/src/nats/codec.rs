//! The NATS client protocol: cuts the byte stream into frames of bounded size and decodes them.
//!
//! `watermelon-proto` decodes each frame. The cutting is done here, because its bounds must be
//! ours: an instance of the function shares a small memory between many requests.

use bytes::{Buf, Bytes, BytesMut};
use emberline_protocol::size::{MAX_MESSAGE, max_frame};
use watermelon_proto::proto::error::FrameDecoderError;
use watermelon_proto::proto::{ClientOp, ServerOp, StreamEncoder, decode_frame};

/// Longest protocol line. `INFO` of a large cluster is the longest that occurs.
const MAX_LINE: usize = 64 * 1024;
const CRLF: &[u8] = b"\r\n";

/// Bytes that are not NATS, or more than the function is ready to hold.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum CodecError {
    #[error("a protocol line is longer than {MAX_LINE} bytes")]
    LineTooLong,
    #[error("a message of {0} bytes is larger than {1}")]
    MessageTooLarge(usize, usize),
    #[error("a message's size is not a number")]
    InvalidSize,
    #[error("a message does not end where its size says")]
    Misaligned,
    #[error("a frame can't be decoded: {0}")]
    Frame(#[from] FrameDecoderError),
}

/// Turns received bytes into operations.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// Largest message, headers included.
    max_message: usize,
    /// Bytes at the buffer's start that are known to hold no line end.
    scanned: usize,
    /// Length of the frame at the buffer's start, once known.
    frame: Option<usize>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_MESSAGE)
    }
}

impl Decoder {
    /// A decoder of what a server with this `max_payload` sends.
    pub fn new(max_payload: usize) -> Self {
        Self { buffer: BytesMut::new(), max_message: max_frame(max_payload), scanned: 0, frame: None }
    }

    /// Changes the server's `max_payload`.
    pub fn set_max_payload(&mut self, max_payload: usize) {
        self.max_message = max_frame(max_payload);
    }

    /// How many received bytes wait for the rest of their message.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Adds what has been received.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether nothing received waits to be decoded.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next operation, if it has arrived whole.
    pub fn decode(&mut self) -> Result<Option<ServerOp>, CodecError> {
        let length = match self.frame {
            Some(length) => length,
            None => match self.measure()? {
                Some(length) => *self.frame.insert(length),
                None => return Ok(None),
            },
        };
        if self.buffer.len() < length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(length).freeze();
        self.frame = None;
        self.scanned = 0;
        if !frame.ends_with(CRLF) {
            return Err(CodecError::Misaligned);
        }
        Ok(Some(decode_frame(&mut frame)?))
    }

    /// Drops messages that came too late for the request that they were for, and says whether nothing else is left:
    /// an error, a `PING` and half a message matter to the next request.
    pub fn discard_stale(&mut self) -> bool {
        loop {
            match self.decode() {
                Ok(Some(ServerOp::Message { .. } | ServerOp::Pong | ServerOp::Info { .. })) => {}
                Ok(None) => return self.is_empty(),
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }

    /// Length of the frame at the buffer's start, when its line is complete.
    fn measure(&mut self) -> Result<Option<usize>, CodecError> {
        let unseen = self.buffer.get(self.scanned..).unwrap_or_default();
        let Some(at) = unseen.windows(CRLF.len()).position(|window| window == CRLF) else {
            // A line end may straddle this read and the next.
            self.scanned = self.buffer.len().saturating_sub(1);
            return if self.buffer.len() > MAX_LINE { Err(CodecError::LineTooLong) } else { Ok(None) };
        };
        let line_length = self.scanned.saturating_add(at);
        if line_length > MAX_LINE {
            return Err(CodecError::LineTooLong);
        }
        let line = self.buffer.get(..line_length).unwrap_or_default();
        let head = line_length.saturating_add(CRLF.len());
        if !(line.starts_with(b"MSG ") || line.starts_with(b"HMSG ")) {
            return Ok(Some(head));
        }
        let size = line.rsplit(|byte| *byte == b' ').next().and_then(|size| str::from_utf8(size).ok());
        let size = size.and_then(|size| size.parse().ok()).ok_or(CodecError::InvalidSize)?;
        if size > self.max_message {
            return Err(CodecError::MessageTooLarge(size, self.max_message));
        }
        Ok(Some(head.saturating_add(size).saturating_add(CRLF.len())))
    }
}

/// The bytes of one operation.
pub fn encode(op: &ClientOp) -> Bytes {
    let mut encoder = StreamEncoder::new();
    encoder.enqueue_write_op(op);
    encoder.copy_to_bytes(encoder.remaining())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use watermelon_proto::{MessageBase, StatusCode, headers::HeaderMap};

    fn decode_all(chunks: &[&[u8]]) -> Result<Vec<ServerOp>, CodecError> {
        let mut decoder = Decoder::default();
        let mut ops = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk);
            while let Some(op) = decoder.decode()? {
                ops.push(op);
            }
        }
        Ok(ops)
    }

    /// As nats-server 2.15 sends them.
    const STREAM: &[u8] = b"PING\r\nMSG a.b 1 2\r\nhi\r\n\
        HMSG _INBOX.x.1 2 34 34\r\nNATS/1.0 404 Message Not Found\r\n\r\n\r\n\
        MSG a.b 1 r 0\r\n\r\n+OK\r\nPONG\r\n-ERR 'Stale Connection'\r\n\
        HMSG s 3 20 23\r\nNATS/1.0\r\nA: bcd\r\n\r\nx\r\n\r\n";

    #[test]
    fn a_size_that_lies_is_refused() {
        assert!(matches!(decode_all(&[b"MSG a 1 1\r\nabc\r\n"]), Err(CodecError::Misaligned)));
        for stream in [&b"MSG a 1 x\r\n"[..], b"MSG a 1 -1\r\n", b"MSG \r\n"] {
            assert!(matches!(decode_all(&[stream]), Err(CodecError::InvalidSize)), "{stream:?}");
        }
    }

    #[test]
    fn sizes_have_bounds() {
        let too_large = format!("MSG a 1 {}\r\n", max_frame(usize::MAX) + 1);
        assert!(matches!(decode_all(&[too_large.as_bytes()]), Err(CodecError::MessageTooLarge(..))));
        let mut decoder = Decoder::new(1000);
        decoder.feed(format!("MSG a 1 {}\r\n", max_frame(1000)).as_bytes());
        assert!(matches!(decoder.decode(), Ok(None)));
        let mut decoder = Decoder::new(1000);
        decoder.feed(format!("MSG a 1 {}\r\n", max_frame(1000) + 1).as_bytes());
        assert!(matches!(decoder.decode(), Err(CodecError::MessageTooLarge(..))));
        let endless = vec![b'x'; MAX_LINE + 1];
        assert!(matches!(decode_all(&[&endless]), Err(CodecError::LineTooLong)));
        let line = [&endless[..], b"\r\n"].concat();
        assert!(matches!(decode_all(&[&line]), Err(CodecError::LineTooLong)));
    }

    #[test]
    fn only_what_is_stale_is_discarded() {
        let late = "MSG a.b 1 2\r\nhi\r\nPONG\r\nMSG a.b 1 0\r\n\r\n";
        for (rest, clean) in [
            ("", true),
            ("PING\r\n", false),
            ("-ERR 'Stale Connection'\r\n", false),
            ("+OK\r\n", false),
            ("nonsense\r\n", false),
            ("MSG a.b 1 1\r\nabc\r\n", false),
            ("MSG a.b 1 2\r\nh", false),
            ("PIN", false),
        ] {
            let mut decoder = Decoder::default();
            decoder.feed(late.as_bytes());
            decoder.feed(rest.as_bytes());
            assert_eq!(decoder.discard_stale(), clean, "{rest:?}");
        }
    }

    #[test]
    fn statuses_and_headers_are_read() {
        let ops = decode_all(&[b"HMSG i 2 43 43\r\nNATS/1.0 503\r\nNats-Subject: emberline.j\r\n\r\n\r\n"])
            .unwrap();
        let [ServerOp::Message { message }] = &ops[..] else { panic!("{ops:?}") };
        assert_eq!(message.status_code, Some(StatusCode::NO_RESPONDERS));
    }

    #[test]
    fn a_publish_is_written_as_the_protocol_says() {
        let message = MessageBase {
            subject: "a.b".parse().unwrap(),
            reply_subject: Some("r".parse().unwrap()),
            headers: HeaderMap::new(),
            payload: Bytes::from_static(b"hi"),
        };
        assert_eq!(&encode(&ClientOp::Publish { message })[..], b"PUB a.b r 2\r\nhi\r\n");
    }

    proptest! {
        #[test]
        fn the_cuts_of_the_network_make_no_difference(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..30)) {
            // The `HMSG` sizes in STREAM are checked here too: a wrong one is an error.
            let whole = STREAM;
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts {
                chunks.push(&whole[start..cut]);
                start = cut;
            }
            chunks.push(&whole[start..]);
            let ops = decode_all(&chunks);
            let at_once = decode_all(&[whole]);
            prop_assert_eq!(format!("{:?}", ops), format!("{:?}", at_once));
            prop_assert!(ops.is_ok_and(|ops| ops.len() == 8));
        }

        #[test]
        fn nothing_received_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in "(MSG |HMSG |INFO |-ERR )?(a 1 2 3)?(\r\n)?") {
            let _ = decode_all(&[head.as_bytes(), &bytes, b"\r\n"]);
        }
    }
}
