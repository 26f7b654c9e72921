//! Answers as streams: however tokens and the network cut a text, its reader has the same content,
//! calls and end.

#![no_main]

use arbitrary::Arbitrary;
use emberline_api::answer::Envelope;
use emberline_api::chat::ChatAnswer;
use emberline_api::parameters::StreamUsage;
use emberline_api::responses::ResponseSpec;
use emberline_api::token_details::TokenDetails;
use emberline_function::endpoints::chat::stream::ChatStream;
use emberline_function::endpoints::responses::{ResponseState, ResponseStream};
use emberline_function::relay::{Acceptance, Ending, Output, OutputLimits};
use emberline_function::response::ResponseWriter;
use emberline_function::response::sse::KEEP_ALIVE;
use emberline_function::response::usage::UsageCounter;
use emberline_protocol::event::{FinishReason, TokenLogprob, TokenLogprobs};
use emberline_protocol::job::ToolChoice;
use emberline_protocol::subject::JobId;
use emberline_protocol::tools::{TextBesideCalls, ToolFormat};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/kit/src/sse/transcript.rs"]
#[allow(dead_code)] // the tests use all of it
mod transcript;

use transcript::Transcript;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    format: u8,
    with_logprobs: bool,
    /// Bytes that arrive at once, less one.
    piece: u8,
    /// The number up to which a reader of a response has heard it.
    heard: u16,
    texts: Vec<&'a str>,
    /// What some other server sends.
    foreign: &'a [u8],
}

impl Input<'_> {
    fn format(&self) -> Option<ToolFormat> {
        match self.format % 4 {
            0 => None,
            1 => Some(ToolFormat::Hermes),
            2 => Some(ToolFormat::Llama),
            _ => Some(ToolFormat::Mistral),
        }
    }

    fn beside_calls(&self) -> TextBesideCalls {
        match self.format / 4 % 3 {
            0 => TextBesideCalls::None,
            1 => TextBesideCalls::Free,
            _ => TextBesideCalls::Formatted,
        }
    }

    fn limits(&self) -> OutputLimits {
        let logprobs = self.with_logprobs.then_some(0);
        OutputLimits { choices: 1, tokens: 64, logprobs, ids: self.with_logprobs, prompt: None }
    }

    /// What a relay tells of these texts.
    fn outputs(&self, texts: &[&str]) -> Vec<Output> {
        let (tool_format, beside_calls) = (self.format(), self.beside_calls());
        let mut outputs =
            vec![Output::Accepted(Acceptance { tool_format, beside_calls, ..Acceptance::default() })];
        for text in texts {
            let token = TokenLogprob { id: 1, bytes: text.as_bytes().to_vec(), logprob: -0.5 };
            let logprobs = self.with_logprobs.then(|| vec![TokenLogprobs { token, top: Vec::new() }]);
            let ids = self.with_logprobs.then(|| vec![1]);
            outputs.push(Output::Text { choice: 0, text: (*text).to_owned(), logprobs, ids, tokens: 1 });
        }
        outputs.push(Output::Finish { choice: 0, reason: FinishReason::Stop });
        outputs.push(Output::Done(Ending::default()));
        outputs
    }

    /// What reaches a client.
    fn read(&self, writer: &mut dyn ResponseWriter, outputs: Vec<Output>) -> Transcript {
        let mut sent = writer.begin().concat();
        for output in outputs {
            sent.extend_from_slice(&KEEP_ALIVE);
            sent.extend(writer.on_output(output).concat());
        }
        let mut read = Transcript::default();
        for piece in sent.chunks(usize::from(self.piece) + 1) {
            read.push(piece).expect("frames are read");
        }
        read
    }
}

fuzz_target!(|input: Input<'_>| {
    let text = input.texts.concat();
    let (cut, whole) = (chat(&input, &input.texts), chat(&input, &[&text]));
    assert_eq!(cut, whole);
    if input.format().is_none() {
        assert_eq!(cut.content, text);
    }
    response(&input, &text);
    let mut foreign = Transcript::default();
    let _ = foreign.push(input.foreign).and_then(|()| foreign.end());
});

/// What a client makes of a chat completion.
#[derive(Debug, Default, PartialEq)]
struct Message {
    content: String,
    /// Name and arguments.
    calls: Vec<(String, String)>,
    finish_reason: Option<String>,
}

fn chat(input: &Input<'_>, texts: &[&str]) -> Message {
    let envelope =
        Envelope { job: JobId::from_random(1), created: 2, model: "m".into(), fingerprint: "f".into() };
    let tool_choice = ToolChoice::Auto;
    let answer = ChatAnswer {
        envelope,
        metadata: None,
        tool_format: input.format(),
        beside_calls: input.beside_calls(),
        tool_choice,
        echo: None,
        details: TokenDetails::default(),
    };
    let stream = input.read(
        &mut ChatStream::new(answer, UsageCounter::new(StreamUsage::Last, &[]), input.limits()),
        input.outputs(texts),
    );
    assert!(stream.done);
    let mut message = Message { content: stream.text(), ..Message::default() };
    message.finish_reason = stream.finish_reason().map(str::to_owned);
    for choice in stream.choice(0) {
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("an index") as usize;
            let said = |name: &str| call["function"][name].as_str().unwrap_or_default();
            if index == message.calls.len() {
                message.calls.push((said("name").to_owned(), String::new()));
            }
            message.calls[index].1.push_str(said("arguments"));
        }
    }
    if input.with_logprobs {
        assert_eq!(stream.logprobs_of(0).len(), texts.len());
    }
    message
}

/// The events of a response, and those after one of them that was heard before.
fn response(input: &Input<'_>, text: &str) {
    let tell = |texts: &[&str], heard| {
        let state = ResponseState::new(JobId::from_random(1), 2, "m".into(), ResponseSpec::default());
        input.read(&mut ResponseStream::new(state, heard, input.limits()), input.outputs(texts))
    };
    let (cut, whole) = (tell(&input.texts, None), tell(&[text], None));
    assert_eq!(cut.chunks.last(), whole.chunks.last());
    assert_eq!(delta_bytes(&cut, 0), delta_bytes(&whole, 0));
    let heard = u64::from(input.heard);
    let rest = tell(&input.texts, Some(heard));
    assert!(rest.chunks.iter().all(|event| event["sequence_number"].as_u64() > Some(heard)));
    assert_eq!(delta_bytes(&rest, heard + 1), delta_bytes(&tell(&[text], Some(heard)), heard + 1));
}

/// All deltas, joined.
fn delta_bytes(stream: &Transcript, from: u64) -> String {
    let unheard = stream.chunks.iter().filter(|event| event["sequence_number"].as_u64() >= Some(from));
    unheard.filter_map(|event| event["delta"].as_str()).collect()
}
