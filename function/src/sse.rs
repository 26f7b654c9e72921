//! An answer as server-sent events. Each function makes one frame, to be written at once:
//! some clients split on reads.

use bytes::Bytes;
use emberline_shared::chat::{Delta, Envelope};
use emberline_shared::error::ApiError;
use emberline_shared::event::{FinishReason, Usage};

/// Ends a stream that is complete.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");
/// Says, in a comment that clients skip, that the stream lives.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// Makes the frames of one stream.
#[derive(Debug, Clone)]
pub struct Frames {
    /// What all chunks have in common.
    pub envelope: Envelope,
    /// The client wants usage in a last chunk.
    pub include_usage: bool,
}

impl Frames {
    /// The first chunk of a choice.
    pub fn role(&self, choice: u32) -> Bytes {
        self.chunk(choice, &Delta::Role, None)
    }

    /// More text of a choice.
    pub fn text(&self, choice: u32, text: &str) -> Bytes {
        self.chunk(choice, &Delta::Content(text), None)
    }

    /// The last chunk of a choice.
    pub fn finish(&self, choice: u32, reason: FinishReason) -> Bytes {
        self.chunk(choice, &Delta::Empty, Some(reason))
    }

    /// The usage chunk, if the client wants it.
    pub fn usage(&self, usage: &Usage) -> Option<Bytes> {
        self.include_usage.then(|| data(&self.envelope.usage_chunk(usage)))
    }

    fn chunk(&self, choice: u32, delta: &Delta<'_>, finish: Option<FinishReason>) -> Bytes {
        data(&self.envelope.chunk(choice, delta, finish, self.include_usage))
    }
}

/// A failure after the stream has begun; no [`DONE`] follows it.
pub fn error(error: &ApiError) -> Bytes {
    data(&error.body().to_string())
}

/// `json` has no line ends: serde_json escapes those within strings.
fn data(json: &str) -> Bytes {
    format!("data: {json}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_shared::error::ErrorCode;
    use emberline_shared::subject::JobId;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn frames(include_usage: bool) -> Frames {
        Frames {
            envelope: Envelope {
                job: JobId::from_random(1),
                created: 2,
                model: "m".into(),
                fingerprint: "fp".into(),
                metadata: None,
            },
            include_usage,
        }
    }

    fn payload(frame: &Bytes) -> Value {
        let text = str::from_utf8(frame).unwrap();
        let json = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!json.contains('\n'));
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_stream_has_the_documented_shape() {
        let frames = frames(false);
        let delta = |frame| payload(&frame)["choices"][0].clone();
        assert_eq!(delta(frames.role(0))["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(delta(frames.text(0, "x\ny"))["delta"], json!({"content": "x\ny"}));
        let last = delta(frames.finish(0, FinishReason::Length));
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
        assert_eq!(frames.usage(&Usage::default()), None);
        assert!(payload(&frames.role(0)).get("usage").is_none());
    }

    #[test]
    fn usage_comes_in_a_chunk_of_its_own() {
        let frames = frames(true);
        assert_eq!(payload(&frames.text(0, "x"))["usage"], Value::Null);
        let usage = payload(
            &frames.usage(&Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 }).unwrap(),
        );
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(3)));
    }

    #[test]
    fn a_late_failure_is_an_error_line() {
        let frame = error(&ApiError::new(ErrorCode::Timeout, "late"));
        assert_eq!(payload(&frame)["error"]["code"], "timeout");
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_frame(text in ".*|[\\n\\r\u{2028}]{0,5}") {
            prop_assert_eq!(&payload(&frames(false).text(0, &text))["choices"][0]["delta"]["content"], &json!(text));
        }
    }
}
