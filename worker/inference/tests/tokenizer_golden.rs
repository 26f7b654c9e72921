//! The real model's chat template and tokenizer, against the golden prompts.

#![allow(clippy::unwrap_used)] // also in the functions that tests call

use std::collections::HashSet;

use emberline_inference::checkpoint::gguf::{GgmlType, GgufFile};
use emberline_inference::template::{ChatTemplate, Conversation};
use emberline_inference::tokenizer::ModelTokenizer;
use emberline_test_kit::golden;
use emberline_test_kit::paths::model_path;

fn model() -> GgufFile {
    GgufFile::open(&model_path().unwrap()).unwrap()
}

#[test]
fn prompts_are_rendered_as_in_the_golden_file() {
    let template = ChatTemplate::from_gguf(&model()).unwrap();
    for case in golden::cases().unwrap() {
        assert_eq!(template.render(&Conversation::new(&case.messages, 0)).unwrap(), case.prompt);
    }
}

#[test]
fn prompts_have_the_golden_token_ids() {
    let tokenizer = ModelTokenizer::from_gguf(&model()).unwrap();
    for case in golden::cases().unwrap() {
        assert_eq!(tokenizer.encode_prompt(&case.prompt).unwrap(), case.prompt_token_ids, "{}", case.prompt);
    }
}

#[test]
fn golden_answers_have_the_golden_text() {
    let tokenizer = ModelTokenizer::from_gguf(&model()).unwrap();
    for case in golden::cases().unwrap() {
        let bytes: Vec<u8> =
            case.greedy_token_ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), case.text);
    }
}

#[test]
fn any_text_comes_back_from_its_tokens() {
    let tokenizer = ModelTokenizer::from_gguf(&model()).unwrap();
    for text in [
        "It's 2024: we'll   see\n\n\t what 12345 tokens\r\nmake of it.  ",
        "naïve façade, Grüße aus Köln; 日本語のテキスト и русский 🙂👩‍👩‍👧",
        "fn main() { println!(\"{:?}\", 1..=3); }",
    ] {
        let ids = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }
}

#[test]
fn the_vocabulary_is_the_models() {
    let tokenizer = ModelTokenizer::from_gguf(&model()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    let ends: HashSet<u32> = tokenizer.end_of_generation().collect();
    assert_eq!(ends, HashSet::from([0, 2]), "<|endoftext|> and <|im_end|>");
    assert!(tokenizer.token_bytes(1).is_empty(), "<|im_start|> is no text");
    assert!(tokenizer.token_bytes(49152).is_empty());
}

#[test]
fn tensors_are_expanded_as_the_file_describes_them() {
    let file = model();
    let count = |dtype| file.tensors().filter(|tensor| tensor.dtype == dtype).count();
    assert_eq!((count(GgmlType::Q4_1), count(GgmlType::Q8_0), count(GgmlType::F32)), (210, 1, 61));
    for name in ["token_embd.weight", "blk.0.attn_k.weight", "output_norm.weight"] {
        let (shape, numbers) = file.read_f32(name).unwrap();
        let tensor = file.tensor_info(name).unwrap();
        assert_eq!((&shape, numbers.len()), (&tensor.shape, tensor.shape.iter().product()));
        assert!(numbers.iter().all(|number| number.is_finite() && number.abs() < 100.0), "{name}");
    }
    assert_eq!(file.tensor_info("token_embd.weight").unwrap().shape, [49152, 576]);
    assert_eq!(file.tensor_info("blk.0.attn_k.weight").unwrap().shape, [192, 576]);
}
