//! An answer as server-sent events. Each function makes one frame, to be written at once:
//! some clients split on reads.

use bytes::Bytes;
use emberline_shared::chat::{Delta, Envelope};
use emberline_shared::error::ApiError;
use emberline_shared::event::{FinishReason, TokenLogprobs, Usage};

use crate::relay::Limits;

/// Bytes that a frame takes for one token, and for what does not depend on tokens.
const FRAME_BYTES: usize = 4096;
/// Bytes that one more log-probability takes, with the token twice: as text and in numbers.
const LOGPROB_BYTES: usize = 256;
/// Most bytes that wait for one client, whatever it asked for: its instance serves others, too.
const MAX_BACKLOG: usize = 64 * 1024 * 1024;

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
    pub fn text(&self, choice: u32, text: &str, logprobs: Option<&[TokenLogprobs]>) -> Bytes {
        self.chunk(choice, &Delta::Content { text, logprobs }, None)
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

/// How many bytes of frames a client may leave unread: all of its answer, within reason.
pub fn max_backlog(limits: Limits) -> usize {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let tokens = count(limits.choices).saturating_mul(count(limits.tokens));
    let logprobs = limits.logprobs.map_or(0, |top| count(top).saturating_add(1));
    let frame = logprobs.saturating_mul(LOGPROB_BYTES).saturating_add(FRAME_BYTES);
    tokens.saturating_add(16).saturating_mul(frame).min(MAX_BACKLOG)
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
    use emberline_shared::event::TokenLogprob;
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
        assert_eq!(delta(frames.text(0, "x\ny", None))["delta"], json!({"content": "x\ny"}));
        let last = delta(frames.finish(0, FinishReason::Length));
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
        assert_eq!(frames.usage(&Usage::default()), None);
        assert!(payload(&frames.role(0)).get("usage").is_none());
    }

    #[test]
    fn log_probabilities_come_with_their_text() {
        let token = TokenLogprob { bytes: b"x".into(), logprob: -0.5 };
        let frame = frames(false).text(3, "", Some(&[TokenLogprobs { token, top: Vec::new() }]));
        let choice = payload(&frame)["choices"][0].clone();
        assert_eq!((&choice["index"], &choice["delta"]), (&json!(3), &json!({"content": ""})));
        let token = json!({"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []});
        assert_eq!(choice["logprobs"], json!({"content": [token], "refusal": null}));
    }

    #[test]
    fn a_client_may_be_behind_by_its_whole_answer_within_reason() {
        let limits = Limits { choices: 1, tokens: 100, logprobs: None };
        let one = max_backlog(limits);
        assert_eq!(one, 116 * FRAME_BYTES);
        assert!(max_backlog(Limits { choices: 2, ..limits }) > one);
        assert!(max_backlog(Limits { logprobs: Some(20), ..limits }) > one);
        let most = Limits { choices: u32::MAX, tokens: u32::MAX, logprobs: Some(u32::MAX) };
        assert_eq!(max_backlog(most), MAX_BACKLOG);
    }

    #[test]
    fn usage_comes_in_a_chunk_of_its_own() {
        let frames = frames(true);
        assert_eq!(payload(&frames.text(0, "x", None))["usage"], Value::Null);
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
            prop_assert_eq!(&payload(&frames(false).text(0, &text, None))["choices"][0]["delta"]["content"], &json!(text));
        }
    }
}
