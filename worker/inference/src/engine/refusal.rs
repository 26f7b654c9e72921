//! Refusals that several engines share.

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::GenerationRequest;

/// `min_tokens` is more than there is room for.
pub(super) fn no_room_for(min_tokens: u32, limit: u32, request: &GenerationRequest) -> ApiError {
    let field = prompt_field(request);
    let message = format!(
        "'min_tokens' is {min_tokens}, but the context has room for an answer of {limit} tokens. \
         Lower it or shorten the {field}."
    );
    ApiError::field(ErrorCode::ContextLengthExceeded, "min_tokens", message)
}

/// The field that the prompt is made of.
pub(super) fn prompt_field(request: &GenerationRequest) -> &'static str {
    if request.prompt.is_some() { "prompt" } else { "messages" }
}

/// A prompt does not fit; `prompt` is its number of tokens, in words.
pub(super) fn too_long(prompt: &str, request: &GenerationRequest, context: u32) -> ApiError {
    let field = prompt_field(request);
    let wanted = match request.max_tokens {
        Some(wanted) => format!("{wanted} for the answer"),
        None => "at least 1 for the answer".to_owned(),
    };
    // Some clients recognise the error by the first words, which are OpenAI's.
    let message = format!(
        "This model's maximum context length is {context} tokens, but the request needs {prompt} for the {field} and {wanted}. \
         Shorten the {field} or lower 'max_tokens'."
    );
    ApiError::field(ErrorCode::ContextLengthExceeded, field, message)
}

/// The job's deadline has passed.
pub(super) fn too_late() -> ApiError {
    let message = "The answer was not complete in time. Ask for fewer tokens or try again later.";
    ApiError::new(ErrorCode::Timeout, message)
}
