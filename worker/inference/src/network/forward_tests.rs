use super::*;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf::testing::{GgufBuilder, Item};
use crate::device::ComputeDevice;
use crate::network::NetworkError;
use crate::network::testing::{self, Tensors};

const BLOCKS: usize = 8;

fn tiny() -> Network {
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    let mut network = Network::from_gguf(&file, &ComputeDevice::cpu()).unwrap();
    network.allocate_cache(BLOCKS, KvType::F32).unwrap();
    network
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 37 + 5) % testing::VOCABULARY) as u32).collect()
}

/// A span with the blocks `0..BLOCKS`.
fn span(tokens: &[u32], start: usize) -> StepSpan<'_> {
    StepSpan { tokens, start, blocks: &[0, 1, 2, 3, 4, 5, 6, 7], logit_rows: 1 }
}

fn logits(network: &mut Network, spans: &[StepSpan<'_>]) -> Vec<f32> {
    network.forward(spans).unwrap().unwrap().into_host().unwrap()
}

fn assert_close(got: &[f32], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((f64::from(*got) - wanted).abs() < 1e-3, "{got} instead of {wanted}");
    }
}

#[test]
fn a_prompt_has_the_logits_of_a_plain_implementation() {
    let (mut network, tensors) = (tiny(), testing::tensors());
    for count in [1, 2, 7, 40] {
        let got = logits(&mut network, &[span(&tokens(count), 0)]);
        assert_close(&got, &testing::reference(&tensors, &tokens(count)));
    }
}

#[test]
fn decoding_goes_on_from_the_cache() {
    let (mut network, tensors, tokens) = (tiny(), testing::tensors(), tokens(40));
    network.forward(&[span(&tokens[..9], 0)]).unwrap();
    network.forward(&[span(&tokens[9..37], 9)]).unwrap();
    for at in 37..40 {
        let got = logits(&mut network, &[span(&tokens[at..=at], at)]);
        assert_close(&got, &testing::reference(&tensors, &tokens[..=at]));
    }
}

#[test]
fn only_spans_that_want_logits_have_rows() {
    let (mut network, tensors) = (tiny(), testing::tensors());
    let (a, b, c) = (tokens(5), tokens(20), tokens(3));
    let spans = [
        StepSpan { blocks: &[7], ..span(&a, 0) },
        StepSpan { blocks: &[2, 0], logit_rows: 0, ..span(&b, 0) },
        StepSpan { blocks: &[4], ..span(&c, 0) },
    ];
    let logits = network.forward(&spans).unwrap().unwrap();
    assert_eq!((logits.rows(), logits.vocabulary()), (2, testing::VOCABULARY));
    assert_close(&logits.select(&[1]).into_host().unwrap(), &testing::reference(&tensors, &c));
    let numbers = logits.into_host().unwrap();
    assert_close(&numbers[..testing::VOCABULARY], &testing::reference(&tensors, &a));
    assert!(network.forward(&spans[1..2]).unwrap().is_none());
    assert!(network.forward(&[]).unwrap().is_none());
}

#[test]
fn a_span_can_have_logits_after_several_of_its_tokens() {
    let (mut network, tensors, tokens, other) = (tiny(), testing::tensors(), tokens(20), tokens(3));
    let spans = [
        StepSpan { blocks: &[2, 0], logit_rows: 4, ..span(&tokens, 0) },
        StepSpan { blocks: &[7], ..span(&other, 0) },
    ];
    let logits = network.forward(&spans).unwrap().unwrap();
    assert_eq!(logits.rows(), 5);
    for (row, end) in (17..=20).enumerate() {
        let got = logits.select(&[row]).into_host().unwrap();
        assert_close(&got, &testing::reference(&tensors, &tokens[..end]));
    }
    assert_close(&logits.select(&[4]).into_host().unwrap(), &testing::reference(&tensors, &other));
}

