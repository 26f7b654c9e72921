//! Time to plan a step and to take note of it, without a network.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use emberline_inference::scheduler::{Scheduler, SchedulerLimits, SequenceId, SequencePrompt};

const SEQUENCES: usize = 64;
const LIMITS: SchedulerLimits =
    SchedulerLimits { sequences: SEQUENCES, prefill_budget: 256, draft_budget: 0, blocks: 16_384 };

/// Plans and completes a step, and continues every sequence in it.
fn step(scheduler: &mut Scheduler) {
    let step = scheduler.plan();
    scheduler.complete(&step);
    for span in &step.spans {
        for choice in span.samples.clone() {
            scheduler.push(SequenceId { choice, ..span.id }, 7);
        }
    }
}

fn prompt(number: usize, tokens: usize) -> SequencePrompt {
    let number = u32::try_from(number).unwrap_or_default();
    let tokens = (0..u32::try_from(tokens).unwrap_or_default()).map(|at| (at + number) % 1000).collect();
    SequencePrompt { tokens, ..SequencePrompt::default() }
}

/// A scheduler whose sequences all decode.
fn decoding() -> Scheduler {
    let mut scheduler = Scheduler::new(LIMITS);
    (0..SEQUENCES).for_each(|number| scheduler.submit(number as u64, prompt(number, 100), 1));
    (0..2 * SEQUENCES).for_each(|_| step(&mut scheduler));
    scheduler
}

fn scheduling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    group.bench_function("decode step of 64 sequences", |bencher| {
        bencher.iter_batched_ref(decoding, step, BatchSize::LargeInput);
    });
    group.bench_function("prefill of 8192 tokens", |bencher| {
        let submitted = || {
            let mut scheduler = Scheduler::new(LIMITS);
            scheduler.submit(0, prompt(0, 8192), 1);
            scheduler
        };
        let prefill = |scheduler: &mut Scheduler| (0..8192 / 256).for_each(|_| step(scheduler));
        bencher.iter_batched_ref(submitted, prefill, BatchSize::LargeInput);
    });
    group.bench_function("look-up of a cached prompt of 8192 tokens", |bencher| {
        let mut scheduler = Scheduler::new(LIMITS);
        let prompt = prompt(0, 8192);
        scheduler.submit(0, prompt.clone(), 1);
        (0..8192 / 256).for_each(|_| step(&mut scheduler));
        bencher.iter(|| scheduler.cached_tokens(&prompt));
    });
    group.finish();
}

criterion_group!(benches, scheduling);
criterion_main!(benches);
