use emberline_protocol::measurement::{
    ConstrainedThroughput, DeviceFacts, FirstTokenLatency, InterTokenLatency, ModelFacts, OpTime,
    PrefixReuse, SpeculationGain, StreamThroughput,
};

use super::*;

fn rate(batch: usize, prompt_tokens: usize, tokens_per_s: f64) -> Throughput {
    let seconds = 1.0 / tokens_per_s;
    Throughput { batch, prompt_tokens, tokens_per_s, seconds, fastest_s: seconds, slowest_s: seconds }
}

fn report() -> EngineReport {
    let gap = InterTokenLatency {
        prefill_budget: 256,
        streams: 8,
        prompt_tokens: 4096,
        before_ms: 20.0,
        median_ms: 250.0,
        p99_ms: 280.0,
        max_ms: 300.0,
        chunk_ms: 290.0,
        first_token_ms: 5000.0,
    };
    let first =
        |load| FirstTokenLatency { prompt_tokens: 1024, load, min_ms: 1.0, median_ms: 2.0, max_ms: 3.0 };
    let serving = ServingMeasurement {
        prefill_budget: 256,
        cache_tokens: 4096,
        first_token: vec![first(0), first(8)],
        gaps: vec![gap],
        prefix: Some(PrefixReuse {
            system_tokens: 1000,
            first_ms: 2000.0,
            repeated_ms: 120.0,
            own_ms: 60.0,
            cached_tokens: 992,
        }),
        streams: vec![
            StreamThroughput { streams: 1, tokens_per_s: 90.0 },
            StreamThroughput { streams: 32, tokens_per_s: 360.0 },
        ],
        constrained: Some(ConstrainedThroughput {
            streams: 8,
            wait_share: 0.0123,
            mask_ms: 0.5,
            tokens_per_s: 99.0,
            beside_plain_tokens_per_s: 100.0,
            alone_tokens_per_s: 150.0,
        }),
        speculation: vec![SpeculationGain {
            prompt: "edit code".into(),
            streams: 1,
            tokens: 200,
            steps: 50,
            plain_steps: 200,
            drafted: 180,
            accepted: 150,
            tokens_per_s: 250.0,
            plain_tokens_per_s: 100.0,
        }],
    };
    let cache = |dtype: &str, depth, tokens_per_s| CacheThroughput {
        dtype: dtype.to_owned(),
        rate: rate(1, depth, tokens_per_s),
    };
    let engine = EngineMeasurement {
        device: DeviceFacts {
            description: "CPU (flex, 2 threads)".into(),
            gpu: false,
            cpu: "Xeon(R) 9".into(),
            threads: 2,
            version: "0.1.0".into(),
            arithmetic: String::new(),
        },
        model: ModelFacts {
            name: "tiny 1".into(),
            random: false,
            weight_bytes: 98_000_000,
            step_bytes: 98_000_000,
            cache_bytes_per_token: 23_040,
        },
        quick: false,
        copy_bytes_per_s: Some(19.6e9),
        prefill: vec![rate(1, 128, 500.0), rate(1, 1024, 400.0)],
        decode: vec![rate(1, 128, 100.0), rate(8, 128, 300.0)],
        dispatches_per_step: Some(213.0),
        decode_profile: vec![OpTime { op: "linear".into(), calls: 60.0, ms: 6.0 }],
        cache: vec![cache("f32", 128, 100.0), cache("f32", 4000, 50.0), cache("f16", 4000, 60.0)],
        serving: Some(serving),
        memory: MemoryUse { loaded: Some(200_000_000), peak: None, gpu_peak: None },
    };
    let llama = LlamaCpp {
        version: "0.3.36".into(),
        system: "CPU : AVX512 = 1 | ".into(),
        gpu: false,
        threads: 2,
        prefill: vec![rate(1, 1024, 800.0)],
        decode: vec![rate(1, 128, 125.0)],
        peak_memory: 300_000_000,
    };
    EngineReport { engine, comparison: Comparison::LlamaCpp(llama) }
}

/// The line of `text` that starts with `start`, with single spaces between its columns.
fn line(text: &str, start: &str) -> String {
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(squeezed).collect();
    lines
        .iter()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no {start:?} in {text}"))
        .clone()
}

