//! The simulated engine's text, asked for at each endpoint, whole and as a stream.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::sse::Transcript;
use crate::stack::{API_KEY, Engine, Options, SIMULATED_MODEL, Stack};

/// The simulated engine's words, which it repeats.
const WORDS: [&str; 8] = ["The", " quick", " ember", " glows", " along", " the", " line", ". "];

/// The first `count` words of the simulated engine's text.
pub fn words(count: usize) -> String {
    WORDS.iter().cycle().take(count).copied().collect()
}

/// A stack whose worker computes `words_per_s` words a second for each of at most `slots` jobs.
pub fn paced(words_per_s: u32, slots: usize, variables: &[(&'static str, &str)]) -> Options {
    let args = ["--simulated-tokens-per-s", &words_per_s.to_string(), "--slots", &slots.to_string()];
    Options {
        engine: Engine::Simulated,
        variables: variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        worker_args: args.map(str::to_owned).into(),
        ..Options::default()
    }
}

/// An endpoint that makes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Responses];

    /// Where it is.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
        }
    }

    /// The body of a request for `words` words.
    pub fn body(self, words: usize, stream: bool) -> Value {
        let model = SIMULATED_MODEL;
        match self {
            Self::Chat => {
                let messages = json!([{"role": "user", "content": "Hi"}]);
                json!({"model": model, "messages": messages, "max_tokens": words, "stream": stream})
            }
            Self::Completions => {
                json!({"model": model, "prompt": "Hi", "max_tokens": words, "stream": stream})
            }
            Self::Responses => {
                json!({"model": model, "input": "Hi", "max_output_tokens": words, "stream": stream})
            }
        }
    }

    /// Sends a request for `words` words.
    pub async fn ask(
        self,
        stack: &Stack,
        words: usize,
        stream: bool,
        headers: &[(&str, &str)],
    ) -> Result<reqwest::Response> {
        stack.post(self.path(), API_KEY, headers, &self.body(words, stream)).await
    }

    /// The text of a whole answer.
    pub fn text(self, answer: &Value) -> Result<&str> {
        let text = match self {
            Self::Chat => &answer["choices"][0]["message"]["content"],
            Self::Completions => &answer["choices"][0]["text"],
            Self::Responses => &answer["output"][0]["content"][0]["text"],
        };
        text.as_str().with_context(|| format!("no text: {answer}"))
    }

    /// Reads an answer to its end and returns its text.
    pub async fn read(self, response: reqwest::Response, stream: bool) -> Result<String> {
        let status = response.status();
        if !stream || status != 200 {
            let body = response.text().await?;
            ensure!(status == 200, "{status}: {body}");
            return Ok(self.text(&serde_json::from_str(&body)?)?.to_owned());
        }
        let transcript = Transcript::read(response).await?;
        let last = transcript.chunks.last().context("no event")?;
        ensure!(transcript.done || last["type"] == "response.incomplete", "the stream broke off: {last}");
        Ok(match self {
            Self::Chat => transcript.text(),
            Self::Completions => transcript.choice(0).filter_map(|choice| choice["text"].as_str()).collect(),
            Self::Responses => transcript.output_text(),
        })
    }
}
