use super::*;
use crate::gguf::testing::{GgufBuilder, Item, byte_character};

/// The 256 bytes, then what `merges` makes, then the others with their types.
fn builder(pre: &str, merges: &[&str], others: &[(&str, i32)]) -> GgufBuilder {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_character(byte).to_string()).collect();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    for &(token, kind) in others {
        tokens.push(token.to_owned());
        types.push(kind);
    }
    let merges: Vec<String> = merges.iter().map(|&merge| merge.to_owned()).collect();
    GgufBuilder::new()
        .set("tokenizer.ggml.model", Item::Str("gpt2"))
        .set("tokenizer.ggml.pre", Item::Str(pre))
        .set("tokenizer.ggml.tokens", Item::Strs(&tokens))
        .set("tokenizer.ggml.token_type", Item::I32s(&types))
        .set("tokenizer.ggml.merges", Item::Strs(&merges))
}

fn tokenizer(pre: &str, merges: &[&str], others: &[(&str, i32)]) -> ModelTokenizer {
    let (_folder, file) = builder(pre, merges, others).open();
    ModelTokenizer::from_gguf(&file).unwrap()
}

fn error(builder: &GgufBuilder) -> String {
    let (_folder, file) = builder.open();
    ModelTokenizer::from_gguf(&file).unwrap_err().to_string()
}

/// What each token of `text` stands for.
fn pieces(tokenizer: &ModelTokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    ids.iter().map(|&id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned()).collect()
}

#[test]
fn merges_are_applied_in_their_order() {
    let tokenizer = tokenizer("gpt-2", &["a b", "b c", "ab c", "Ġ ab"], &[]);
    assert_eq!(pieces(&tokenizer, "abc bc ab"), ["abc", " ", "bc", " ab"]);
    assert_eq!(tokenizer.encode("é").unwrap(), [0xC3, 0xA9]);
    assert!(tokenizer.encode("").unwrap().is_empty());
}

/// All digits and all letters merge if the split lets them.
const DIGITS_AND_LETTERS: [&str; 6] = ["1 1", "11 11", "a a", "aa aa", "Ġ aa", "! a"];

#[test]
fn each_way_of_splitting_has_its_own_words() {
    let of = |pre, text: &str| pieces(&tokenizer(pre, &DIGITS_AND_LETTERS, &[]), text);
    assert_eq!(of("gpt-2", "1111aaaa aa!a"), ["1111", "aaaa", " aa", "!", "a"]);
    assert_eq!(of("smollm", "1111aaaa aa!a"), ["1", "1", "1", "1", "aaaa", " aa", "!", "a"]);
    assert_eq!(of("default", "1111aaaa aa!a"), ["11", "1", "1", "aaaa", " aa", "!", "a"]);
    assert_eq!(of("llama-bpe", "1111aaaa aa!a"), ["11", "1", "1", "aaaa", " aa", "!a"]);
    assert_eq!(of("qwen2", "1111aaaa aa!a"), ["1", "1", "1", "1", "aaaa", " aa", "!a"]);
}

#[test]
fn qwen2_composes_characters_and_the_others_do_not() {
    assert_eq!(tokenizer("qwen2", &[], &[]).encode("e\u{301}").unwrap(), [0xC3, 0xA9]);
    assert_eq!(tokenizer("gpt-2", &[], &[]).encode("e\u{301}").unwrap(), [b'e'.into(), 0xCC, 0x81]);
}

#[test]
fn llama_takes_whole_words_before_merging() {
    // "aaa" is a token that no merge makes.
    let words = [("aaa", 1)];
    assert_eq!(pieces(&tokenizer("llama-bpe", &["a a"], &words), "aaa"), ["aaa"]);
    assert_eq!(pieces(&tokenizer("gpt-2", &["a a"], &words), "aaa"), ["aa", "a"]);
}