#[test]
fn copied_blocks_continue_a_sequence() {
    let (mut network, tensors, tokens) = (tiny(), testing::tensors(), tokens(20));
    network.forward(&[span(&tokens[..19], 0)]).unwrap();
    network.copy_blocks(&[(1, 5)]);
    let fork = StepSpan { blocks: &[0, 5], ..span(&tokens[19..], 19) };
    assert_close(&logits(&mut network, &[fork]), &testing::reference(&tensors, &tokens));
}

#[test]
fn the_most_probable_token_is_picked_on_the_device() {
    let (mut network, tensors) = (tiny(), testing::tensors());
    let logits = network.forward(&[span(&tokens(7), 0)]).unwrap().unwrap();
    let greedy =
        emberline_kernels::SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, random: 0.0 };
    let wanted = testing::reference(&tensors, &tokens(7));
    let wanted = wanted.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(logits.sample(&[greedy]).unwrap(), [wanted as u32]);
    assert!(logits.sample(&[]).is_err());
}

#[test]
fn spans_outside_of_the_pool_are_refused() {
    let mut network = tiny();
    let many = tokens(testing::CONTEXT + 1);
    for (wrong, what) in [
        (span(&[], 0), "no tokens"),
        (StepSpan { blocks: &[0], ..span(&many[..17], 0) }, "behind its 1 blocks"),
        (StepSpan { blocks: &[8], ..span(&many[..1], 0) }, "block 8 of 8"),
        (span(&many, 0), "context of 96"),
        (span(&many[..1], usize::MAX), "behind"),
        (span(&[testing::VOCABULARY as u32], 0), "token 258"),
        (StepSpan { logit_rows: 3, ..span(&many[..2], 0) }, "3 rows of logits after 2 tokens"),
    ] {
        let error = network.forward(&[wrong]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    let mut network = Network::from_gguf(&file, &ComputeDevice::cpu()).unwrap();
    assert!(network.forward(&[span(&many[..1], 0)]).is_err());
}

#[test]
fn a_new_pool_replaces_the_last() {
    let (mut network, tensors) = (tiny(), testing::tensors());
    let tokens = tokens(40);
    network.forward(&[span(&tokens, 0)]).unwrap();
    network.allocate_cache(3, KvType::F32).unwrap();
    assert_close(&logits(&mut network, &[span(&tokens, 0)]), &testing::reference(&tensors, &tokens));
    let per_block = testing::LAYERS * 2 * testing::KV_HEADS * testing::HEAD_DIM * 16 * 4;
    assert_eq!(network.block_bytes(KvType::F32), per_block as u64);
}

fn refused(builder: &GgufBuilder) -> NetworkError {
    let (_folder, file) = builder.open();
    Network::from_gguf(&file, &ComputeDevice::cpu()).unwrap_err()
}

fn changed(change: impl FnOnce(&mut Tensors)) -> GgufBuilder {
    let mut tensors = testing::tensors();
    change(&mut tensors);
    testing::builder(&tensors)
}

#[test]
fn a_missing_tensor_is_named() {
    let error = refused(&changed(|tensors| tensors.retain(|(name, ..)| name != "blk.1.ffn_up.weight")));
    assert!(matches!(error, NetworkError::Checkpoint(CheckpointError::Gguf(_))), "{error}");
    for part in ["model.gguf", "blk.1.ffn_up.weight"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let error = refused(&changed(|tensors| tensors[3].1.reverse()));
    let NetworkError::Shape { tensor, found, expected, .. } = error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), found, expected), ("blk.0.attn_k.weight", vec![16, 8], vec![8, 16]));
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let error = refused(&changed(|tensors| tensors[4].2[3] = f32::NAN));
    assert!(
        matches!(&error, NetworkError::NotFinite { tensor, .. } if tensor == "blk.0.attn_v.weight"),
        "{error}"
    );
}

