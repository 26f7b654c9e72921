use serde_json::{Value, json};

use super::*;

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1000, "rms_norm_eps": 1e-5,
    })
}

fn with(mut settings: Value, changes: Value) -> Value {
    let (Some(settings_map), Value::Object(changes)) = (settings.as_object_mut(), changes) else {
        unreachable!()
    };
    settings_map.extend(changes);
    settings
}

fn read(settings: &Value) -> Result<(ModelConfig, Layout), NetworkError> {
    Layout::from_config(Path::new("folder/config.json"), settings.to_string().as_bytes(), &[])
}

fn config(changes: Value) -> ModelConfig {
    read(&with(llama(), changes)).unwrap().0
}

fn error(changes: Value) -> String {
    read(&with(llama(), changes)).unwrap_err().to_string()
}

#[test]
fn what_llama_does_not_say_is_derived() {
    let config = config(json!({ "num_key_value_heads": null }));
    assert_eq!((config.head_dim, config.kv_heads, config.context_length), (16, 4, 1000));
    assert_eq!(config.score_scale, 0.25);
    assert!(!config.tied_embedding && !config.qkv_bias && !config.post_norms);
    assert_eq!(config.layers, [LayerConfig { rotary: Some(0), window: None }; 4]);
    assert_eq!(config.rotaries.len(), 1);
    assert_eq!(config.rotaries[0].dim(), 16);
}

#[test]
fn windows_are_in_the_layers_that_a_family_says() {
    let windows = |changes| -> Vec<_> { config(changes).layers.iter().map(|layer| layer.window).collect() };
    let (none, some) = (None, Some(16));
    let window = |more: Value| with(json!({ "sliding_window": 16 }), more);
    assert_eq!(windows(window(json!({}))), [none; 4]);
    assert_eq!(windows(window(json!({ "model_type": "mistral" }))), [some; 4]);
    assert_eq!(windows(window(json!({ "model_type": "phi3" }))), [some; 4]);
    let qwen = |asks| json!({ "model_type": "qwen2", "use_sliding_window": asks, "max_window_layers": 3 });
    assert_eq!(windows(window(qwen(false))), [none; 4]);
    assert_eq!(windows(window(qwen(true))), [none, none, none, some]);
    let gemma = json!({ "model_type": "gemma3_text", "sliding_window_pattern": 2 });
    assert_eq!(windows(window(gemma)), [some, none, some, none]);
    let types = ["full_attention", "sliding_attention", "full_attention", "full_attention"];
    let listed = json!({ "model_type": "gemma3_text", "layer_types": types });
    assert_eq!(windows(window(listed)), [none, some, none, none]);
    // As wide as the context: the same as none.
    assert_eq!(windows(json!({ "model_type": "mistral", "sliding_window": 1000 })), [none; 4]);
}

#[test]
fn layers_without_positions_are_listed_or_counted() {
    let rotated = |changes| -> Vec<_> {
        config(with(json!({ "model_type": "smollm3" }), changes))
            .layers
            .iter()
            .map(|l| l.rotary.is_some())
            .collect()
    };
    assert_eq!(rotated(json!({})), [true, true, true, false]);
    assert_eq!(rotated(json!({ "no_rope_layer_interval": 2 })), [true, false, true, false]);
    assert_eq!(rotated(json!({ "no_rope_layers": [0, 1, 1, 1] })), [false, true, true, true]);
}

#[test]
fn gemma_with_images_is_its_text_model() {
    let text = json!({
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 6, "sliding_window": 1024, "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
    });
    let settings = json!({ "model_type": "gemma3", "text_config": text });
    let (config, layout) = read(&settings).unwrap();
    assert_eq!((config.vocabulary, config.heads, config.kv_heads, config.head_dim), (262_208, 8, 4, 256));
    assert_eq!((config.context_length, config.score_scale), (131_072, 1.0 / 16.0));
    assert_eq!(config.embedding_scale, 2560_f32.sqrt());
    assert!(config.tied_embedding && config.head_norm && config.post_norms);
    assert_eq!(config.layers[5], LayerConfig { rotary: Some(0), window: None });
    assert_eq!(config.layers[4], LayerConfig { rotary: Some(1), window: Some(1024) });
    // Only the layers that see everything are stretched.
    assert_eq!(config.rotaries[0].frequencies[0], 1.0 / 8.0);
    assert_eq!(config.rotaries[1].frequencies[0], 1.0);
    assert!(layout.is_unneeded("vision_tower.x.weight") && layout.is_unneeded("lm_head.weight"));
    assert!(!layout.is_unneeded("model.layers.0.mlp.up_proj.weight"));
    assert_eq!(layout.norm_offset, 1.0);
}

