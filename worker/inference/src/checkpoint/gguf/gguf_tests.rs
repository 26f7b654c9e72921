use std::path::PathBuf;

use proptest::prelude::*;

use super::testing::{GgufBuilder, Item, write};
use super::*;

/// A file with a value of each common type, two tensors and a gap between them.
fn sample() -> GgufBuilder {
    GgufBuilder::new()
        .set("general.architecture", Item::Str("llama"))
        .set("llama.block_count", Item::U32(2))
        .set("llama.rope.freq_base", Item::F32(10000.0))
        .set("tokenizer.ggml.add_bos_token", Item::Bool(false))
        .set("tokenizer.ggml.tokens", Item::Strs(&["a".into(), String::new(), "ü".into()]))
        .set("tokenizer.ggml.token_type", Item::I32s(&[1, -1, 3]))
        .set("tokenizer.ggml.scores", Item::F32s(&[0.5]))
        .tensor_f32("output_norm.weight", &[3], &[1.0, -2.0, 0.5])
        .tensor("token_embd.weight", &[2, 32], GgmlType::Q8_0, &q8_0_rows())
}

/// Two rows: 0 to 31, and their halves.
fn q8_0_rows() -> Vec<u8> {
    [1.0, 0.5]
        .into_iter()
        .flat_map(|d| half::f16::from_f32(d).to_le_bytes().into_iter().chain(0..32))
        .collect()
}

fn open_error(bytes: &[u8]) -> String {
    let (_folder, path) = write(bytes);
    let message = GgufFile::open(&path).unwrap_err().to_string();
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    message
}

#[test]
fn metadata_and_tensors_are_read() {
    for version in [2, 3] {
        let (_folder, file) = sample().version(version).open();
        let metadata = file.metadata();
        assert_eq!(metadata.get_str("general.architecture").unwrap(), "llama");
        assert_eq!(metadata.get_u32("llama.block_count").unwrap(), 2);
        assert_eq!(metadata.get_f32("llama.rope.freq_base").unwrap(), 10000.0);
        assert!(!metadata.get_bool("tokenizer.ggml.add_bos_token").unwrap());
        assert_eq!(metadata.get_str_array("tokenizer.ggml.tokens").unwrap(), ["a", "", "ü"]);
        assert_eq!(metadata.get_i32_array("tokenizer.ggml.token_type").unwrap(), [1, -1, 3]);
        assert_eq!(metadata.get_f32_array("tokenizer.ggml.scores").unwrap(), [0.5]);
        let names: Vec<_> = file.tensors().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["output_norm.weight", "token_embd.weight"]);
        assert_eq!(file.read_f32("output_norm.weight").unwrap(), (vec![3], vec![1.0, -2.0, 0.5]));
        let (shape, numbers) = file.read_f32("token_embd.weight").unwrap();
        assert_eq!(shape, [2, 32]);
        let expected: Vec<f32> = (0..32).map(|i| i as f32).chain((0..32).map(|i| i as f32 * 0.5)).collect();
        assert_eq!(numbers, expected);
        assert_eq!(file.read_raw("token_embd.weight").unwrap(), q8_0_rows());
    }
}

#[test]
fn tensors_longer_than_a_chunk_are_read_whole() {
    let numbers: Vec<f32> = (0..600_000).map(|i| i as f32).collect();
    let (_folder, file) = GgufBuilder::new().tensor_f32("t", &[600, 1000], &numbers).open();
    assert!(numbers.len() * 4 > 2 * CHUNK_BYTES);
    assert_eq!(file.read_f32("t").unwrap(), (vec![600, 1000], numbers));
}