#[test]
fn ratios_compare_equal_loads_only() {
    let text = report().render();
    assert_eq!(line(&text, "1 128 500"), "1 128 500 2.00 / 2.00 / 2.00 - -");
    assert_eq!(line(&text, "1 1024"), "1 1024 400 2.50 / 2.50 / 2.50 800 0.50");
    assert_eq!(line(&text, "1 128 100"), "1 128 100 10.0 / 10.0 / 10.0 125 0.80");
}

#[test]
fn speculation_shows_what_it_saves() {
    let text = report().render();
    assert_eq!(line(&text, "edit code"), "edit code 1 200 50 of 200 150 of 180 250 / 100 2.50");
}

#[test]
fn the_head_names_device_memory_and_bandwidth() {
    let text = report().render();
    assert!(text.starts_with("tiny 1 on CPU (flex, 2 threads); Xeon(R) 9, emberline 0.1.0\n"), "{text}");
    assert!(text.contains("weights 98.0 MB, cache 23.0 kB a token; process 200 MB when loaded\n"), "{text}");
    assert!(text.contains("cache for 4096 tokens, at most 256 prompt tokens a step"), "{text}");
    // 98 MB a hundred times a second, of 19.6 GB.
    assert!(text.contains("19.6 GB/s; decoding one sequence reads weights at 50 % of it"), "{text}");
    assert!(text.contains("dispatches in a decode step of one sequence: 213"), "{text}");
    assert!(text.contains("llama.cpp of llama-cpp-python 0.3.36 on the CPU, 2 threads"), "{text}");
}

#[test]
fn all_parts_of_serving_are_shown() {
    let text = report().render();
    assert_eq!(line(&text, "32 360"), "32 360 4.0");
    assert_eq!(line(&text, "1024 8"), "1024 8 1.00 / 2.00 / 3.00");
    assert_eq!(line(&text, "256 8"), "256 8 + 4096 20.0 250 / 280 / 300 290 5000");
    assert!(text.contains("again 120 ms, 6.0 % of that, with 992 tokens cached"), "{text}");
    assert!(
        text.contains("1.2 % of the steps' time waits for masks, 0.50 ms each; 99.0 tok/s, 0.99 of"),
        "{text}"
    );
    assert_eq!(line(&text, "linear"), "linear 60 6.00 100 %".replace("6.00", "6.000"));
}

#[test]
fn kinds_of_cache_are_compared_at_the_same_depth() {
    let text = report().render();
    assert_eq!(line(&text, "f32 128"), "f32 128 100 1.00");
    assert_eq!(line(&text, "f16 4000"), "f16 4000 60.0 1.20");
}

#[test]
fn the_reason_for_a_missing_comparison_is_shown() {
    let text =
        EngineReport { comparison: Comparison::None("llama.cpp was not found".into()), ..report() }.render();
    assert!(text.contains("no comparison with llama.cpp: llama.cpp was not found"), "{text}");
}

#[test]
fn results_are_written_by_device() {
    let out = tempfile::tempdir().unwrap();
    let folder = report().write(out.path()).unwrap();
    assert_eq!(folder, out.path().join("cpu-xeon-r-9"));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("tiny-1.json")).unwrap()).unwrap();
    assert_eq!(json["comparison"]["llama_cpp"]["threads"], 2);
    assert_eq!(json["engine"]["decode"][1]["batch"], 8);
    for plot in ["prefill", "decode", "first-token", "gap"] {
        assert!(folder.join(format!("tiny-1-{plot}.svg")).is_file(), "{plot}");
    }
    let mut gpu = report();
    gpu.engine.device.gpu = true;
    gpu.engine.device.description = "NVIDIA H100 80GB HBM3 (wgpu/vulkan)".into();
    assert_eq!(gpu.device_folder(), "nvidia-h100-80gb-hbm3-wgpu-vulkan");
    let svg = EngineReport { engine: gpu.engine, ..report() }.plots()[1].1.svg().unwrap();
    assert!(svg.contains("llama.cpp (on the CPU)"), "it had no GPU");
}

#[test]
fn numbers_have_three_significant_digits() {
    let shown = [0.0, 0.123, 9.876, 12.34, 123.4, 12_345.6].map(number);
    assert_eq!(shown, ["0", "0.12", "9.88", "12.3", "123", "12346"]);
    assert_eq!([bytes(12.0), bytes(1.5e6), bytes(2.0e10)], ["12 B", "1.50 MB", "20.0 GB"]);
}
