//! What an independent float32 implementation computes with the real model.

use emberline_protocol::job::Message;
use serde::Deserialize;

/// One chat with the reference's answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    /// The conversation.
    pub messages: Vec<Message>,
    /// The conversation in the model's chat template.
    pub prompt: String,
    /// The rendered prompt in tokens.
    pub prompt_token_ids: Vec<u32>,
    /// After the prompt: the 20 most probable tokens with their log-probabilities.
    pub first_top20: Vec<(u32, f64)>,
    /// The greedy answer in tokens.
    pub greedy_token_ids: Vec<u32>,
    /// Their log-probabilities.
    pub greedy_logprobs: Vec<f64>,
    /// For each greedy token, its distance to the runner-up, in nats.
    pub greedy_margins: Vec<f64>,
    /// The greedy answer.
    pub text: String,
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let path = super::repository().join("tests/golden/smollm2-135m-instruct-q4_1.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str::<File>(&text).unwrap().cases
}
