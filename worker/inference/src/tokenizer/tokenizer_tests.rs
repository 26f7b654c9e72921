use proptest::prelude::*;

use super::*;
use crate::checkpoint::gguf::testing::{GgufBuilder, Item, byte_character};

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
    with_model("gpt2", &tokens, &types)
        .set("tokenizer.ggml.pre", Item::Str(pre))
        .set("tokenizer.ggml.merges", Item::Strs(&merges))
}

fn with_model(model: &str, tokens: &[String], types: &[i32]) -> GgufBuilder {
    GgufBuilder::new()
        .set("tokenizer.ggml.model", Item::Str(model))
        .set("tokenizer.ggml.tokens", Item::Strs(tokens))
        .set("tokenizer.ggml.token_type", Item::I32s(types))
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
    assert_eq!(of("dbrx", "1111aaaa aa!a"), ["11", "1", "1", "aaaa", " aa", "!a"]);
    assert_eq!(of("tekken", "1111aaaa aaAaa"), ["1", "1", "1", "1", "aaaa", " aa", "A", "aa"]);
    assert_eq!(of("gpt-4o", "1111aaaa aaAaa"), ["11", "1", "1", "aaaa", " aa", "A", "aa"]);
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
    let message = error(&with_model("bert", &["a".into()], &[1]));
    assert!(
        message.contains(r#"model.gguf: tokenizer.ggml.model is "bert", which is not supported"#),
        "{message}"
    );
    let message = error(&builder("viking", &[], &[]));
    assert!(message.contains(r#"tokenizer.ggml.pre is "viking""#) && message.contains("smollm"), "{message}");
    assert!(error(&GgufBuilder::new()).contains("has no tokenizer.ggml.model"));
}

#[test]
fn damaged_metadata_are_refused() {
    // Of these, "a b" makes something longer than any token.
    for merge in ["ab", "a Ω", "Ω a", "a b", "a b c"] {
        let merges = [merge.to_owned()];
        let tokens = with_model("gpt2", &["a".into(), "b".into()], &[1, 1])
            .set("tokenizer.ggml.pre", Item::Str("gpt-2"))
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

#[test]
fn the_first_token_is_written_once() {
    const A: u32 = 'a' as u32;
    let others = [("<s>", 3), ("</s>", 3)];
    let first = |pre: &str, adds: Option<bool>, text: &str| {
        let file = builder(pre, &[], &others).set("tokenizer.ggml.bos_token_id", Item::U32(256));
        let file = adds
            .into_iter()
            .fold(file, |file, adds| file.set("tokenizer.ggml.add_bos_token", Item::Bool(adds)));
        let (_folder, file) = file.open();
        ModelTokenizer::from_gguf(&file).unwrap().encode_prompt(text).unwrap()
    };
    assert_eq!(first("llama-bpe", None, "a"), [256, A]);
    assert_eq!(first("llama-bpe", None, "<s>a"), [256, A]);
    assert_eq!(first("llama-bpe", None, ""), [256]);
    assert_eq!(first("llama-bpe", Some(false), "a"), [A]);
    assert_eq!(first("smollm", None, "a"), [A]);
    assert_eq!(first("smollm", Some(true), "a<s>"), [256, A, 256]);
}

/// SentencePiece: `<unk>`, `<s>`, `</s>`, all bytes, then these pieces, the best first.
fn pieces_builder(model: &str, pieces: &[(&str, i32)]) -> GgufBuilder {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), 6);
    tokens.extend(pieces.iter().map(|(piece, _)| (*piece).to_owned()));
    types.extend(pieces.iter().map(|(_, kind)| kind));
    let scores: Vec<f32> =
        (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 258.0 - id as f32 }).collect();
    with_model(model, &tokens, &types)
        .set("tokenizer.ggml.scores", Item::F32s(&scores))
        .set("tokenizer.ggml.bos_token_id", Item::U32(1))
        .set("tokenizer.ggml.eos_token_id", Item::U32(2))
}

const PIECES: [(&str, i32); 9] =
    [("▁a", 1), ("bc", 1), ("ab", 1), ("abc", 1), ("▁", 1), ("a", 1), ("b", 1), ("c", 1), ("<mark>", 4)];

fn open_pieces(builder: &GgufBuilder) -> ModelTokenizer {
    let (_folder, file) = builder.open();
    ModelTokenizer::from_gguf(&file).unwrap()
}

#[test]
fn pieces_with_the_highest_scores_are_joined_first() {
    let tokenizer = open_pieces(&pieces_builder("llama", &PIECES));
    // bc is worth more than ab, ▁a more than both.
    assert_eq!(pieces(&tokenizer, "abc"), [" a", "bc"]);
    assert_eq!(pieces(&tokenizer, "cabc ab"), [" ", "c", "abc", " a", "b"]);
    assert_eq!(pieces(&tokenizer, "é\n"), [" ", "\u{fffd}", "\u{fffd}", "\n"]);
    assert!(tokenizer.encode("").unwrap().is_empty());
    // The space before a text is not part of an answer, others are.
    let ids = tokenizer.encode("a  a").unwrap();
    assert_eq!(pieces(&tokenizer, "a  a"), [" a", " ", " a"]);
    assert_eq!(tokenizer.first_token_bytes(ids[0]), b"a");
    assert_eq!(tokenizer.first_token_bytes(ids[1]), b"");
    assert_eq!(tokenizer.first_token_bytes(b'a'.into()), tokenizer.token_bytes(b'a'.into()));
}

/// The rule itself: join the best pair of neighbours, the leftmost of equals, until none is left.
fn join_pairs(pieces: &[String], text: &str) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let rank = |at: usize| pieces.iter().position(|piece| *piece == parts[at..at + 2].concat());
        let ranked = (0..parts.len().saturating_sub(1)).filter_map(|at| Some((rank(at)?, at)));
        let Some((_, at)) = ranked.min() else { return parts };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
}

proptest! {
    #[test]
    fn any_pieces_are_joined_by_the_rule(
        learned in prop::collection::btree_set("[ab▁]{2,4}", 0..12).prop_map(Vec::from_iter).prop_shuffle(),
        text in "[ab ]{0,40}",
    ) {
        let learned: Vec<String> = learned;
        let all = learned.iter().map(String::as_str).chain(["a", "b", "▁"]);
        let tokenizer = open_pieces(&pieces_builder("llama", &all.map(|piece| (piece, 1)).collect::<Vec<_>>()));
        let ids = tokenizer.encode(&text).unwrap();
        let wanted = match text.as_str() {
            "" => Vec::new(),
            text => join_pairs(&learned, &format!("▁{}", text.replace(' ', "▁"))),
        };
        let got: Vec<String> = ids.iter().map(|&id| tokenizer.inner.id_to_token(id).unwrap()).collect();
        prop_assert_eq!(got, wanted);
    }
}

#[test]
fn special_pieces_are_found_and_text_after_them_begins_anew() {
    let tokenizer = open_pieces(&pieces_builder("llama", &PIECES));
    assert_eq!(tokenizer.encode("<s>a<mark>a</s>").unwrap(), [1, 259, 267, 259, 2]);
    assert_eq!(tokenizer.token_bytes(267), b"<mark>");
    assert_eq!(tokenizer.token_bytes(1), b"");
    assert_eq!(tokenizer.encode_prompt("a").unwrap(), [1, 259]);
    let without = pieces_builder("llama", &PIECES)
        .set("tokenizer.ggml.add_space_prefix", Item::Bool(false))
        .set("tokenizer.ggml.add_bos_token", Item::Bool(false));
    let without = open_pieces(&without);
    assert_eq!(without.encode_prompt("a<s> a").unwrap(), [264, 1, 259]);
    assert_eq!(without.first_token_bytes(259), b" a");
}

#[test]
fn phi_3s_marks_take_the_white_space_after_them() {
    let pieces = [&PIECES[..], &[("<|user|>", 3), ("<|endoftext|>", 3)]].concat();
    let of = |architecture| {
        let file = pieces_builder("llama", &pieces).set("general.architecture", Item::Str(architecture));
        let tokenizer = open_pieces(&file);
        let ids = tokenizer.encode("<|user|>\n a<|endoftext|> a").unwrap();
        assert!(
            tokenizer.least_tokens(&format!("<|user|>{}", "\n".repeat(1000))) <= 1 || architecture == "llama"
        );
        ids
    };
    assert_eq!(of("phi3"), [268, 259, 269, 263, 259]);
    assert_eq!(of("llama"), [268, 263, 13, 259, 269, 263, 259]);
}

#[test]
fn unigram_takes_the_pieces_with_the_highest_sum() {
    let file = pieces_builder("t5", &PIECES)
        .set("tokenizer.ggml.add_space_prefix", Item::Bool(true))
        .set("tokenizer.ggml.remove_extra_whitespaces", Item::Bool(true));
    let tokenizer = open_pieces(&file);
    // ▁a bc is worth -3, ▁ abc -9.
    assert_eq!(pieces(&tokenizer, "  abc   abc "), [" a", "bc", " a", "bc"]);
    assert_eq!(pieces(&tokenizer, "é"), [" ", "\u{fffd}", "\u{fffd}"]);
    assert_eq!(tokenizer.least_tokens("abc"), 0, "nothing is known about how much it leaves out");
}

#[test]
fn damaged_pieces_are_refused() {
    let tokens = ["<unk>".to_owned(), "a".to_owned()];
    for (scores, wanted) in [(&[0.0_f32][..], "2 tokens but 1 scores"), (&[0.0, f32::NAN], "score is NaN")] {
        let file = with_model("llama", &tokens, &[2, 1]).set("tokenizer.ggml.scores", Item::F32s(scores));
        let message = error(&file);
        assert!(message.contains(wanted), "{message}");
    }
    let file =
        |model| with_model(model, &tokens, &[2, 1]).set("tokenizer.ggml.scores", Item::F32s(&[0.0, 1.0]));
    let message = error(&file("llama").set("tokenizer.ggml.unknown_token_id", Item::U32(2)));
    assert!(message.contains("unknown_token_id is 2, but there are 2 tokens"), "{message}");
    for (key, item) in [
        ("tokenizer.ggml.precompiled_charsmap", Item::Str("x")),
        ("tokenizer.ggml.precompiled_charsmap", Item::Raw(9, b"\0\0\0\0\x02\0\0\0\0\0\0\0\x01\x02")),
    ] {
        assert!(error(&file("t5").set(key, item)).contains("the tokenizer is damaged"));
    }
}

/// A folder with a byte-level tokenizer of few tokens and these other files.
fn folder(
    change: impl FnOnce(&mut serde_json::Value),
    files: &[(&str, serde_json::Value)],
) -> tempfile::TempDir {
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "added_tokens": [
            {"id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 5, "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false},
            {"id": 6, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        ],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": [["a", "b"]]},
    });
    change(&mut json);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    for (name, json) in files {
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    folder
}

fn from_folder(
    change: impl FnOnce(&mut serde_json::Value),
    files: &[(&str, serde_json::Value)],
) -> Result<ModelTokenizer, TokenizerError> {
    ModelTokenizer::from_hf_dir(folder(change, files).path())
}

#[test]
fn a_folder_says_everything() {
    let config =
        serde_json::json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true});
    let files = [
        ("tokenizer_config.json", config),
        ("generation_config.json", serde_json::json!({"eos_token_id": [5, 3]})),
        ("config.json", serde_json::json!({"eos_token_id": 1})),
    ];
    let tokenizer = from_folder(|_| (), &files).unwrap();
    assert_eq!(tokenizer.encode_prompt("ab ba<think></s>").unwrap(), [4, 3, 2, 1, 0, 5, 6]);
    assert_eq!(tokenizer.encode_prompt("<s>a").unwrap(), [4, 0]);
    let read: Vec<&[u8]> = (0..8).map(|id| tokenizer.token_bytes(id)).collect();
    assert_eq!(read, [&b"a"[..], b"b", b" ", b"ab", b"", b"<think>", b"", b""]);
    assert_eq!(tokenizer.vocab_size(), 7);
    assert_eq!(tokenizer.end_of_generation().collect::<HashSet<_>>(), HashSet::from([1, 3, 5, 6]));
    assert_eq!(tokenizer.least_tokens("aaaaaaaa"), 0, "what has no token is left out");
}

