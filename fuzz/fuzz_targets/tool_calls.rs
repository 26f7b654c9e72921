//! Calls of functions in a model's text: how it is cut makes no difference, calls have their parts
//! in order, and text without calls is content, to the letter.

#![no_main]

use arbitrary::Arbitrary;
use emberline_protocol::tools::{AnswerPart, TextBesideCalls, ToolCallReader, ToolFormat};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    format: u8,
    texts: Vec<&'a str>,
}

/// What was read: content, and of each call its name, arguments and whether it has ended.
#[derive(Debug, Default, PartialEq)]
struct Read {
    content: String,
    calls: Vec<(String, String, bool)>,
}

fuzz_target!(|input: Input<'_>| {
    let format = match input.format % 3 {
        0 => ToolFormat::Hermes,
        1 => ToolFormat::Llama,
        _ => ToolFormat::Mistral,
    };
    let text = input.texts.concat();
    let cut = read(format, &input.texts);
    assert_eq!(cut, read(format, &[&text]));
    if cut.calls.is_empty() {
        assert_eq!(cut.content, text);
    }
});

fn read(format: ToolFormat, texts: &[&str]) -> Read {
    let mut reader = ToolCallReader::new(format, TextBesideCalls::default());
    let mut pieces: Vec<AnswerPart> = texts.iter().flat_map(|text| reader.push(text)).collect();
    pieces.extend(reader.finish());
    let mut read = Read::default();
    for piece in pieces {
        match piece {
            AnswerPart::Content(text) => read.content.push_str(&text),
            AnswerPart::CallStart { index, name } => {
                assert!(read.calls.last().is_none_or(|(.., ended)| *ended), "calls within calls");
                assert_eq!(index as usize, read.calls.len());
                read.calls.push((name, String::new(), false));
            }
            AnswerPart::Arguments { index, text } => {
                let (_, arguments, ended) = &mut read.calls[index as usize];
                assert!(!*ended);
                arguments.push_str(&text);
            }
            AnswerPart::CallEnd { index } => {
                assert!(!std::mem::replace(&mut read.calls[index as usize].2, true));
            }
        }
    }
    assert_eq!(reader.calls() as usize, read.calls.len());
    assert!(read.calls.iter().all(|(.., ended)| *ended));
    read
}
