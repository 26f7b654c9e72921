use super::*;
use crate::device::ComputeDevice;
use crate::gguf::testing::{GgufBuilder, Item};
use crate::model::testing::{self, Tensors};
use crate::model::{LoadError, load};

fn tiny(shapes: Shapes) -> Llama {
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    load(&file, &ComputeDevice { shapes, ..ComputeDevice::cpu() }).unwrap()
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 37 + 5) % testing::VOCABULARY) as u32).collect()
}

fn assert_close(got: &[f32], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((f64::from(*got) - wanted).abs() < 1e-3, "{got} instead of {wanted}");
    }
}

#[test]
fn a_prompt_has_the_logits_of_a_plain_implementation() {
    let (model, tensors) = (tiny(Shapes::Exact), testing::tensors());
    for count in [1, 2, 7, 40] {
        let logits = model.forward(&tokens(count), &mut model.new_cache(0)).unwrap();
        assert_close(&logits, &testing::reference(&tensors, &tokens(count)));
    }
}

#[test]
fn decoding_goes_on_from_the_cache() {
    let (model, tensors, tokens) = (tiny(Shapes::Exact), testing::tensors(), tokens(12));
    let mut cache = model.new_cache(0);
    model.forward(&tokens[..9], &mut cache).unwrap();
    for count in 10..=12 {
        let logits = model.forward(&tokens[count - 1..count], &mut cache).unwrap();
        assert_close(&logits, &testing::reference(&tensors, &tokens[..count]));
        assert_eq!(cache.len(), count);
    }
}

#[test]
fn padding_changes_nothing() {
    let (model, tensors, tokens) = (tiny(Shapes::Bucketed), testing::tensors(), tokens(45));
    let mut cache = model.new_cache(0);
    // A block of 32, one of 128 over the first one's padding, then single tokens over its padding.
    model.forward(&tokens[..5], &mut cache).unwrap();
    model.forward(&tokens[5..40], &mut cache).unwrap();
    for count in 41..=45 {
        let logits = model.forward(&tokens[count - 1..count], &mut cache).unwrap();
        assert_close(&logits, &testing::reference(&tensors, &tokens[..count]));
    }
}

#[test]
fn a_cache_keeps_what_it_has_when_it_grows() {
    let model = tiny(Shapes::Exact);
    let long: Vec<u32> = tokens(96).into_iter().cycle().take(300).collect();
    let whole = model.forward(&long, &mut model.new_cache(0)).unwrap();
    let mut cache = model.new_cache(0);
    model.forward(&long[..250], &mut cache).unwrap();
    let before = cache.capacity();
    let parts = model.forward(&long[250..], &mut cache).unwrap();
    assert!(cache.capacity() > before);
    let wanted: Vec<f64> = whole.iter().map(|logit| f64::from(*logit)).collect();
    assert_close(&parts, &wanted);
}

#[test]
fn a_cache_with_room_from_the_start_does_not_grow() {
    let model = tiny(Shapes::Exact);
    let mut cache = model.new_cache(400);
    model.forward(&tokens(1), &mut cache).unwrap();
    assert_eq!(cache.capacity(), 512);
    cache.reserve(400);
    assert_eq!(cache.capacity(), 512);
    cache.reserve(1000);
    assert_eq!(cache.capacity(), 1024);
}

#[test]
fn nothing_to_compute_is_an_error() {
    let model = tiny(Shapes::Exact);
    assert!(model.forward(&[], &mut model.new_cache(0)).is_err());
}

fn refused(builder: &GgufBuilder) -> LoadError {
    let (_folder, file) = builder.open();
    load(&file, &ComputeDevice::cpu()).unwrap_err()
}

fn changed(change: impl FnOnce(&mut Tensors)) -> GgufBuilder {
    let mut tensors = testing::tensors();
    change(&mut tensors);
    testing::builder(&tensors)
}

#[test]
fn a_missing_tensor_is_named() {
    let error = refused(&changed(|tensors| tensors.retain(|(name, ..)| name != "blk.1.ffn_up.weight")));
    assert!(matches!(error, LoadError::Gguf(_)), "{error}");
    for part in ["model.gguf", "blk.1.ffn_up.weight"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let error = refused(&changed(|tensors| tensors[3].1.reverse()));
    let LoadError::Shape { tensor, found, expected, .. } = error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), found, expected), ("blk.0.attn_k.weight", vec![16, 8], vec![8, 16]));
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let error = refused(&changed(|tensors| tensors[4].2[3] = f32::NAN));
    assert!(
        matches!(&error, LoadError::NotFinite { tensor, .. } if tensor == "blk.0.attn_v.weight"),
        "{error}"
    );
}

#[test]
fn a_tensor_that_would_be_ignored_is_refused() {
    let bias = ("blk.0.attn_q.bias".to_owned(), vec![16], vec![0.5; 16]);
    let error = refused(&changed(|tensors| tensors.push(bias)));
    assert!(
        matches!(&error, LoadError::UnknownTensor { tensor, .. } if tensor == "blk.0.attn_q.bias"),
        "{error}"
    );
}

#[test]
fn another_architecture_is_refused() {
    let error = refused(&GgufBuilder::new().set("general.architecture", Item::Str("mamba")));
    assert!(matches!(&error, LoadError::Architecture { found, .. } if found == "mamba"), "{error}");
}

#[test]
fn impossible_dimensions_are_refused() {
    for (key, value) in [
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.head_count", 0),
        ("llama.block_count", u32::MAX),
        ("llama.rope.dimension_count", 2),
        ("llama.attention.key_length", 5),
    ] {
        let error = refused(&testing::builder_with(&testing::tensors(), &[(key, value)]));
        let LoadError::Setting { key: named, .. } = &error else { panic!("{key}: {error}") };
        assert!(error.to_string().contains("model.gguf"), "{error}");
        assert!(named == key || named == "llama.rope.dimension_count", "{error}");
    }
}

#[test]
fn a_tensor_beyond_the_device_limit_is_refused() {
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    let device = ComputeDevice { max_buffer_bytes: Some(1024), ..ComputeDevice::cpu() };
    let error = load(&file, &device).unwrap_err();
    assert!(matches!(&error, LoadError::TooLarge { limit: 1024, .. }), "{error}");
}

#[test]
fn attention_scores_fit_into_the_devices_buffers() {
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    let config = LlamaConfig::from_gguf(&file).unwrap();
    let row_bytes = (config.heads * max_capacity(&config) * 4) as u64;
    for (rows, block) in [(10_000, 512), (511, 128), (40, 32), (31, 1), (0, 1)] {
        assert_eq!(largest_block(&config, Shapes::Bucketed, Some(rows * row_bytes)), block);
    }
    assert_eq!(largest_block(&config, Shapes::Bucketed, None), MAX_BLOCK);
}
