//! Whether what an event says of tokens is within what any vocabulary needs.

use emberline_protocol::event::{TokenLogprob, TokenLogprobs};

/// Most bytes of text that one token stands for. The longest tokens of known vocabularies,
/// runs of blanks, have 128; text held back over several tokens comes with the last of them.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

/// Whether these are finite, no longer than tokens are, and of at most `top` alternatives.
pub(super) fn is_sound(token: &TokenLogprobs, top: u32) -> bool {
    let mut all = std::iter::once(&token.token).chain(&token.top);
    u32::try_from(token.top.len()).is_ok_and(|count| count <= top) && all.all(is_sound_alone)
}

/// The same of one token.
pub(super) fn is_sound_alone(token: &TokenLogprob) -> bool {
    token.logprob.is_finite() && token.bytes.len() <= MAX_TOKEN_BYTES
}
