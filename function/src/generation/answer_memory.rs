//! How much memory the answer to a request takes in its instance.

use super::job::RESERVED_ANSWER;
use crate::relay::{LOGPROB_BYTES, OutputLimits, TOKEN_BYTES};

/// A connection to NATS with its buffers, and frames on their way to a client that reads as they come.
const STREAM_BYTES: usize = 256 * 1024;

/// Bytes that an answer takes in any case of which the client wants `max_tokens` a choice. `limits` are those of all
/// its jobs together and `prompt_tokens` those of one, about. A `whole` answer is gathered before it is sent.
///
/// An answer without `max_tokens` is taken to be of usual length; a longer one grows beyond what it has reserved.
pub(super) fn answer_bytes(
    max_tokens: Option<u32>,
    limits: OutputLimits,
    prompt_tokens: usize,
    whole: bool,
) -> usize {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let expected = max_tokens.unwrap_or(RESERVED_ANSWER).min(limits.tokens);
    let tokens = count(limits.choices).saturating_mul(count(expected));
    let scored = |alternatives: u32| count(alternatives).saturating_add(1).saturating_mul(LOGPROB_BYTES);
    let logprobs = limits.logprobs.filter(|_| whole).map_or(0, scored);
    let answer = tokens.saturating_mul(TOKEN_BYTES.saturating_add(logprobs));
    // Each choice of a text completion repeats its prompt.
    let of_prompt = limits.prompt.map_or(0, |prompt| prompt.logprobs.map_or(TOKEN_BYTES, scored));
    let repeats = count(limits.choices).saturating_add(1);
    let prompt = prompt_tokens.saturating_mul(of_prompt).saturating_mul(repeats);
    STREAM_BYTES.saturating_add(answer).saturating_add(prompt)
}

#[cfg(test)]
mod tests {
    use emberline_protocol::job::GenerationRequest;

    use super::*;

    fn bytes(n: u32, max_tokens: Option<u32>, logprobs: Option<u32>, whole: bool) -> usize {
        let request = GenerationRequest { n, max_tokens, logprobs, ..GenerationRequest::default() };
        answer_bytes(max_tokens, OutputLimits::of(&request, 100_000), 100, whole)
    }

    #[test]
    fn a_stream_holds_its_text_and_a_whole_answer_everything() {
        let usual = bytes(1, None, None, false);
        assert!(usual < 512 * 1024, "{usual}");
        assert_eq!(usual, bytes(1, None, Some(20), false), "log-probabilities are sent as they come");
        let whole = bytes(16, Some(1000), Some(20), true);
        assert!(whole > 16 * 1000 * 21 * 100 && whole < 64 << 20, "{whole}");
        assert!(bytes(16, Some(100_000), None, false) > bytes(1, Some(100_000), None, false) * 10);
    }

    #[test]
    fn no_request_overflows() {
        let request = GenerationRequest {
            n: u32::MAX,
            max_tokens: Some(u32::MAX),
            logprobs: Some(u32::MAX),
            prompt_logprobs: Some(u32::MAX),
            ..GenerationRequest::default()
        };
        assert!(
            answer_bytes(request.max_tokens, OutputLimits::of(&request, u32::MAX), usize::MAX, true)
                > 1 << 30
        );
    }
}
