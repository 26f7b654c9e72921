//! A job's event log, one chunk a line: whatever order and whichever lines a relay sees, it never
//! takes back what it told, tells each end once, and its frames can be read.

#![no_main]

use emberline_function::relay::{Output, OutputLimits, Relay, Whole, read_chunk};
use emberline_protocol::chunk::Chunk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (first, log) = input;
    let limits = OutputLimits {
        choices: u32::from(first % 3) + 1,
        tokens: 64,
        logprobs: (first & 4 != 0).then_some(u32::from(first % 2)),
        ..OutputLimits::default()
    };
    let log: Vec<Chunk> = log.split(|byte| *byte == b'\n').filter_map(|line| read_chunk(line).ok()).collect();
    // By the subscription, with the log where there is a gap.
    let mut followed = Told::new(limits);
    let mut relay = Relay::new(limits);
    for (at, chunk) in log.iter().enumerate() {
        let Ok(outputs) = relay.on_chunk(chunk.clone()) else { return };
        followed.take(outputs);
        if relay.has_gap() {
            let Ok(outputs) = relay.rebuild(&log[..=at]) else { return };
            followed.take(outputs);
        }
        assert_eq!(relay.is_over(), followed.over);
    }
    // By the log alone.
    let mut rebuilt = Told::new(limits);
    let mut relay = Relay::new(limits);
    let Ok(outputs) = relay.rebuild(&log) else { return };
    rebuilt.take(outputs);
    for (one, other) in followed.check_whole().iter().zip(&rebuilt.check_whole()) {
        assert!(one.starts_with(other.as_str()) || other.starts_with(one.as_str()), "{one:?} {other:?}");
    }
});

/// What was told, and by it what may still be told.
struct Told {
    texts: Vec<String>,
    finished: Vec<bool>,
    accepted: bool,
    over: bool,
    whole: Whole,
}

impl Told {
    fn new(limits: OutputLimits) -> Self {
        let count = limits.choices as usize;
        Self {
            texts: vec![String::new(); count],
            finished: vec![false; count],
            accepted: false,
            over: false,
            whole: Whole::new(limits),
        }
    }

    fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            assert!(!self.over, "{output:?} after the end");
            match &output {
                Output::Accepted(_) => assert!(!std::mem::replace(&mut self.accepted, true)),
                Output::Text { choice, text, .. } => {
                    assert!(self.accepted && !self.finished[*choice as usize]);
                    self.texts[*choice as usize].push_str(text);
                }
                Output::Finish { choice, .. } => {
                    assert!(!std::mem::replace(&mut self.finished[*choice as usize], true));
                }
                Output::Done(_) => {
                    assert!(self.finished.iter().all(|finished| *finished));
                    self.over = true;
                }
                Output::Failed(_) => self.over = true,
                Output::Prompt { .. } => {}
            }
            self.whole.push(output);
        }
    }

    /// An answer told in one piece has the same text.
    fn check_whole(self) -> Vec<String> {
        let whole = self.whole.choices().iter().map(|choice| choice.text.clone());
        let whole: Vec<String> = whole.collect();
        assert_eq!(whole, self.texts);
        whole
    }
}
