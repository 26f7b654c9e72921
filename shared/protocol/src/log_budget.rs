//! How large a job's event log may be.
//!
//! All logs share one stream, and where that is full, the oldest lose their beginning. So the log of one job is
//! bounded: the function refuses a request whose answer would not fit ([`check`]), and a worker does the same and
//! ends an answer without `max_tokens` where its log is full ([`most_tokens`]). The sizes here are those of usual
//! tokens. A log that grows faster ends at [`MAX_LOG_BYTES`] all the same.

use crate::error::{ApiError, ErrorCode};
use crate::job::GenerationRequest;

/// Largest event log of a job, in bytes as JetStream counts them: an eighth of the stream that holds all of them.
pub const MAX_LOG_BYTES: u64 = 32 * MIB;
/// The part of it that is kept for the log's end: the reasons why choices ended, usage, a takeover.
pub const END_BYTES: u64 = 64 * 1024;

const MIB: u64 = 1024 * 1024;
/// An event with one token, with its headers and its subject.
const EVENT_BYTES: u64 = 288;
/// A log-probability with its token.
const LOGPROB_BYTES: u64 = 80;
/// A token of a prompt, without log-probabilities.
const PROMPT_TOKEN_BYTES: u64 = 16;

/// Bytes of the log for each token of each choice.
fn bytes_per_token(request: &GenerationRequest) -> u64 {
    let logprobs = request.alternatives().map_or(0, |alternatives| u64::from(alternatives).saturating_add(1));
    EVENT_BYTES.saturating_add(logprobs.saturating_mul(LOGPROB_BYTES))
}

/// Bytes of the log for a prompt of `tokens` tokens.
fn prompt_bytes(request: &GenerationRequest, tokens: u64) -> u64 {
    let logprobs =
        request.prompt_logprobs.map_or(0, |alternatives| u64::from(alternatives).saturating_add(1));
    let each = match request.logs_prompt() || request.echo {
        true => PROMPT_TOKEN_BYTES.saturating_add(logprobs.saturating_mul(LOGPROB_BYTES)),
        false => 0,
    };
    tokens.saturating_mul(each)
}

/// About how large the log of `request` gets if each choice has `tokens` tokens.
fn log_bytes(request: &GenerationRequest, prompt_tokens: u64, tokens: u32) -> u64 {
    let all_tokens = u64::from(request.n).saturating_mul(tokens.into());
    let answer = all_tokens.saturating_mul(bytes_per_token(request));
    END_BYTES.saturating_add(prompt_bytes(request, prompt_tokens)).saturating_add(answer)
}

/// How many tokens each choice may have so that the log of a request with this prompt has room for them; at least 1.
pub fn most_tokens(request: &GenerationRequest, prompt_tokens: u64) -> u32 {
    let room = MAX_LOG_BYTES.saturating_sub(log_bytes(request, prompt_tokens, 0));
    let each = u64::from(request.n.max(1)).saturating_mul(bytes_per_token(request));
    u32::try_from(room / each).unwrap_or(u32::MAX).max(1)
}

/// Refuses a request whose answer may be as long as its `max_tokens` says, or must be as long as its `min_tokens`
/// says, and then would not fit into its log.
pub fn check(request: &GenerationRequest, prompt_tokens: u64, context_length: u32) -> Result<(), ApiError> {
    let least = request.sampling.min_tokens.max(1);
    let tokens = request.max_tokens.unwrap_or(least).min(context_length);
    let bytes = log_bytes(request, prompt_tokens, tokens);
    if bytes <= MAX_LOG_BYTES {
        return Ok(());
    }
    let field = logprobs_field(request);
    let logprobs = request.alternatives().map_or_else(String::new, |alternatives| {
        format!(" with {} log-probabilities each", u64::from(alternatives).saturating_add(1))
    });
    let message = format!(
        "{} choices of up to {tokens} tokens{logprobs} take about {} MiB of event log, and a request may take {} MiB. \
         Lower 'max_tokens', 'n' or '{field}'.",
        request.n,
        bytes.div_ceil(MIB),
        MAX_LOG_BYTES / MIB,
    );
    let param = match request.alternatives() {
        Some(1..) => field,
        _ if request.n > 1 => "n",
        _ => "max_tokens",
    };
    Err(ApiError::field(ErrorCode::InvalidValue, param, message))
}

