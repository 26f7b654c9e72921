//! A response as a stream.

use bytes::Bytes;
use emberline_protocol::error::ApiError;

use super::state::ResponseState;
use crate::relay::{Output, OutputLimits};
use crate::response::{ResponseWriter, sse};

/// How often a stream repeats the whole response.
const REPETITIONS: usize = 8;

/// Writes the events of a response for a client that may have received the first of them.
#[derive(Debug)]
pub struct ResponseStream {
    state: ResponseState,
    /// The client has all events up to this sequence number.
    received: Option<u64>,
    limits: OutputLimits,
}

impl ResponseStream {
    /// Writes the events after the sequence number `received`.
    pub fn new(state: ResponseState, received: Option<u64>, limits: OutputLimits) -> Self {
        Self { state, received, limits }
    }

    fn frames(&mut self) -> Vec<Bytes> {
        let received = self.received;
        let missing = self.state.take_events().into_iter().filter_map(|event| match received {
            Some(received) => event.after(received),
            None => Some(event),
        });
        missing.map(|event| event.frame()).collect()
    }
}

impl ResponseWriter for ResponseStream {
    fn begin(&mut self) -> Vec<Bytes> {
        self.frames()
    }

    fn on_output(&mut self, output: Output) -> Vec<Bytes> {
        self.state.push(output);
        self.frames()
    }

    fn on_error(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![self.state.interruption(error).frame()]
    }

    fn max_backlog(&self) -> usize {
        let response = serde_json::to_string(&self.state.response()).map_or(0, |response| response.len());
        let repeated = response.saturating_mul(REPETITIONS);
        sse::max_backlog(self.limits).saturating_mul(2).saturating_add(repeated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Acceptance;
    use crate::relay::Ending;
    use emberline_api::responses::ResponseSpec;
    use emberline_protocol::error::ErrorCode;
    use emberline_protocol::event::FinishReason;
    use emberline_protocol::subject::JobId;

    fn written(received: Option<u64>) -> String {
        let state = ResponseState::new(JobId::from_random(1), 0, "m".into(), ResponseSpec::default());
        let mut stream = ResponseStream::new(
            state,
            received,
            OutputLimits { choices: 1, tokens: 9, ..OutputLimits::default() },
        );
        let mut frames = stream.begin();
        for output in [
            Output::Accepted(Acceptance::default()),
            Output::Text { choice: 0, text: "abcdef".into(), logprobs: None, ids: None, tokens: 1 },
            Output::Finish { choice: 0, reason: FinishReason::Stop },
            Output::Done(Ending::default()),
        ] {
            frames.extend(stream.on_output(output));
        }
        frames.extend(stream.on_error(&ApiError::new(ErrorCode::Timeout, "late")));
        String::from_utf8(frames.concat()).unwrap()
    }

    #[test]
    fn a_client_that_comes_back_gets_the_rest() {
        let whole = written(None);
        assert!(whole.starts_with("event: response.created\n") && whole.contains(r#""delta":"abcdef""#));
        let rest = written(Some(6));
        assert!(rest.starts_with("event: response.output_text.delta\n"), "{rest}");
        assert!(rest.contains(r#""delta":"def""#), "{rest}");
        let (_, after) = rest.split_once("\n\n").unwrap();
        assert!(whole.ends_with(after));
        assert!(written(Some(1000)).starts_with("event: error\n"));
    }
}
