//! Server-sent events. A frame is never cut: some clients take what one read brings for whole events.

use bytes::Bytes;
use emberline_api::error::ErrorBody;
use emberline_protocol::error::ApiError;
use emberline_protocol::prompt::MAX_PROMPT_LOGPROBS;

use crate::relay::OutputLimits;

/// Bytes that a frame takes for one token, and for what does not depend on tokens.
const FRAME_BYTES: usize = 4096;
/// Bytes that one more log-probability takes, with the token twice: as text and in numbers.
const LOGPROB_BYTES: usize = 256;
/// Bytes that the ids of a prompt take at most, about.
const PROMPT_IDS_BYTES: usize = 1024 * 1024;
/// Largest number of bytes that wait for one client: its instance serves others, too.
const MAX_BACKLOG: usize = 64 * 1024 * 1024;

/// Ends a stream that is complete.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");
/// A comment, which clients skip: shows that the stream is alive.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// How many bytes of frames a client may leave unread: all of its answer, within reason.
pub fn max_backlog(limits: OutputLimits) -> usize {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let tokens = count(limits.choices).saturating_mul(count(limits.tokens));
    let logprobs = limits.logprobs.map_or(0, |top| count(top).saturating_add(1));
    let frame = logprobs.saturating_mul(LOGPROB_BYTES).saturating_add(FRAME_BYTES);
    tokens.saturating_add(16).saturating_mul(frame).saturating_add(prompt_bytes(limits)).min(MAX_BACKLOG)
}

/// Largest number of bytes, about, that a stream takes for its prompts' tokens.
fn prompt_bytes(limits: OutputLimits) -> usize {
    let scores = usize::try_from(MAX_PROMPT_LOGPROBS).unwrap_or(usize::MAX).saturating_mul(LOGPROB_BYTES);
    let each = limits.prompt.map_or(0, |prompt| prompt.logprobs.map_or(PROMPT_IDS_BYTES, |_| scores));
    // Each choice of a text completion repeats its prompt.
    each.saturating_mul(usize::try_from(limits.choices).unwrap_or(usize::MAX))
}

/// A failure after the stream has begun; no [`DONE`] follows it.
pub fn error(error: &ApiError) -> Bytes {
    data(&ErrorBody::json(error).to_string())
}

/// `json` has no line ends: serde_json escapes those within strings.
pub(crate) fn data(json: &str) -> Bytes {
    format!("data: {json}\n\n").into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::relay::PromptLimits;
    use emberline_protocol::error::ErrorCode;
    use serde_json::Value;

    pub(crate) fn payload(frame: &Bytes) -> Value {
        let text = str::from_utf8(frame).unwrap();
        let json = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!json.contains('\n'));
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_client_may_be_behind_by_its_whole_answer_within_reason() {
        let limits = OutputLimits { choices: 1, tokens: 100, ..OutputLimits::default() };
        let one = max_backlog(limits);
        assert_eq!(one, 116 * FRAME_BYTES);
        assert!(max_backlog(OutputLimits { choices: 2, ..limits }) > one);
        assert!(max_backlog(OutputLimits { logprobs: Some(20), ..limits }) > one);
        let ids = OutputLimits { prompt: Some(PromptLimits { logprobs: None }), ..limits };
        assert!(max_backlog(ids) > one);
        let scored = OutputLimits { prompt: Some(PromptLimits { logprobs: Some(0) }), ..limits };
        assert!(max_backlog(scored) > max_backlog(ids));
        let most = OutputLimits { choices: u32::MAX, tokens: u32::MAX, logprobs: Some(u32::MAX), ..scored };
        assert_eq!(max_backlog(most), MAX_BACKLOG);
    }

    #[test]
    fn a_late_failure_is_an_error_line() {
        let frame = error(&ApiError::new(ErrorCode::Timeout, "late"));
        assert_eq!(payload(&frame)["error"]["code"], "timeout");
    }
}