#[test]
fn alignment_is_the_files() {
    let builder = || GgufBuilder::new().tensor_f32("a", &[1], &[1.0]).tensor_f32("b", &[1], &[2.0]);
    for alignment in [1, 4, 256] {
        let (_folder, file) = builder().alignment(alignment).open();
        assert_eq!(file.read_f32("b").unwrap().1, [2.0], "{alignment}");
    }
    let (_folder, file) = builder().open();
    assert_eq!(file.read_f32("b").unwrap().1, [2.0]);
    let message = open_error(&builder().set("general.alignment", Item::U32(48)).bytes());
    assert!(message.contains("general.alignment is 48"), "{message}");
    let message = open_error(&builder().set("general.alignment", Item::U32(64)).bytes());
    assert!(message.contains("the tensor b is not aligned to 64 bytes"), "{message}");
}

#[test]
fn getters_name_the_key_and_what_is_wrong() {
    let (_folder, file) = sample().open();
    let metadata = file.metadata();
    let message = metadata.get_u32("llama.context_length").unwrap_err().to_string();
    assert!(message.contains("model.gguf: the metadata has no llama.context_length"), "{message}");
    assert_eq!(metadata.opt_u32("llama.context_length").unwrap(), None);
    let message = metadata.opt_u32("general.architecture").unwrap_err().to_string();
    assert!(message.contains("general.architecture is a string where an integer"), "{message}");
    assert!(metadata.get_str_array("tokenizer.ggml.scores").is_err());
    assert!(
        matches!(file.tensor_info("nope"), Err(GgufError::MissingTensor { tensor, .. }) if tensor == "nope")
    );
}

#[test]
fn integers_of_any_width_are_read_as_u32_if_they_fit() {
    let (_folder, file) = GgufBuilder::new()
        .set("u8", Item::Raw(0, &[200]))
        .set("i16", Item::Raw(3, &(-2_i16).to_le_bytes()))
        .set("u64", Item::Raw(10, &7_u64.to_le_bytes()))
        .set("large", Item::Raw(10, &(1_u64 << 32).to_le_bytes()))
        .open();
    let metadata = file.metadata();
    assert_eq!(metadata.get_u32("u8").unwrap(), 200);
    assert_eq!(metadata.get_u32("u64").unwrap(), 7);
    assert!(metadata.get_u32("i16").is_err());
    assert!(metadata.get_u32("large").is_err());
}

#[test]
fn other_formats_are_refused() {
    assert!(open_error(b"PK\x03\x04 something else entirely").contains("not a GGUF file"));
    assert!(open_error(&GgufBuilder::new().version(1).bytes()).contains("GGUF version 1 is not supported"));
    assert!(open_error(&GgufBuilder::new().version(4).bytes()).contains("GGUF version 4 is not supported"));
    assert!(open_error(&GgufBuilder::new().version(3_u32.swap_bytes()).bytes()).contains("big-endian"));
    assert!(open_error(b"").contains("truncated"));
    let missing = GgufFile::open(&PathBuf::from("/nonexistent/model.gguf")).unwrap_err();
    assert!(matches!(missing, GgufError::Io { .. }), "{missing}");
}

#[test]
fn unsupported_tensor_types_are_named_with_the_tensor() {
    for (id, name) in [(23, "IQ4_XS"), (4, "number 4"), (u32::MAX, "number 4294967295")] {
        let bytes = GgufBuilder::new().tensor_of_type("blk.0.attn_q.weight", &[256], id, &[0; 256]).bytes();
        let message = open_error(&bytes);
        assert!(message.contains(&format!("the tensor blk.0.attn_q.weight has type {name}")), "{message}");
        assert!(message.contains("Q4_1"), "{message}");
    }
}

#[test]
fn a_truncated_file_names_what_is_cut_off() {
    let bytes = sample().bytes();
    let message = open_error(&bytes[..bytes.len() - 1]);
    assert!(message.contains("truncated: the tensor token_embd.weight ends at byte"), "{message}");
    assert!(message.contains("pull the model again"), "{message}");
    for length in 0..bytes.len() {
        assert!(open_error(&bytes[..length]).contains("truncated"), "cut to {length}");
    }
}

