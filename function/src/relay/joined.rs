//! The answers of several jobs as one answer.

use emberline_api::paths::Paths;

use super::{Acceptance, Ending, Output};

/// Numbers the choices of several jobs through, adds up what they used, and calls fields as the client's
/// body does. They are accepted when the last of them is, with what is known of the first.
#[derive(Debug)]
pub struct Joined {
    choices_each: u32,
    paths: Paths,
    acceptances: Vec<Option<Acceptance>>,
    unfinished: usize,
    ending: Ending,
}

impl Joined {
    /// So many jobs, each with so many choices.
    pub fn new(jobs: usize, choices_each: u32, paths: Paths) -> Self {
        let acceptances = (0..jobs).map(|_| None).collect();
        Self { choices_each, paths, acceptances, unfinished: jobs, ending: Ending::default() }
    }

    /// What is to be sent when job number `job` has the next `output`.
    pub fn push(&mut self, job: usize, output: Output) -> Option<Output> {
        let first = u32::try_from(job).unwrap_or(u32::MAX).saturating_mul(self.choices_each);
        match output.called_by(&self.paths) {
            Output::Accepted(acceptance) => {
                if let Some(known) = self.acceptances.get_mut(job) {
                    *known = Some(acceptance);
                }
                let first = self.acceptances()?.into_iter().next();
                first.map(Output::Accepted)
            }
            Output::Prompt { choices, tokens, .. } => Some(Output::Prompt { first, choices, tokens }),
            Output::Text { choice, text, logprobs, ids, tokens } => {
                Some(Output::Text { choice: first.saturating_add(choice), text, logprobs, ids, tokens })
            }
            Output::Finish { choice, reason } => {
                Some(Output::Finish { choice: first.saturating_add(choice), reason })
            }
            Output::Done(Ending { usage, at }) => {
                self.unfinished = self.unfinished.saturating_sub(1);
                self.ending = Ending { usage: self.ending.usage.and(usage), at: self.ending.at.max(at) };
                (self.unfinished == 0).then_some(Output::Done(self.ending))
            }
            Output::Failed(error) => Some(Output::Failed(error)),
        }
    }

    /// What is known of all jobs, once each of them has been accepted.
    pub fn acceptances(&self) -> Option<Vec<Acceptance>> {
        self.acceptances.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use emberline_api::chat::ChatRequest;
    use emberline_protocol::error::{ApiError, ErrorCode};
    use emberline_protocol::event::{FinishReason, Usage};
    use emberline_protocol::relaxed::Relaxed;

    use super::*;

    fn accepted(prompt: &str) -> Output {
        Output::Accepted(Acceptance { prompt_text: Some(prompt.into()), ..Acceptance::default() })
    }

    #[test]
    fn choices_are_numbered_through_and_usage_is_added_up() {
        let mut joined = Joined::new(2, 3, Paths::default());
        assert_eq!(joined.push(1, accepted("b")), None);
        assert_eq!(joined.acceptances(), None);
        assert_eq!(joined.push(0, accepted("a")), Some(accepted("a")));
        let prompts: Option<Vec<_>> =
            joined.acceptances().unwrap().into_iter().map(|acceptance| acceptance.prompt_text).collect();
        assert_eq!(prompts.unwrap(), ["a", "b"]);

        let text = |choice| Output::Text { choice, text: "x".into(), logprobs: None, ids: None, tokens: 1 };
        assert_eq!(joined.push(0, text(2)), Some(text(2)));
        assert_eq!(joined.push(1, text(2)), Some(text(5)));
        let prompt = |first| Output::Prompt { first, choices: 3, tokens: Vec::new().into() };
        assert_eq!(joined.push(1, prompt(0)), Some(prompt(3)));
        let finish = |choice| Output::Finish { choice, reason: FinishReason::Stop };
        assert_eq!(joined.push(1, finish(0)), Some(finish(3)));

        let usage = Usage { prompt_tokens: 4, cached_tokens: 1, completion_tokens: 2 };
        let done = |usage, at| Output::Done(Ending { usage, at: Some(at) });
        assert_eq!(joined.push(1, done(usage, 7)), None);
        let sum = Usage { prompt_tokens: 8, cached_tokens: 2, completion_tokens: 4 };
        assert_eq!(joined.push(0, done(usage, 6)), Some(done(sum, 7)));
    }
    #[test]
    fn fields_are_called_as_the_client_calls_them() {
        let body = br#"{"model": "m", "messages": [{"role": "user", "content": "a"}],
                        "tools": [{"type": "custom"}, {"type": "function", "function": {"name": "f"}}]}"#;
        let mut joined = Joined::new(1, 1, ChatRequest::parse(body).unwrap().paths);
        let path = "tools[0].function.parameters.properties.a.format";
        let mut relaxed = Relaxed::default();
        relaxed.push(path);
        joined.push(0, Output::Accepted(Acceptance { relaxed, ..Acceptance::default() }));
        let told = joined.acceptances().unwrap().remove(0).relaxed;
        assert_eq!(told.paths(), ["tools[1].function.parameters.properties.a.format"]);
        let error = ApiError::field(ErrorCode::InvalidValue, path, format!("'{path}' is wrong."));
        let Some(Output::Failed(error)) = joined.push(0, Output::Failed(error)) else { panic!("no failure") };
        assert_eq!(error.param.as_deref(), Some("tools[1].function.parameters.properties.a.format"));
        assert!(error.message.starts_with("'tools[1]."), "{error}");
    }
}
