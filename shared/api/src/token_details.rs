//! vLLM's parameters for details of tokens: their ids, and the log-probabilities of the prompt's tokens.

use schemars::JsonSchema;
use serde::Deserialize;

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::GenerationRequest;

use crate::parameters::MAX_TOP_LOGPROBS;

/// Largest number of entries in `logprob_token_ids`, as in vLLM.
pub(crate) const MAX_LOGPROB_TOKEN_IDS: usize = 128;

/// The parameters of a body that ask for details of tokens.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub(crate) struct TokenParameters {
    /// Extension to OpenAI's API. Whether to return the token ids of the prompt and of each choice. Default:
    /// false.
    return_token_ids: Option<bool>,
    /// Extension to OpenAI's API. Whether log-probabilities represent each token as `token_id:` and its id
    /// instead of its text. Default: false.
    return_tokens_as_token_ids: Option<bool>,
    /// Extension to OpenAI's API. Returns the log-probability of each token of the prompt, and those of this
    /// many most probable tokens at each position. Default: none.
    #[schemars(range(min = 0, max = MAX_TOP_LOGPROBS))]
    prompt_logprobs: Option<u32>,
    /// Extension to OpenAI's API. Returns the log-probabilities of these token ids, in this order, instead of
    /// those of the most probable tokens; requires `logprobs`.
    #[schemars(length(min = 1, max = MAX_LOGPROB_TOKEN_IDS), inner(range(min = 0, max = u32::MAX)))]
    logprob_token_ids: Option<Vec<u32>>,
}

/// Which details of tokens an answer contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenDetails {
    /// Number of alternatives for each generated token's log-probability; `None` without log-probabilities.
    pub logprobs: Option<u32>,
    /// Number of alternatives for each prompt token in the log-probabilities of an echoed text completion;
    /// `None` if they don't include the prompt's tokens.
    pub echoed_logprobs: Option<u32>,
    /// Number of alternatives for each prompt token in `prompt_logprobs`; `None` without that field.
    pub prompt_logprobs: Option<u32>,
    /// Whether the answer contains token ids.
    pub ids: bool,
    /// Whether log-probabilities represent tokens by their ids.
    pub called_by_ids: bool,
}

impl TokenParameters {
    /// Adds these parameters to `request`, whose other parameters are already set, and returns which details
    /// the answer contains. Fails if `logprob_token_ids` is given without `logprobs`.
    pub(crate) fn apply(self, request: &mut GenerationRequest) -> Result<TokenDetails, ApiError> {
        let logprob_token_ids = self.logprob_token_ids.unwrap_or_default();
        if !logprob_token_ids.is_empty() && request.logprobs.is_none() {
            let message = "'logprob_token_ids' needs 'logprobs'. Set that, or leave 'logprob_token_ids' out.";
            return Err(ApiError::field(ErrorCode::InvalidValue, "logprob_token_ids", message));
        }
        let echoed_logprobs = request.logprobs.filter(|_| request.echo);
        request.logprob_token_ids = logprob_token_ids;
        request.return_token_ids = self.return_token_ids.unwrap_or(false);
        request.prompt_logprobs = self.prompt_logprobs.max(echoed_logprobs);
        Ok(TokenDetails {
            logprobs: request.alternatives(),
            echoed_logprobs,
            prompt_logprobs: self.prompt_logprobs,
            ids: request.return_token_ids,
            called_by_ids: self.return_tokens_as_token_ids.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(parameters: Value, mut request: GenerationRequest) -> (GenerationRequest, TokenDetails) {
        let parameters: TokenParameters = serde_json::from_value(parameters).unwrap();
        let details = parameters.apply(&mut request).unwrap();
        (request, details)
    }

    #[test]
    fn an_echo_with_log_probabilities_needs_those_of_the_prompt() {
        let echo = |logprobs| GenerationRequest { echo: true, logprobs, ..GenerationRequest::default() };
        let (request, details) = read(json!({}), echo(None));
        assert_eq!((request.prompt_logprobs, details), (None, TokenDetails::default()));
        let (request, details) = read(json!({}), echo(Some(1)));
        assert_eq!((request.prompt_logprobs, details.echoed_logprobs), (Some(1), Some(1)));
        assert_eq!(details.prompt_logprobs, None, "the body does not contain prompt_logprobs");
        // The job asks for the larger number of alternatives; each list contains its own number.
        let (request, details) = read(json!({"prompt_logprobs": 0}), echo(Some(4)));
        assert_eq!(request.prompt_logprobs, Some(4));
        assert_eq!((details.echoed_logprobs, details.prompt_logprobs), (Some(4), Some(0)));
        let no_echo = GenerationRequest { logprobs: Some(3), ..GenerationRequest::default() };
        assert_eq!(read(json!({}), no_echo).0.prompt_logprobs, None);
    }

    #[test]
    fn tokens_that_are_named_replace_the_most_probable_ones() {
        let named = json!({"logprob_token_ids": [5, 6, 7]});
        let scored = GenerationRequest { logprobs: Some(1), ..GenerationRequest::default() };
        let (request, details) = read(named.clone(), scored);
        assert_eq!(request.logprob_token_ids, [5, 6, 7]);
        assert_eq!((request.logprobs, details.logprobs), (Some(1), Some(3)));
        let parameters: TokenParameters = serde_json::from_value(named).unwrap();
        let error = parameters.apply(&mut GenerationRequest::default()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("logprob_token_ids"));
    }

    #[test]
    fn ids_are_told_where_they_are_asked_for() {
        let (request, details) = read(
            json!({"return_token_ids": true, "return_tokens_as_token_ids": true}),
            GenerationRequest::default(),
        );
        assert!(request.return_token_ids && details.ids && details.called_by_ids);
    }
}