#[test]
fn special_tokens_are_found_and_have_no_text() {
    let others = [("<|im_start|>", 3), ("<|im_end|>", 3), ("<think>", 4), ("[unused]", 5)];
    let tokenizer = tokenizer("smollm", &[], &others);
    assert_eq!(tokenizer.encode("<|im_start|>a<think><|im_end|>").unwrap(), [256, b'a'.into(), 258, 257]);
    assert_eq!(tokenizer.token_bytes(256), b"");
    assert_eq!(tokenizer.token_bytes(258), b"<think>");
    assert_eq!(tokenizer.encode("[unused]").unwrap().len(), "[unused]".len());
    assert_eq!(tokenizer.vocab_size(), 260);
}

#[test]
fn ends_come_from_the_metadata_and_from_names() {
    let others = [("<|eot_id|>", 3), ("</stop>", 3), ("<|im_end|>", 1), ("<other>", 3)];
    let (_folder, file) =
        builder("smollm", &[], &others).set("tokenizer.ggml.eos_token_id", Item::U32(257)).open();
    let tokenizer = ModelTokenizer::from_gguf(&file).unwrap();
    let ends: HashSet<u32> = tokenizer.end_of_generation().collect();
    assert_eq!(ends, HashSet::from([256, 257]), "a name counts only for a special token");
}

#[test]
fn least_tokens_is_a_lower_bound_that_is_reached() {
    let others = [("<|im_start|>", 3)];
    let plain = tokenizer("smollm", &["a a", "aa aa"], &others);
    for text in ["", "a", "aaaaaaaa", "<|im_start|><|im_start|>", "aaaaé aaaa 1234"] {
        assert!(plain.least_tokens(text) <= plain.encode(text).unwrap().len(), "{text}");
    }
    assert_eq!(plain.least_tokens("<|im_start|><|im_start|>"), 2);
    assert_eq!(plain.least_tokens(&"a".repeat(1200)), 100);
    let composing = tokenizer("qwen2", &[], &[]);
    let text = "\u{3b9}\u{308}\u{301}".repeat(100);
    assert!(composing.least_tokens(&text) <= composing.encode(&text).unwrap().len());
}

#[test]
fn what_is_not_supported_is_named() {
    let message = error(&GgufBuilder::new().set("tokenizer.ggml.model", Item::Str("llama")));
    assert!(
        message.contains(r#"model.gguf: tokenizer.ggml.model is "llama", which is not supported"#),
        "{message}"
    );
    let message = error(&builder("tekken", &[], &[]));
    assert!(message.contains(r#"tokenizer.ggml.pre is "tekken""#) && message.contains("smollm"), "{message}");
    assert!(error(&GgufBuilder::new()).contains("has no tokenizer.ggml.model"));
}

#[test]
fn damaged_metadata_are_refused() {
    // Of these, "a b" makes something longer than any token.
    for merge in ["ab", "a Ω", "Ω a", "a b", "a b c"] {
        let merges = [merge.to_owned()];
        let tokens = GgufBuilder::new()
            .set("tokenizer.ggml.model", Item::Str("gpt2"))
            .set("tokenizer.ggml.pre", Item::Str("gpt-2"))
            .set("tokenizer.ggml.tokens", Item::Strs(&["a".into(), "b".into()]))
            .set("tokenizer.ggml.token_type", Item::I32s(&[1, 1]))
            .set("tokenizer.ggml.merges", Item::Strs(&merges));
        let message = error(&tokens);
        assert!(message.contains(&format!("the merge {merge:?}")), "{message}");
    }
    let message = error(&builder("gpt-2", &[], &[]).set("tokenizer.ggml.eos_token_id", Item::U32(256)));
    assert!(message.contains("tokenizer.ggml.eos_token_id is 256, but there are 256 tokens"), "{message}");
}

/// Runs of one character that a client can send, up to the body limit, are neither slow nor lost.
#[test]
fn long_runs_are_encoded() {
    let tokenizer = tokenizer("llama-bpe", &["Ġ Ġ", "ĠĠ ĠĠ", "a a", "aa aa"], &[]);
    for (run, tokens) in [(" ", 100_000 / 4), ("a", 100_000 / 4), ("\n", 100_000), ("!", 100_000)] {
        let text = format!("{}x", run.repeat(100_000));
        let ids = tokenizer.encode(&text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
        assert!(ids.len().abs_diff(tokens) <= 4, "{run:?}: {} tokens", ids.len());
    }
}
