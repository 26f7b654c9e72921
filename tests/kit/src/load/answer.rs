//! The part of an answer that its request determines: the same whether it came whole or streamed, and
//! whichever worker computed it.

use serde_json::Value;

/// An answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Its choices in order.
    pub choices: Vec<Choice>,
    /// Numbers of tokens of prompt and completion, if the answer has them.
    pub usage: Option<(u64, u64)>,
}

/// One of its choices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// The content.
    pub text: String,
    /// Name and arguments of each call.
    pub calls: Vec<(String, String)>,
    /// The log-probability entry of each token.
    pub logprobs: Vec<Value>,
    /// The finish reason.
    pub finish: Option<String>,
}

impl Answer {
    /// Parses the body of a whole answer.
    pub fn of_whole(body: &Value) -> Self {
        let choices = body["choices"].as_array().into_iter().flatten();
        Self { choices: choices.map(Choice::of_whole).collect(), usage: usage(&body["usage"]) }
    }
}

impl Choice {
    fn of_whole(choice: &Value) -> Self {
        let message = &choice["message"];
        Self {
            text: message["content"].as_str().unwrap_or_default().to_owned(),
            calls: crate::compare::calls_of(message),
            logprobs: choice["logprobs"]["content"].as_array().cloned().unwrap_or_default(),
            finish: choice["finish_reason"].as_str().map(str::to_owned),
        }
    }
}

/// Without the number of cached tokens, which depends on the worker.
pub(super) fn usage(usage: &Value) -> Option<(u64, u64)> {
    Some((usage["prompt_tokens"].as_u64()?, usage["completion_tokens"].as_u64()?))
}
