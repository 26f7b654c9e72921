//! vLLM's parameters that ask for the tokens behind a text: their ids, and the log-probabilities of a
//! prompt's.

use schemars::JsonSchema;
use serde::Deserialize;

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::GenerationRequest;

use crate::parameters::MAX_TOP_LOGPROBS;

/// Most entries of `logprob_token_ids`, as in vLLM.
pub(crate) const MAX_LOGPROB_TOKEN_IDS: usize = 128;

/// The part of a body that asks for tokens.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub(crate) struct TokenParameters {
    /// Extension. The answer has the token ids of its prompt and of each choice. Default false.
    return_token_ids: Option<bool>,
    /// Extension. In log-probabilities tokens are called `token_id:` and their ids. Default false.
    return_tokens_as_token_ids: Option<bool>,
    /// Extension. The log-probability of each token of the prompt, and of so many most probable ones in
    /// its place.
    #[schemars(range(min = 0, max = MAX_TOP_LOGPROBS))]
    prompt_logprobs: Option<u32>,
    /// Extension. With `logprobs`: the alternatives are these tokens instead of the most probable ones.
    #[schemars(length(min = 1, max = MAX_LOGPROB_TOKEN_IDS), inner(range(min = 0, max = u32::MAX)))]
    logprob_token_ids: Option<Vec<u32>>,
}

/// What an answer tells of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenDetails {
    /// Most alternatives beside each token's log-probability; `None` for no log-probabilities.
    pub logprobs: Option<u32>,
    /// The log-probabilities of a text completion begin with its prompt's, with so many alternatives.
    pub echoed_logprobs: Option<u32>,
    /// `prompt_logprobs` is told, with so many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Token ids are told.
    pub ids: bool,
    /// Log-probabilities call tokens by their ids.
    pub called_by_ids: bool,
}

impl TokenParameters {
    /// Completes a job that has its other parameters; what the answer tells.
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
        assert_eq!(details.prompt_logprobs, None, "it was not asked for by its name");
        // The most of both is computed, and each shows its own.
        let (request, details) = read(json!({"prompt_logprobs": 0}), echo(Some(4)));
        assert_eq!(request.prompt_logprobs, Some(4));
        assert_eq!((details.echoed_logprobs, details.prompt_logprobs), (Some(4), Some(0)));
        let silent = GenerationRequest { logprobs: Some(3), ..GenerationRequest::default() };
        assert_eq!(read(json!({}), silent).0.prompt_logprobs, None);
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
