use emberline_shared::job::{GenerationRequest, SamplingOptions};

use super::*;
use crate::engine::simulated::SimulatedEngine;

fn job(id: u128, max_tokens: u32) -> Job {
    Job {
        v: 1,
        id: JobId::from_random(id),
        model: "simulated-echo".into(),
        created: 0,
        deadline: u64::MAX,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: Vec::new(),
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
        },
        seed: 0,
    }
}

fn simulated(tokens_per_s: f64) -> Box<dyn Engine> {
    Box::new(SimulatedEngine::new("simulated-echo".into(), 2, tokens_per_s, 0))
}

/// Panics at the first step.
struct Broken(bool);

impl Engine for Broken {
    fn models(&self) -> Vec<ServedModel> {
        Vec::new()
    }
    fn name(&self) -> &'static str {
        "broken"
    }
    fn device(&self) -> String {
        String::new()
    }
    fn capacity(&self) -> usize {
        1
    }
    fn submit(&mut self, _: Job, _: Instant) {
        self.0 = true;
    }
    fn cancel(&mut self, _: &JobId) -> Option<Usage> {
        None
    }
    fn has_work(&self) -> bool {
        self.0
    }
    fn step(&mut self) -> Vec<EngineEvent> {
        panic!("device lost")
    }
}

#[tokio::test]
async fn two_jobs_run_at_once_and_each_hears_only_of_itself() {
    let (info, engine, thread) = spawn(simulated(0.0)).unwrap();
    assert_eq!((info.name, info.capacity), ("simulated", 2));
    let (mut a, mut b) = (engine.submit(job(1, 3)), engine.submit(job(2, 5)));
    for (events, tokens) in [(&mut a, 3), (&mut b, 5)] {
        let mut seen = 0;
        let mut last = None;
        while let Some(kind) = events.recv().await {
            seen += u32::from(matches!(kind, EventKind::Tokens { .. }));
            last = Some(kind);
        }
        assert_eq!(seen, tokens);
        assert!(matches!(last, Some(EventKind::Done { .. })));
    }
    thread.stop();
}

#[tokio::test]
async fn a_cancelled_job_tells_what_it_computed_and_is_gone() {
    let (_, engine, thread) = spawn(simulated(1000.0)).unwrap();
    let mut events = engine.submit(job(1, 30_000));
    while !matches!(events.recv().await, Some(EventKind::Tokens { position: 4, .. })) {}
    let usage = engine.cancel(&JobId::from_random(1)).await.unwrap();
    assert!(usage.completion_tokens >= 5);
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}

#[tokio::test]
async fn a_job_that_nobody_listens_to_is_dropped() {
    let (_, engine, thread) = spawn(simulated(0.0)).unwrap();
    drop(engine.submit(job(1, 30_000)));
    // Steps alternate with commands, so this ends once a step has found the channel closed.
    let mut other = engine.submit(job(2, 10));
    while other.recv().await.is_some() {}
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}

#[tokio::test]
async fn a_panicking_engine_ends_its_jobs_without_a_last_event_and_says_why() {
    let (_, engine, thread) = spawn(Box::new(Broken(false))).unwrap();
    let mut events = engine.submit(job(1, 1));
    assert_eq!(events.recv().await, None);
    assert_eq!(engine.failure().await, "device lost");
    // Later callers are told at once, too.
    assert_eq!(engine.submit(job(2, 1)).recv().await, None);
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}