/// What a body calls the field that asks for alternatives.
fn logprobs_field(request: &GenerationRequest) -> &'static str {
    if !request.logprob_token_ids.is_empty() {
        "logprob_token_ids"
    } else if request.prompt.is_some() {
        "logprobs"
    } else {
        "top_logprobs"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Chunk;
    use crate::event::{EventKind, TokenLogprob, TokenLogprobs};
    use crate::job::RawPrompt;
    use crate::streams::Layout;
    use crate::subject::{JobId, events};

    fn request(n: u32, max_tokens: Option<u32>, logprobs: Option<u32>) -> GenerationRequest {
        GenerationRequest { n, max_tokens, logprobs, ..GenerationRequest::default() }
    }

    #[test]
    fn eight_logs_of_the_largest_size_fit_into_their_stream() {
        let stream = u64::try_from(Layout::default().events_bytes).unwrap();
        assert_eq!(MAX_LOG_BYTES * 8, stream);
    }

    #[test]
    fn a_chunk_of_one_usual_token_is_no_larger_than_we_count() {
        let token = |id: u32| TokenLogprob { id, bytes: b" token".to_vec(), logprob: -12.345_678 };
        for alternatives in [None, Some(0), Some(20)] {
            let logprobs = alternatives.map(|count| TokenLogprobs {
                token: token(151_643),
                top: (0..count).map(|id| token(100_000 + id)).collect(),
            });
            let kind = EventKind::Tokens {
                choice: 15,
                position: 32_000,
                ids: vec![151_643],
                text: " token".into(),
                logprobs: logprobs.into_iter().collect(),
            };
            let chunk = Chunk::of(1, 500_000, kind);
            let subject = events(&JobId::from_random(1));
            let headers =
                "NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 100000000\r\nNats-TTL: 660s\r\n\r\n";
            let bytes = serde_json::to_vec(&chunk).unwrap().len() + subject.len() + headers.len();
            let counted = bytes_per_token(&request(1, None, alternatives));
            let bytes = u64::try_from(bytes).unwrap();
            assert!(bytes <= counted && counted < bytes * 3 / 2, "{bytes} bytes, counted as {counted}");
        }
    }

    #[test]
    fn what_would_push_others_logs_out_is_refused_by_name() {
        let refused = |request: &GenerationRequest| check(request, 100, 131_072).unwrap_err();
        let most = request(16, Some(32_768), Some(20));
        let error = refused(&most);
        assert_eq!((error.code.status(), error.param.as_deref()), (400, Some("top_logprobs")));
        for word in ["16 choices", "32768 tokens", "21 log-probabilities", "32 MiB", "'max_tokens', 'n' or"] {
            assert!(error.message.contains(word), "{word}: {error}");
        }
        let raw = GenerationRequest { prompt: Some(RawPrompt::Text("x".into())), ..most.clone() };
        assert_eq!(refused(&raw).param.as_deref(), Some("logprobs"));
        assert_eq!(refused(&request(16, Some(32_768), None)).param.as_deref(), Some("n"));
        // What the model's context leaves is what counts.
        assert_eq!(check(&most, 100, 512), Ok(()));
    }

    #[test]
    fn usual_requests_fit() {
        for (n, tokens, logprobs) in
            [(1, 100_000, None), (16, 4096, None), (1, 16_384, Some(20)), (16, 1024, Some(20))]
        {
            assert_eq!(check(&request(n, Some(tokens), logprobs), 4096, 131_072), Ok(()), "{n} {tokens}");
        }
    }

    #[test]
    fn an_answer_without_max_tokens_ends_where_its_log_is_full() {
        for (n, logprobs) in [(1, None), (16, None), (16, Some(20)), (u32::MAX, Some(u32::MAX))] {
            let open = request(n, None, logprobs);
            assert_eq!(check(&open, 100, 131_072).is_ok(), n <= 16, "{n}");
            let tokens = most_tokens(&open, 100);
            let bounded = |tokens| {
                check(&GenerationRequest { max_tokens: Some(tokens), ..open.clone() }, 100, u32::MAX)
            };
            assert_eq!((bounded(tokens).is_ok(), bounded(tokens + 1).is_ok()), (n <= 16, false), "{n}");
        }
        assert!(most_tokens(&request(1, None, None), 4096) > 100_000);
    }
}