#[test]
fn a_tensor_that_would_be_ignored_is_refused() {
    let sinks = ("blk.0.attn_sinks.weight".to_owned(), vec![4], vec![0.5; 4]);
    let error = refused(&changed(|tensors| tensors.push(sinks)));
    assert!(
        matches!(&error, NetworkError::UnknownTensor { tensor, .. } if tensor == "blk.0.attn_sinks.weight"),
        "{error}"
    );
}

#[test]
fn another_architecture_is_refused() {
    let error = refused(&GgufBuilder::new().set("general.architecture", Item::Str("mamba")));
    assert!(matches!(&error, NetworkError::Architecture { found, .. } if found == "mamba"), "{error}");
}

#[test]
fn impossible_dimensions_are_refused() {
    for (key, value, named) in [
        ("llama.attention.head_count_kv", 3, "the number of key/value heads"),
        ("llama.attention.head_count", 0, "llama.attention.head_count"),
        ("llama.block_count", u32::MAX, "llama.block_count"),
        ("llama.rope.dimension_count", 2, "llama.rope.dimension_count"),
        ("llama.attention.key_length", 5, "the number of rotated components"),
    ] {
        let error = refused(&testing::builder_with(&testing::tensors(), &[(key, value)]));
        let NetworkError::Setting { key, .. } = &error else { panic!("{key}: {error}") };
        assert_eq!(key, named);
        assert!(error.to_string().contains("model.gguf"), "{error}");
    }
}

#[test]
fn tensors_beyond_the_device_limit_are_split_and_compute_the_same() {
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    let limited = |bytes| {
        let device = ComputeDevice { max_buffer_bytes: Some(bytes), ..ComputeDevice::cpu() };
        Network::from_gguf(&file, &device)
    };
    let mut split = limited(300).unwrap();
    split.allocate_cache(BLOCKS, KvType::F32).unwrap();
    let tokens = tokens(9);
    assert_eq!(logits(&mut split, &[span(&tokens, 0)]), logits(&mut tiny(), &[span(&tokens, 0)]));
    // A row is not split.
    let error = limited(50).unwrap_err();
    let NetworkError::Matrix { tensor, source, .. } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), source.to_string().contains("at most 50")), ("token_embd.weight", true));
}

/// Infinite numbers in the cache would make all logits of the sequence numbers that are none.
#[test]
fn values_that_a_cache_of_halves_can_not_hold_are_clamped_and_told_of() {
    let mut tensors = testing::tensors();
    let values = tensors.iter_mut().find(|(name, ..)| name == "blk.0.attn_v.weight").unwrap();
    values.2.iter_mut().for_each(|weight| *weight *= 1e6);
    let (_folder, file) = testing::builder(&tensors).open();
    let mut network = Network::from_gguf(&file, &ComputeDevice::cpu()).unwrap();
    for (stored, clamps) in [(KvType::F32, false), (KvType::F16, true)] {
        network.allocate_cache(BLOCKS, stored).unwrap();
        let logits = logits(&mut network, &[span(&tokens(7), 0)]);
        assert!(logits.iter().all(|logit| logit.is_finite()));
        assert_eq!(network.has_clamped(), clamps, "{stored:?}");
    }
}

#[test]
fn a_cache_of_halves_takes_half_and_computes_nearly_the_same() {
    let (mut network, tensors) = (tiny(), testing::tensors());
    let singles = network.memory(1, 1).cache;
    network.allocate_cache(BLOCKS, KvType::F16).unwrap();
    let block = network.block_bytes(KvType::F16);
    assert_eq!(singles - network.memory(1, 1).cache, BLOCKS as u64 * block);
    let tokens = tokens(40);
    network.forward(&[span(&tokens[..39], 0)]).unwrap();
    let got = logits(&mut network, &[span(&tokens[39..], 39)]);
    for (got, wanted) in got.iter().zip(testing::reference(&tensors, &tokens)) {
        assert!((f64::from(*got) - wanted).abs() < 5e-3, "{got} instead of {wanted}");
    }
}
