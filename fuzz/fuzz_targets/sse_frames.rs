//! Server-sent events, from the function's frames to a reader: every text arrives as it was,
//! however the network cuts it.

#![no_main]

use arbitrary::Arbitrary;
use emberline_function::sse::{DONE, Frames, KEEP_ALIVE};
use emberline_shared::chat::Envelope;
use emberline_shared::event::{FinishReason, TokenLogprob, TokenLogprobs, Usage};
use emberline_shared::subject::JobId;
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/src/sse/transcript.rs"]
#[allow(dead_code)] // the tests use all of it
mod transcript;

use transcript::Transcript;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    model: &'a str,
    fingerprint: &'a str,
    texts: Vec<(u8, &'a str, Option<&'a [u8]>)>,
    include_usage: bool,
    piece: u8,
    /// What some other server sends.
    foreign: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let envelope = Envelope {
        job: JobId::from_random(1),
        created: 2,
        model: input.model.to_owned(),
        fingerprint: input.fingerprint.to_owned(),
        metadata: None,
    };
    let frames = Frames { envelope, include_usage: input.include_usage };
    let (mut sent, mut texts) = (Vec::new(), [const { String::new() }; 4]);
    for choice in 0..4 {
        sent.extend_from_slice(&frames.role(choice));
    }
    for (choice, text, token) in &input.texts {
        let choice = usize::from(choice % 4);
        texts[choice].push_str(text);
        let logprobs = token.map(|bytes| {
            let token = TokenLogprob { bytes: bytes.to_vec(), logprob: -0.5 };
            [TokenLogprobs { token: token.clone(), top: vec![token] }]
        });
        sent.extend_from_slice(&frames.text(choice as u32, text, logprobs.as_ref().map(|all| &all[..])));
        sent.extend_from_slice(&KEEP_ALIVE);
    }
    for choice in 0..4 {
        sent.extend_from_slice(&frames.finish(choice, FinishReason::Stop));
    }
    sent.extend_from_slice(&frames.usage(&Usage::default()).unwrap_or_default());
    sent.extend_from_slice(&DONE);

    let mut read = Transcript::default();
    for piece in sent.chunks(usize::from(input.piece) + 1) {
        read.push(piece).expect("frames are read");
    }
    read.end().expect("no frame is cut off");
    assert!(read.done);
    assert_eq!(read.comments, input.texts.len());
    for (choice, text) in (0..).zip(&texts) {
        assert_eq!(&read.text_of(choice), text);
        assert_eq!(read.finish_reason_of(choice), Some("stop"));
    }
    let mut foreign = Transcript::default();
    let _ = foreign.push(input.foreign).and_then(|()| foreign.end());
});