#[test]
fn yarn_says_how_long_the_context_is() {
    let rope = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 500 });
    assert_eq!(config(json!({ "rope_scaling": rope })).context_length, 2000);
    let rope = json!({ "rope_type": "yarn", "factor": 1.5 });
    let extended = config(json!({ "rope_scaling": rope }));
    assert_eq!(extended.context_length, 1500);
    let wanted = 0.1 * 1.5_f64.ln() + 1.0;
    assert!((extended.rotaries[0].magnitude - wanted).abs() < 1e-12);
}

#[test]
fn longrope_has_frequencies_for_short_and_long_contexts() {
    let scaling = json!({ "type": "su", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8] });
    let phi = |original: usize| {
        let scaling = scaling.clone();
        let phi = json!({
            "model_type": "phi3", "rope_scaling": scaling, "original_max_position_embeddings": original,
        });
        config(phi).rotaries.remove(0)
    };
    let short = phi(1000);
    let long = short.long.unwrap();
    assert_eq!((short.frequencies[0], short.magnitude), (1.0, 1.0));
    assert_eq!((long.beyond, long.frequencies[0]), (1000, 0.5));
    let louder = (1.0 + 10.0_f64.ln() / 100.0_f64.ln()).sqrt();
    assert!((phi(100).magnitude - louder).abs() < 1e-12);
}

#[test]
fn settings_that_can_not_be_are_refused_by_their_names() {
    for (changes, named) in [
        (json!({ "hidden_size": 0 }), "hidden_size"),
        (json!({ "hidden_size": null }), "hidden_size is missing"),
        (json!({ "num_hidden_layers": 1_000_000 }), "num_hidden_layers"),
        (json!({ "num_key_value_heads": 3 }), "key/value heads is 3 for 4"),
        (json!({ "head_dim": 7 }), "rotated components"),
        (json!({ "rms_norm_eps": -1.0 }), "epsilon"),
        (json!({ "hidden_act": "relu" }), "hidden_act is \"relu\""),
        (json!({ "mlp_bias": true }), "mlp_bias"),
        (json!({ "quantization_config": { "quant_method": "gptq" } }), "quantization_config"),
        (json!({ "final_logit_softcapping": 30.0 }), "final_logit_softcapping"),
        (json!({ "layer_types": ["full_attention"] }), "layer_types"),
        (json!({ "sliding_window": 0 }), "sliding_window"),
        (json!({ "rope_scaling": { "rope_type": "dynamic", "factor": 2.0 } }), "rope_parameters.rope_type"),
        (json!({ "rope_scaling": { "rope_type": "linear" } }), "rope_parameters.factor"),
        (json!({ "rope_scaling": { "rope_type": "linear", "factor": 0.0 } }), "rope_parameters.factor"),
        (json!({ "rope_scaling": { "rope_type": "longrope" } }), "short_factor"),
        (json!({ "rope_theta": -5.0 }), "rotary frequency"),
        (json!({ "model_type": "mixtral" }), "'mixtral'"),
        (json!({ "vocab_size": "many" }), "config.json: not valid"),
    ] {
        let message = error(changes.clone());
        assert!(message.contains(named) && message.starts_with("folder/config.json"), "{changes}: {message}");
    }
    let not_json = Layout::from_config(Path::new("config.json"), b"{", &[]).unwrap_err();
    assert!(matches!(not_json, NetworkError::Checkpoint(CheckpointError::Config { .. })), "{not_json}");
}
