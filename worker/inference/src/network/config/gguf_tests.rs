use std::path::Path;

use super::*;
use crate::checkpoint::gguf::testing::{GgufBuilder, Item};
use crate::checkpoint::hf::CONFIG_FILE;
use crate::checkpoint::{SafetensorsFolder, TensorSource};
use crate::device::ComputeDevice;
use crate::network::{Network, StepSpan};

/// A file of an architecture with the settings of a small network, and others.
fn file(
    architecture: &str,
    layers: u32,
    more: &[(&str, Item<'_>)],
) -> Result<(ModelConfig, Layout), NetworkError> {
    let sizes = [
        ("block_count", layers),
        ("context_length", 1000),
        ("embedding_length", 64),
        ("feed_forward_length", 128),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    let file = GgufBuilder::new().set("general.architecture", Item::Str(architecture));
    let file = sizes
        .iter()
        .filter(|(key, _)| more.iter().all(|(changed, _)| changed != key))
        .fold(file, |file, (key, value)| file.set(&format!("{architecture}.{key}"), Item::U32(*value)));
    let file = more
        .iter()
        .fold(file, |file, (key, item)| file.set(&format!("{architecture}.{key}"), *item))
        .set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Item::F32(1e-6));
    let (_folder, file) = file.tensor_f32("token_embd.weight", &[1, 64], &[0.0; 64]).open();
    Layout::from_gguf(&file)
}

fn config(architecture: &str, layers: u32, more: &[(&str, Item<'_>)]) -> ModelConfig {
    file(architecture, layers, more).unwrap_or_else(|error| panic!("{error}")).0
}

fn first_frequency(config: &ModelConfig) -> f64 {
    config.rotaries[0].frequencies[0]
}

#[test]
fn architectures_differ_as_their_families_do() {
    let llama = config("llama", 2, &[]);
    assert_eq!((llama.head_dim, llama.score_scale, llama.vocabulary), (16, 0.25, 1));
    assert!(llama.tied_embedding && !llama.head_norm && !llama.qkv_bias);
    let qwen = config("qwen3", 2, &[("attention.key_length", Item::U32(32))]);
    assert_eq!((qwen.head_dim, qwen.query_width(), qwen.head_norm), (32, 128, true));
    let smollm = config("smollm3", 5, &[]);
    let rotated: Vec<_> = smollm.layers.iter().map(|layer| layer.rotary.is_some()).collect();
    assert_eq!(rotated, [true, true, true, false, true]);
    for (architecture, interleaved, fused) in
        [("llama", true, false), ("smollm3", true, false), ("qwen2", false, false), ("phi3", false, true)]
    {
        let layout = file(architecture, 1, &[]).unwrap().1;
        assert_eq!((layout.interleaved, layout.fused), (interleaved, fused), "{architecture}");
    }
}

#[test]
fn gemma_has_windows_and_two_rotations() {
    let window = ("attention.sliding_window", Item::U32(16));
    let gemma = config("gemma3", 7, &[window, ("rope.freq_base", Item::F32(1e6))]);
    let layers: Vec<_> = gemma.layers.iter().map(|layer| (layer.rotary, layer.window)).collect();
    let (local, global) = ((Some(1), Some(16)), (Some(0), None));
    assert_eq!(layers, [local, local, local, local, local, global, local]);
    let lasts = gemma.rotaries.iter().map(|rotary| rotary.frequencies[7].log10());
    assert!(
        lasts.zip([-5.25, -3.5]).all(|(got, wanted)| (got - wanted).abs() < 1e-6),
        "{:?}",
        gemma.rotaries
    );
    assert_eq!((gemma.embedding_scale, gemma.score_scale), (8.0, 0.25));
    // The largest one scales by the width of its stream.
    let largest = config("gemma3", 62, &[window, ("attention.key_length", Item::U32(32))]);
    assert_eq!(largest.score_scale, 0.25);
    let pattern = ("attention.sliding_window_pattern", Item::U32(2));
    let every_other = config("gemma3", 2, &[window, pattern]);
    assert_eq!(every_other.layers[1].window, None);
}

#[test]
fn rotary_scaling_is_read() {
    let factor = ("rope.scaling.factor", Item::F32(4.0));
    let kind = |kind| ("rope.scaling.type", Item::Str(kind));
    assert_eq!(first_frequency(&config("llama", 1, &[kind("none"), factor])), 1.0);
    assert_eq!(first_frequency(&config("llama", 1, &[kind("linear"), factor])), 0.25);
    let yarn = config("qwen2", 1, &[kind("yarn"), factor]);
    assert!((yarn.rotaries[0].magnitude - (0.1 * 4.0_f64.ln() + 1.0)).abs() < 1e-12);
    assert!(yarn.rotaries[0].frequencies[7] < config("qwen2", 1, &[]).rotaries[0].frequencies[7]);
}

#[test]
fn what_is_not_implemented_is_refused_by_its_key() {
    for (more, named) in [
        (("rope.scaling.type", Item::Str("dynamic")), "llama.rope.scaling.type is dynamic"),
        (("rope.scaling.type", Item::Str("yarn")), "llama.rope.scaling.type is yarn"),
        (("rope.dimension_count", Item::U32(8)), "llama.rope.dimension_count is 8 for heads of 16"),
        (("final_logit_softcapping", Item::F32(30.0)), "llama.final_logit_softcapping"),
        (("rope.freq_base", Item::F32(-1.0)), "llama.rope.freq_base is -1"),
        (("attention.sliding_window", Item::U32(u32::MAX)), "llama.attention.sliding_window"),
    ] {
        let error = file("llama", 1, &[more]).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    assert!(config("llama", 1, &[("final_logit_softcapping", Item::F32(0.0))]).tied_embedding);
}

/// The rows of each head as converters store them where rotated pairs lie side by side.
fn halves_to_pairs(data: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row = data.len() / rows;
    let place = |at: usize| at / head_dim * head_dim + at % 2 * (head_dim / 2) + at % head_dim / 2;
    (0..rows).flat_map(|at| &data[place(at) * row..][..row]).copied().collect()
}

/// There is no converter in the fixtures' script for this architecture.
#[test]
fn smollm3_computes_the_same_from_a_converted_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/smollm3");
    let source = SafetensorsFolder::open(&folder).unwrap();
    let text = std::fs::read(folder.join(CONFIG_FILE)).unwrap();
    let (config, layout) = Layout::from_config(&folder, &text, &source.names()).unwrap();
    let mut file = GgufBuilder::new().set("general.architecture", Item::Str("smollm3"));
    for (key, value) in [
        ("block_count", config.layers.len()),
        ("context_length", config.context_length),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.feed_forward),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("rope.dimension_count", config.head_dim),
    ] {
        file = file.set(&format!("smollm3.{key}"), Item::U32(value as u32));
    }
    file = file
        .set("smollm3.rope.freq_base", Item::F32(5_000_000.0))
        .set("smollm3.attention.layer_norm_rms_epsilon", Item::F32(config.norm_epsilon));
    let whole = [TensorRole::Embedding, TensorRole::Norm].map(|part| (part, 0));
    let parts = [
        TensorRole::AttentionNorm,
        TensorRole::Query,
        TensorRole::Key,
        TensorRole::Value,
        TensorRole::Output,
        TensorRole::MlpNorm,
        TensorRole::Gate,
        TensorRole::Up,
        TensorRole::Down,
    ];
    let layers = (0..config.layers.len()).flat_map(|layer| parts.map(|part| (part, layer)));
    for (part, layer) in whole.into_iter().chain(layers) {
        let name = layout.names.of(part, layer);
        let (shape, dtype) = source.describe(&name).unwrap();
        let mut data = source.read(&name).unwrap();
        if matches!(part, TensorRole::Query | TensorRole::Key) {
            data = halves_to_pairs(&data, shape[0], config.head_dim);
        }
        file = file.tensor(&TensorNames::Gguf.of(part, layer), shape, dtype, &data);
    }
    let (_folder, file) = file.open();

    let device = ComputeDevice::cpu();
    let tokens: Vec<u32> = (0..40).map(|at| at * 7 % 256).collect();
    let logits = |mut network: Network| {
        network.allocate_cache(3, emberline_kernels::KvType::F32).unwrap();
        let span = StepSpan { tokens: &tokens, start: 0, blocks: &[0, 1, 2], logit_rows: 1 };
        network.forward(&[span]).unwrap().unwrap().into_host().unwrap()
    };
    let wanted = logits(Network::load(config, &layout, &source, &device, None, &|_| {}).unwrap());
    let got = logits(Network::from_gguf(&file, &device).unwrap());
    assert!(got.iter().zip(&wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-4));
}
