//! What an independent implementation computes with the real model.

use anyhow::{Context as _, Result};
use emberline_protocol::job::Message;
use serde::Deserialize;

/// A margin below this, in nats, may be decided otherwise by other arithmetic.
pub const NEAR_TIE: f64 = 0.05;

/// One chat with the reference's answer.
#[derive(Debug, Deserialize)]
pub struct Case {
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

impl Case {
    /// Number of greedy tokens before the first near-tie, and the beginning of the text that they make.
    pub fn certain_text(&self) -> (usize, String) {
        let sure = self.greedy_margins.iter().take_while(|m| **m > NEAR_TIE).count();
        assert!(sure > 0, "a case whose first token is a near-tie tests nothing");
        if sure == self.greedy_margins.len() {
            return (sure, self.text.clone());
        }
        // Without a tokenizer here, a token is taken to be one character at least.
        (sure, self.text.chars().take(sure).collect())
    }
}

/// All five cases.
pub fn cases() -> Result<Vec<Case>> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let path = crate::paths::repository().join("tests/golden/smollm2-135m-instruct-q4_1.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str::<File>(&text)?.cases)
}
