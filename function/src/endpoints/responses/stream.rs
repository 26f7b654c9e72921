//! A response as a stream.

use bytes::Bytes;
use emberline_protocol::error::ApiError;

use super::Story;
use crate::relay::{Limits, Output};
use crate::response::sse::{self, Narrator};

/// How often a stream repeats what the response says besides its output, and the output as a whole.
const REPETITIONS: usize = 8;

/// Tells a story to somebody who may have heard its beginning.
#[derive(Debug)]
pub struct Telling {
    story: Story,
    /// Everything up to this number has been heard.
    heard: Option<u64>,
    limits: Limits,
}

impl Telling {
    /// Tells `story` from after the number `heard` on.
    pub fn new(story: Story, heard: Option<u64>, limits: Limits) -> Self {
        Self { story, heard, limits }
    }

    fn frames(&mut self) -> Vec<Bytes> {
        let heard = self.heard;
        let unheard = self.story.take_events().into_iter().filter_map(|event| match heard {
            Some(heard) => event.after(heard),
            None => Some(event),
        });
        unheard.map(|event| event.frame()).collect()
    }
}

impl Narrator for Telling {
    fn begin(&mut self) -> Vec<Bytes> {
        self.frames()
    }

    fn tell(&mut self, output: Output) -> Vec<Bytes> {
        self.story.push(output);
        self.frames()
    }

    fn interrupt(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![self.story.interruption(error).frame()]
    }

    fn max_backlog(&self) -> usize {
        let outline = serde_json::to_string(&self.story.response()).map_or(0, |response| response.len());
        let repeated = outline.saturating_mul(REPETITIONS);
        sse::max_backlog(self.limits).saturating_mul(2).saturating_add(repeated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Acceptance;
    use crate::relay::Ending;
    use emberline_api::responses::Outline;
    use emberline_protocol::error::ErrorCode;
    use emberline_protocol::event::FinishReason;
    use emberline_protocol::subject::JobId;

    fn told(heard: Option<u64>) -> String {
        let story = Story::new(JobId::from_random(1), 0, "m".into(), Outline::default());
        let mut telling = Telling::new(story, heard, Limits { choices: 1, tokens: 9, ..Limits::default() });
        let mut frames = telling.begin();
        for output in [
            Output::Accepted(Acceptance::default()),
            Output::Text { choice: 0, text: "abcdef".into(), logprobs: None, ids: None, tokens: 1 },
            Output::Finish { choice: 0, reason: FinishReason::Stop },
            Output::Done(Ending::default()),
        ] {
            frames.extend(telling.tell(output));
        }
        frames.extend(telling.interrupt(&ApiError::new(ErrorCode::Timeout, "late")));
        String::from_utf8(frames.concat()).unwrap()
    }

    #[test]
    fn whoever_comes_back_hears_the_rest() {
        let whole = told(None);
        assert!(whole.starts_with("event: response.created\n") && whole.contains(r#""delta":"abcdef""#));
        let rest = told(Some(6));
        assert!(rest.starts_with("event: response.output_text.delta\n"), "{rest}");
        assert!(rest.contains(r#""delta":"def""#), "{rest}");
        let (_, after) = rest.split_once("\n\n").unwrap();
        assert!(whole.ends_with(after));
        assert!(told(Some(1000)).starts_with("event: error\n"));
    }
}
