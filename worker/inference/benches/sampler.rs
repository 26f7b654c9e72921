//! Time to sample one token from the logits of a large vocabulary.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use emberline_inference::sampling::{Alternatives, Sampler, score};
use emberline_protocol::job::SamplingOptions;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const VOCABULARY: usize = 128_000;

fn logits() -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(1);
    (0..VOCABULARY).map(|_| random.random_range(-12.0..12.0)).collect()
}

fn sample(criterion: &mut Criterion) {
    let logits = logits();
    let default = SamplingOptions::default;
    let mut group = criterion.benchmark_group("sample");
    for (name, options) in [
        ("greedy", SamplingOptions { temperature: 0.0, ..default() }),
        ("temperature", SamplingOptions { temperature: 0.8, ..default() }),
        ("top_k", SamplingOptions { top_k: 40, ..default() }),
        ("top_p", SamplingOptions { top_p: 0.95, ..default() }),
        ("min_p", SamplingOptions { min_p: 0.05, ..default() }),
        ("penalties", SamplingOptions { presence_penalty: 0.5, repetition_penalty: 1.1, ..default() }),
    ] {
        let mut sampler = Sampler::new(options, 1, 0, &[1, 2, 3], Vec::new());
        (0..100).for_each(|token| sampler.record(token));
        group.bench_function(name, |bencher| bencher.iter(|| sampler.sample(black_box(&logits))));
    }
    group.bench_function("logprobs", |bencher| {
        bencher.iter(|| score(black_box(&logits), 7, Alternatives::MostProbable(20)));
    });
    group.finish();
}

criterion_group!(benches, sample);
criterion_main!(benches);
