//! The engine with a tiny model, driven step by step.

mod answers;
mod constraint;
#[cfg(feature = "gpu")]
mod gpu;
mod lifecycle;
mod prompt;
mod resume;
mod speculation;

use std::path::Path;

use emberline_kernels::KvType;
use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{ErrorEvent, FinishReason, IMPOSSIBLE_LOGPROB, Timings, TokenLogprobs};
use emberline_protocol::job::{GenerationRequest, Job, Message, Role, SamplingOptions};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::device::ComputeDevice;
use crate::network::testing::{self, CONTEXT};

/// The tiny model's end token.
const END: u32 = 257;

/// Far enough in the future.
const NEVER: u64 = u64::MAX;

fn options(path: &Path) -> LoadOptions {
    LoadOptions { slots: Some(1), ..LoadOptions::new(path, "tiny", ComputeDevice::cpu()) }
}

/// The tiny model, with whatever else `change` wants.
fn engine_with(change: impl FnOnce(&mut LoadOptions)) -> Runs {
    let (folder, file) = testing::builder(&testing::tensors()).open();
    let mut options = options(file.path());
    change(&mut options);
    Runs { engine: load(&options).unwrap(), receivers: HashMap::new(), logs: Logs::new(), _folder: folder }
}

fn engine(slots: usize) -> Runs {
    engine_with(|options| options.slots = Some(slots))
}

fn job(number: u8) -> Job {
    let content = format!("number {number}");
    Job {
        v: emberline_protocol::PROTOCOL_VERSION,
        id: JobId::from_random(u128::from(number)),
        model: "tiny".to_owned(),
        created: 0,
        deadline: NEVER,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: vec![Message::new(Role::User, content)],
            max_tokens: Some(12),
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            ..GenerationRequest::default()
        },
        seed: u64::from(number),
        background: None,
        account: None,
    }
}

type Logs = HashMap<JobId, Vec<EventKind>>;

/// An engine driven step by step, and what its jobs have said so far.
struct Runs {
    engine: InferenceEngine,
    receivers: HashMap<JobId, UnboundedReceiver<EventKind>>,
    logs: Logs,
    _folder: TempDir,
}

impl Runs {
    fn submit(&mut self, job: Job) {
        let (events, receiver) = unbounded_channel();
        self.receivers.insert(job.id.clone(), receiver);
        match self.engine.preprocessor().prepare(job, Instant::now()) {
            Ok(prepared) => self.engine.submit(prepared, events),
            Err(error) => events.send(EventKind::Error(error.into())).unwrap(),
        }
    }

    fn step(&mut self) {
        self.engine.step().unwrap();
        self.read();
    }

    fn read(&mut self) {
        self.engine.flush().unwrap();
        for (job, receiver) in &mut self.receivers {
            let log = self.logs.entry(job.clone()).or_default();
            log.extend(std::iter::from_fn(|| receiver.try_recv().ok()));
        }
    }

    fn cancel(&mut self, number: u8) -> Option<Usage> {
        self.engine.cancel(&job(number).id)
    }

    fn log(&self, number: u8) -> &[EventKind] {
        &self.logs[&job(number).id]
    }

    /// Steps until all is done.
    fn finish(&mut self) {
        while self.engine.has_work() {
            self.step();
        }
        self.read();
        assert_eq!(self.engine.stats().scheduler.blocks_used, 0, "blocks are lost");
        assert!(self.engine.requests.is_empty() && self.engine.numbers.is_empty());
    }
}

fn run_all(runs: &mut Runs, jobs: impl IntoIterator<Item = Job>) -> Logs {
    jobs.into_iter().for_each(|job| runs.submit(job));
    runs.finish();
    runs.receivers.clear();
    std::mem::take(&mut runs.logs)
}

fn run(runs: &mut Runs, job: Job) -> Vec<EventKind> {
    let id = job.id.clone();
    run_all(runs, [job]).remove(&id).unwrap()
}

/// A log without what depends on clock and cache.
fn content(log: &[EventKind]) -> Vec<EventKind> {
    let timeless = |kind: &EventKind| match kind.clone() {
        EventKind::Done { usage, .. } => EventKind::Done {
            usage: Usage { cached_tokens: 0, ..usage },
            timings: Timings::default(),
            at: None,
        },
        EventKind::Accepted(acceptance) => EventKind::Accepted(Acceptance { cached_tokens: 0, ..acceptance }),
        other => other,
    };
    log.iter().map(timeless).collect()
}

fn text(log: &[EventKind]) -> String {
    log.iter()
        .filter_map(|kind| if let EventKind::Tokens { text, .. } = kind { Some(text.as_str()) } else { None })
        .collect()
}

/// Sent tokens, after checking that each event goes on where the one before ended.
fn ids(log: &[EventKind]) -> Vec<u32> {
    let mut all = Vec::new();
    for kind in log {
        if let EventKind::Tokens { position, ids, .. } = kind {
            assert_eq!(*position as usize, all.len());
            all.extend(ids);
        }
    }
    all
}

fn ending(log: &[EventKind]) -> (FinishReason, Usage) {
    let [.., EventKind::Finish { choice: 0, reason }, EventKind::Done { usage, .. }] = log else {
        panic!("no proper end: {log:?}")
    };
    (*reason, *usage)
}

fn error(log: &[EventKind]) -> &ErrorEvent {
    let [EventKind::Error(error)] = log else { panic!("not one error: {log:?}") };
    error
}

/// What a choice said: its tokens, its text, and why it ended.
fn choice(log: &[EventKind], number: u32) -> (Vec<u32>, String, FinishReason) {
    let of = |kind: &&EventKind| match kind {
        EventKind::Tokens { choice, .. } => *choice == number,
        _ => false,
    };
    let own: Vec<EventKind> = log.iter().filter(of).cloned().collect();
    let reason = log.iter().find_map(|kind| match kind {
        EventKind::Finish { choice, reason } if *choice == number => Some(*reason),
        _ => None,
    });
    (ids(&own), text(&own), reason.unwrap())
}

fn usage(log: &[EventKind]) -> Usage {
    let Some(EventKind::Done { usage, .. }) = log.last() else { panic!("no end: {log:?}") };
    *usage
}
