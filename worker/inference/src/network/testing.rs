//! A tiny Llama with random weights for tests, and a plain implementation to compare with.

use crate::checkpoint::gguf::testing::{GgufBuilder, Item};

pub(crate) const LAYERS: usize = 2;
pub(crate) const HIDDEN: usize = 16;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 4;
pub(crate) const FEED_FORWARD: usize = 24;
pub(crate) const CONTEXT: usize = 96;
/// What [`GgufBuilder::with_byte_tokenizer`] has.
pub(crate) const VOCABULARY: usize = 258;
const EPSILON: f32 = 1e-5;
const ROPE_BASE: f32 = 100.0;

/// Tensors by name, shape outermost first.
pub(crate) type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// The tiny model's tensors; the same at each call.
pub(crate) fn tensors() -> Tensors {
    let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut shapes = vec![("token_embd.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((format!("blk.{layer}.{part}.weight"), shape.to_vec()));
        };
        add("attn_norm", &[HIDDEN]);
        add("attn_q", &[queries, HIDDEN]);
        add("attn_k", &[keys, HIDDEN]);
        add("attn_v", &[keys, HIDDEN]);
        add("attn_output", &[HIDDEN, queries]);
        add("ffn_norm", &[HIDDEN]);
        add("ffn_gate", &[FEED_FORWARD, HIDDEN]);
        add("ffn_up", &[FEED_FORWARD, HIDDEN]);
        add("ffn_down", &[HIDDEN, FEED_FORWARD]);
    }
    shapes.push(("output_norm.weight".to_owned(), vec![HIDDEN]));
    let mut state = 1_u64;
    let mut random = move || {
        // Knuth's MMIX generator; its high bits are good enough for weights.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let fill = |(name, shape): (String, Vec<usize>)| {
        let numbers = (0..shape.iter().product()).map(|_| random()).collect();
        (name, shape, numbers)
    };
    shapes.into_iter().map(fill).collect()
}

/// A file with the tiny model's settings and these tensors.
pub(crate) fn builder(tensors: &Tensors) -> GgufBuilder {
    builder_with(tensors, &[])
}

/// As [`builder`], with other values for some settings.
pub(crate) fn builder_with(tensors: &Tensors, changes: &[(&str, u32)]) -> GgufBuilder {
    let mut settings = vec![
        ("llama.block_count", LAYERS as u32),
        ("llama.context_length", CONTEXT as u32),
        ("llama.embedding_length", HIDDEN as u32),
        ("llama.feed_forward_length", FEED_FORWARD as u32),
        ("llama.attention.head_count", HEADS as u32),
        ("llama.attention.head_count_kv", KV_HEADS as u32),
    ];
    settings.retain(|(key, _)| changes.iter().all(|(changed, _)| changed != key));
    let file = GgufBuilder::new()
        .set("general.architecture", Item::Str("llama"))
        .set("llama.rope.freq_base", Item::F32(ROPE_BASE))
        .set("llama.attention.layer_norm_rms_epsilon", Item::F32(EPSILON))
        .with_byte_tokenizer();
    let settings = settings.iter().chain(changes);
    let file = settings.fold(file, |file, (key, value)| file.set(key, Item::U32(*value)));
    tensors.iter().fold(file, |file, (name, shape, numbers)| file.tensor_f32(name, shape, numbers))
}

/// Logits after the last of `tokens`, computed the slow and obvious way.
pub(crate) fn reference(tensors: &Tensors, tokens: &[u32]) -> Vec<f64> {
    let weight = |name: &str| &tensors.iter().find(|(n, ..)| n == name).unwrap().2;
    let embedding = weight("token_embd.weight");
    let row = |token: &u32| -> Vec<f64> {
        let start = *token as usize * HIDDEN;
        embedding[start..start + HIDDEN].iter().map(|x| f64::from(*x)).collect()
    };
    let mut states: Vec<Vec<f64>> = tokens.iter().map(row).collect();
    for layer in 0..LAYERS {
        let part = |name: &str| weight(&format!("blk.{layer}.{name}.weight"));
        let normed: Vec<_> = states.iter().map(|x| norm(x, part("attn_norm"))).collect();
        let project = |name| -> Vec<Vec<f64>> { normed.iter().map(|x| product(part(name), x)).collect() };
        let (mut queries, mut keys, values) = (project("attn_q"), project("attn_k"), project("attn_v"));
        for (position, row) in queries.iter_mut().chain(&mut keys).enumerate() {
            rotate(row, position % tokens.len());
        }
        for (position, state) in states.iter_mut().enumerate() {
            let mixed: Vec<f64> = (0..HEADS)
                .flat_map(|head| attend(head, &queries[position], &keys[..=position], &values))
                .collect();
            add(state, &product(part("attn_output"), &mixed));
            let normed = norm(state, part("ffn_norm"));
            let gate = product(part("ffn_gate"), &normed);
            let up = product(part("ffn_up"), &normed);
            let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(state, &product(part("ffn_down"), &gated));
        }
    }
    product(embedding, &norm(states.last().unwrap(), weight("output_norm.weight")))
}

fn attend(head: usize, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let query = &query[head * HEAD_DIM..(head + 1) * HEAD_DIM];
    let shared = head / (HEADS / KV_HEADS) * HEAD_DIM;
    let score = |key: &Vec<f64>| {
        let dot: f64 = query.iter().zip(&key[shared..]).map(|(q, k)| q * k).sum();
        (dot / (HEAD_DIM as f64).sqrt()).exp()
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let sum: f64 = scores.iter().sum();
    let column = |i| scores.iter().zip(values).map(|(s, v)| s / sum * v[shared + i]).sum();
    (0..HEAD_DIM).map(column).collect()
}

/// Rotates the pairs (0, 1), (2, 3), … of each head, as GGUF stores them.
fn rotate(row: &mut [f64], position: usize) {
    for (index, pair) in row.chunks_mut(2).enumerate() {
        let exponent = (2 * index % HEAD_DIM) as f64 / HEAD_DIM as f64;
        let (sin, cos) = (position as f64 / f64::from(ROPE_BASE).powf(exponent)).sin_cos();
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
}

fn norm(x: &[f64], gamma: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
    x.iter().zip(gamma).map(|(v, g)| v * scale * f64::from(*g)).collect()
}

fn product(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, v)| f64::from(*w) * v).sum()).collect()
}

fn add(state: &mut [f64], more: &[f64]) {
    state.iter_mut().zip(more).for_each(|(s, m)| *s += m);
}