#[test]
fn a_file_cut_after_it_was_opened_is_truncated_too() {
    let (_folder, path) = write(&sample().bytes());
    let file = GgufFile::open(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = file.read_f32("token_embd.weight").unwrap_err();
    assert!(matches!(&error, GgufError::Truncated { length: 100, .. }), "{error}");
}

#[test]
fn impossible_shapes_are_refused() {
    let refused = |shape: &[usize], dtype, expected: &str| {
        let message = open_error(&GgufBuilder::new().tensor("t", shape, dtype, &[0; 64]).bytes());
        assert!(message.contains(expected), "{shape:?}: {message}");
    };
    refused(&[], GgmlType::F32, "the tensor t has 0 dimensions");
    refused(&[1; 5], GgmlType::F32, "the tensor t has 5 dimensions");
    refused(&[4, 0], GgmlType::F32, "the tensor t has an impossible shape");
    refused(&[1 << 40, 1 << 40], GgmlType::F32, "the tensor t has an impossible shape");
    refused(&[usize::MAX], GgmlType::F32, "the tensor t has an impossible shape");
    refused(&[2, 33], GgmlType::Q8_0, "rows of 33, but Q8_0 comes in blocks of 32");
    refused(&[1 << 50], GgmlType::F32, "truncated: the tensor t");
}

#[test]
fn contradictions_are_refused() {
    let twice = GgufBuilder::new().tensor_f32("t", &[1], &[0.0]).tensor_f32("t", &[1], &[0.0]);
    assert!(open_error(&twice.bytes()).contains("has the tensor t twice"));
    let twice = GgufBuilder::new().set("k", Item::U32(0)).set("k", Item::U32(0));
    assert!(open_error(&twice.bytes()).contains("has k twice"));
    let value =
        |kind, payload: &[u8]| open_error(&GgufBuilder::new().set("k", Item::Raw(kind, payload)).bytes());
    assert!(value(13, &[]).contains("k has the unknown value type 13"));
    assert!(value(7, &[2]).contains("k has the truth value 2"));
    assert!(value(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF]).contains("k is not UTF-8"));
    assert!(value(9, &[[9, 0, 0, 0].as_slice(), &[0; 8]].concat()).contains("array of arrays"));
    let name = GgufBuilder::new().set("bell\u{7}", Item::U32(0));
    assert!(open_error(&name.bytes()).contains(r#""bell\u{7}""#));
}

/// Claims of more than the file can hold must fail before anything is allocated for them: the
/// allocations here would be exabytes.
#[test]
fn nothing_is_allocated_on_trust() {
    let huge = (u64::MAX / 2).to_le_bytes();
    let string = open_error(&GgufBuilder::new().set("k", Item::Raw(8, &huge)).bytes());
    assert!(string.contains("truncated: k ends"), "{string}");
    for kind in (0..=12_u32).filter(|&kind| kind != 9) {
        let payload = [kind.to_le_bytes().as_slice(), &huge].concat();
        let array = open_error(&GgufBuilder::new().set("k", Item::Raw(9, &payload)).bytes());
        assert!(array.contains("truncated: k ends"), "{kind}: {array}");
    }
    for (place, what) in [(8, "tensors"), (16, "metadata values")] {
        let mut bytes = GgufBuilder::new().bytes();
        bytes[place..place + 8].copy_from_slice(&huge);
        assert!(open_error(&bytes).contains(what));
    }
}

/// Opens a file and reads all that it claims to hold.
fn exhaust(bytes: &[u8]) {
    let (_folder, path) = write(bytes);
    let Ok(file) = GgufFile::open(&path) else { return };
    for tensor in file.tensors() {
        let (shape, numbers) = file.read_f32(&tensor.name).unwrap();
        assert_eq!(shape.iter().product::<usize>(), numbers.len());
        assert!(file.read_raw(&tensor.name).unwrap().len() <= bytes.len());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exhaust(&bytes);
        exhaust(&[b"GGUF\x03\0\0\0", bytes.as_slice()].concat());
    }

    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample().bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exhaust(&bytes);
    }
}
