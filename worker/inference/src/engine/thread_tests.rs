use std::convert::Infallible;

use emberline_protocol::event::Acceptance;
use emberline_protocol::job::{GenerationRequest, SamplingOptions};
use emberline_protocol::tokens::{TokensReply, TokensRequest};

use super::*;
use crate::engine::simulated::SimulatedEngine;
use crate::network::ComputeError;

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
            ..GenerationRequest::default()
        },
        seed: 0,
        background: None,
        account: None,
    }
}

fn simulated(tokens_per_s: f64) -> Box<dyn Engine> {
    Box::new(SimulatedEngine::new("simulated-echo".into(), 2, tokens_per_s, 0))
}

/// Fails at the first step: by a panic with one job, by an error with more, because its device is lost.
struct Broken(Vec<EventSink>);

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
    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }
    fn preprocessor(&self) -> Arc<dyn Preprocessor> {
        Arc::new(Fussy)
    }
    fn submit(&mut self, _: PreparedRequest, events: EventSink) {
        self.0.push(events);
    }
    fn cancel(&mut self, _: &JobId) -> Option<Usage> {
        None
    }
    fn has_work(&self) -> bool {
        !self.0.is_empty()
    }
    fn step(&mut self) -> Result<(), EngineError> {
        match self.0.len() {
            1 => panic!("no more memory"),
            _ => Err(EngineError::Compute(ComputeError("no answer".into()))),
        }
    }
    fn close_all(&mut self) {
        // So that the last question can be answered.
        self.0.truncate(self.0.len() - 1);
    }
    fn lost_device(&mut self) -> Option<String> {
        let is_lost = !self.0.is_empty();
        self.0.clear();
        is_lost.then(|| "a reset".to_owned())
    }
}

fn started(engine: Box<dyn Engine>) -> (EngineInfo, EngineHandle, EngineThread) {
    spawn(|| Ok::<_, Infallible>(engine)).unwrap()
}

#[test]
fn an_engine_that_can_not_be_loaded_has_no_thread() {
    let error = spawn(|| Err("no such file")).unwrap_err();
    assert!(matches!(error, SpawnError::Load("no such file")), "{error:?}");
    let panics = || -> Result<Box<dyn Engine>, Infallible> { panic!("out of bounds") };
    let error = spawn(panics).unwrap_err();
    assert!(matches!(&error, SpawnError::Panic(message) if message == "out of bounds"), "{error:?}");
}

/// Panics at a job that wants 13 tokens, and takes its time over one that wants 1000.
#[derive(Debug)]
struct Fussy;

impl Preprocessor for Fussy {
    fn prepare(&self, job: Job, taken: Instant) -> Result<PreparedRequest, ApiError> {
        match job.request.max_tokens {
            Some(13) => panic!("unlucky"),
            Some(1000) => std::thread::sleep(std::time::Duration::from_millis(300)),
            _ => {}
        }
        let (prompt, acceptance, resumed) = (vec![0], Acceptance::default(), Vec::new());
        Ok(PreparedRequest {
            job,
            taken,
            prompt,
            limit: 1,
            acceptance,
            grammar: None,
            resumed,
            bad_words: [].into(),
            resumed_prompt: 0,
        })
    }

    fn convert(&self, _: TokensRequest) -> Result<TokensReply, ApiError> {
        unreachable!("nobody asks")
    }
}

#[tokio::test]
async fn two_jobs_run_at_once_and_each_hears_only_of_itself() {
    let (info, engine, thread) = started(simulated(0.0));
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
async fn a_step_is_timed_while_it_lasts() {
    let (_, engine, thread) = started(simulated(1.0));
    let progress = engine.progress().clone();
    assert_eq!(progress.step_time(), None);
    let wait_until = async |is_in_step: bool| {
        while progress.step_time().is_some() != is_in_step {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let events = engine.submit(job(1, 30_000));
    wait_until(true).await;
    drop(events);
    wait_until(false).await;
    thread.stop();
}

#[tokio::test]
async fn a_cancelled_job_tells_what_it_computed_and_is_gone() {
    let (_, engine, thread) = started(simulated(1000.0));
    let mut events = engine.submit(job(1, 30_000));
    while !matches!(events.recv().await, Some(EventKind::Tokens { position: 4, .. })) {}
    let usage = engine.cancel(&JobId::from_random(1)).await.unwrap();
    assert!(usage.completion_tokens >= 5);
    assert!(engine.stats().generated_tokens >= 4);
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}

#[tokio::test]
async fn a_job_that_nobody_listens_to_is_dropped() {
    let (_, engine, thread) = started(simulated(0.0));
    drop(engine.submit(job(1, 30_000)));
    // Steps alternate with commands, so this ends once a step has found the channel closed.
    let mut other = engine.submit(job(2, 10));
    while other.recv().await.is_some() {}
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}

#[tokio::test]
async fn a_panicking_engine_ends_its_jobs_without_a_last_event_and_says_why() {
    let (_, engine, thread) = started(Box::new(Broken(Vec::new())));
    let mut events = engine.submit(job(1, 1));
    assert_eq!(events.recv().await, None);
    let failure = EngineFailure { reason: "no more memory".to_owned(), is_device_lost: false };
    assert_eq!(engine.failure().await, failure);
    // Later callers are told at once, too.
    assert_eq!(engine.submit(job(2, 1)).recv().await, None);
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}

#[tokio::test]
async fn an_error_ends_an_engine_as_a_panic_does() {
    let mut broken = Broken(Vec::new());
    let (sink, mut waiting) = unbounded_channel();
    broken.0.push(sink.clone());
    broken.0.push(sink);
    let (_, engine, thread) = started(Box::new(broken));
    assert_eq!(waiting.recv().await, None);
    // This engine has lost its device, and that is the reason.
    let failure = EngineFailure { reason: "a reset".to_owned(), is_device_lost: true };
    assert_eq!(engine.failure().await, failure);
    thread.stop();
}

#[tokio::test]
async fn a_job_whose_preparation_panics_is_refused_and_nothing_else_happens() {
    let (_, engine, thread) = started(Box::new(Broken(Vec::new())));
    let mut events = engine.submit(job(1, 13));
    let Some(EventKind::Error(error)) = events.recv().await else { panic!("no error") };
    assert_eq!((error.status, error.code), (500, ErrorCode::InternalError));
    assert_eq!(events.recv().await, None);
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, None);
    thread.stop();
}

#[tokio::test]
async fn a_job_cancelled_while_it_is_prepared_never_reaches_the_engine() {
    let (_, engine, thread) = started(Box::new(Broken(Vec::new())));
    let mut events = engine.submit(job(1, 1000));
    assert_eq!(engine.cancel(&JobId::from_random(1)).await, Some(Usage::default()));
    assert_eq!(events.recv().await, None);
    // The engine would have failed by now.
    assert!(engine.submit(job(2, 13)).recv().await.is_some());
    thread.stop();
}