#[test]
fn what_training_left_behind_is_ignored() {
    let tokenizer = from_folder(
        |json| {
            json["truncation"] = serde_json::json!(
                {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
            json["padding"] = serde_json::json!({"strategy": {"Fixed": 8}, "direction": "Right",
                "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
        },
        &[],
    );
    assert_eq!(tokenizer.unwrap().encode("b b b").unwrap(), [1, 2, 1, 2, 1]);
}

#[test]
fn the_post_processor_adds_the_first_token_where_the_settings_are_silent() {
    let template = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}});
    let prompt = |config: serde_json::Value| {
        let files = [("tokenizer_config.json", config)];
        let tokenizer = from_folder(|json| json["post_processor"] = template.clone(), &files).unwrap();
        tokenizer.encode_prompt("a").unwrap()
    };
    assert_eq!(prompt(serde_json::json!({"bos_token": "<s>"})), [4, 0]);
    assert_eq!(prompt(serde_json::json!({"bos_token": "<s>", "add_bos_token": false})), [0]);
    assert_eq!(prompt(serde_json::json!({"bos_token": null})), [0]);
}

#[test]
fn decoders_that_no_family_has_are_refused() {
    let read = |decoder: serde_json::Value| {
        from_folder(|json| json["decoder"] = decoder, &[])
            .map(|tokenizer| tokenizer.first_token_bytes(2).to_vec())
    };
    let space = serde_json::json!({"type": "Replace", "pattern": {"String": "Ġ"}, "content": " "});
    let strip = serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let sequence = |steps: &[&serde_json::Value]| serde_json::json!({"type": "Sequence", "decoders": steps});
    let fuse = serde_json::json!({"type": "Fuse"});
    let metaspace = |scheme: &str| serde_json::json!({"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": scheme, "split": true});
    assert_eq!(read(sequence(&[&space, &fuse])).unwrap(), b" ");
    assert_eq!(read(sequence(&[&space, &fuse, &strip])).unwrap(), b"");
    assert_eq!(read(metaspace("first")).unwrap(), b"");
    assert_eq!(read(metaspace("never")).unwrap(), b" ");
    for other in [
        serde_json::Value::Null,
        serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        // Each token would lose a space.
        sequence(&[&space, &strip]),
        sequence(&[&fuse, &strip, &space]),
    ] {
        let message = read(other).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json: decoder is "), "{message}");
    }
}

#[test]
fn damaged_folders_are_refused() {
    let message = |result: Result<ModelTokenizer, TokenizerError>| result.unwrap_err().to_string();
    let empty = tempfile::tempdir().unwrap();
    let missing = message(ModelTokenizer::from_hf_dir(empty.path()));
    assert!(missing.contains("tokenizer.json is missing"), "{missing}");
    let unparsed = message(from_folder(|json| json["model"]["type"] = "BPX".into(), &[]));
    assert!(unparsed.contains("tokenizer.json: the tokenizer is damaged"), "{unparsed}");
    let longer =
        message(from_folder(|json| json["model"]["merges"] = serde_json::json!([["ab", "ab"]]), &[]));
    assert!(longer.contains("its merges make what is no token"), "{longer}");
    // The library would count on from the vocabulary's end.
    let moved = message(from_folder(|json| json["added_tokens"][1]["id"] = 8.into(), &[]));
    assert!(moved.contains("the token <think> has the id 8 where 5 is the next"), "{moved}");
    let far = message(from_folder(
        |json| {
            json["added_tokens"] = serde_json::json!([]);
            json["model"]["vocab"]["x"] = u32::MAX.into();
        },
        &[],
    ));
    assert!(far.contains("it has a token 4294967295"), "{far}");
    let files = [("generation_config.json", serde_json::json!({"eos_token_id": 7}))];
    let ends = message(from_folder(|_| (), &files));
    assert!(ends.contains("generation_config.json") && ends.contains("eos_token_id is 7"), "{ends}");
    let files = [("config.json", serde_json::json!({"eos_token_id": "</s>"}))];
    assert!(message(from_folder(|_| (), &files)).contains("config.json is not valid"));
}

/// SentencePiece sees a text as one word.
#[test]
fn long_texts_are_encoded_by_pieces() {
    for model in ["llama", "t5"] {
        let file = pieces_builder(model, &PIECES).set("tokenizer.ggml.add_space_prefix", Item::Bool(true));
        let tokenizer = open_pieces(&file);
        for (part, tokens) in [("abc ", 2), ("a", 1), (" ", 1), ("é", 2)] {
            let ids = tokenizer.encode(&part.repeat(50_000)).unwrap();
            assert!(ids.len().abs_diff(50_000 * tokens) <= 1, "{model} {part:?}: {} tokens", ids.len());
        }
    }
}
