//! Measures what constrained answers cost: the time that steps wait for masks, and the pace of other
//! streams in the same batch.

use std::time::Instant;

use emberline_kernels::BLOCK_SIZE;
use emberline_protocol::event::EventKind;
use emberline_protocol::job::{Constraint, Job};
use emberline_protocol::measurement::ConstrainedThroughput;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::BenchError;
use super::network::median;
use super::stream::Ask;
use crate::engine::Engine;
use crate::engine::inference::{self, CacheSize, InferenceEngine, LoadOptions, StepCounts};
use crate::speculation::Speculation;

/// StreamThroughput that are measured, and as many beside them.
const STREAMS: usize = 8;
/// Measurements of each kind; the median counts.
const ROUNDS: usize = 5;
/// Steps before a measurement, prompts and first tokens among them.
const SETTLING: usize = 12;
/// Tokens of a job at most; none comes to its end.
const TOKENS: u32 = 512;

/// Measures on an engine of its own, `steps` steps for each kind of company.
pub(super) fn measure(model: &LoadOptions, steps: usize) -> Result<ConstrainedThroughput, BenchError> {
    let tokens = 2 * STREAMS * (TOKENS as usize + 128);
    let engine = inference::load(&LoadOptions {
        slots: Some(2 * STREAMS),
        cache: CacheSize::Blocks(tokens.div_ceil(BLOCK_SIZE)),
        speculation: Speculation::Off,
        ..model.clone()
    })?;
    let mut bench = Bench { engine, steps };
    let (mut alone, mut plain, mut constrained) = (Vec::new(), Vec::new(), Vec::new());
    let (mut wait_shares, mut masks_ms) = (Vec::new(), Vec::new());
    // In turns: what else the machine does comes to all of them.
    for _ in 0..ROUNDS {
        alone.push(bench.run(0, None)?.0);
        plain.push(bench.run(STREAMS, None)?.0);
        let (tokens_per_s, counts) = bench.run(STREAMS, Some(&schema()))?;
        constrained.push(tokens_per_s);
        wait_shares.push(counts.mask_wait.as_secs_f64() / counts.step_time.as_secs_f64());
        masks_ms.push(counts.mask_time.as_secs_f64() * 1e3 / counts.masks.max(1) as f64);
    }
    Ok(ConstrainedThroughput {
        streams: STREAMS,
        wait_share: median(&mut wait_shares),
        mask_ms: median(&mut masks_ms),
        tokens_per_s: median(&mut constrained),
        beside_plain_tokens_per_s: median(&mut plain),
        alone_tokens_per_s: median(&mut alone),
    })
}

struct Bench {
    engine: InferenceEngine,
    steps: usize,
}

impl Bench {
    /// The pace of plain streams beside `others`, all of the streams together, and what the engine
    /// did meanwhile.
    fn run(
        &mut self,
        others: usize,
        constraint: Option<&Constraint>,
    ) -> Result<(f64, StepCounts), BenchError> {
        let mut jobs: Vec<Job> = (0..STREAMS + others).map(job).collect();
        jobs.iter_mut().skip(STREAMS).for_each(|job| job.request.constraint = constraint.cloned());
        let ids: Vec<_> = jobs.iter().map(|job| job.id.clone()).collect();
        let _listening = jobs.into_iter().map(|job| self.submit(job)).collect::<Result<Vec<_>, _>>()?;
        self.advance(SETTLING)?;
        let (before, began) = (self.engine.counts(), Instant::now());
        self.advance(self.steps)?;
        let (after, seconds) = (self.engine.counts(), began.elapsed().as_secs_f64());
        let running = ids.iter().filter_map(|id| self.engine.cancel(id)).count();
        if running < ids.len() {
            return Err(BenchError::Engine("streams ended too early; see the log above".to_owned()));
        }
        let counts = StepCounts {
            step_time: after.step_time - before.step_time,
            masks: after.masks - before.masks,
            mask_time: after.mask_time - before.mask_time,
            mask_wait: after.mask_wait - before.mask_wait,
            ..after
        };
        Ok(((STREAMS * self.steps) as f64 / seconds, counts))
    }

    fn submit(&mut self, job: Job) -> Result<UnboundedReceiver<EventKind>, BenchError> {
        let (events, listening) = unbounded_channel();
        let prepared = self.engine.preprocessor().prepare(job, Instant::now());
        self.engine.submit(prepared.map_err(|error| BenchError::Engine(error.message))?, events);
        Ok(listening)
    }

    fn advance(&mut self, steps: usize) -> Result<(), BenchError> {
        (0..steps).try_for_each(|_| self.engine.step().map_err(|error| BenchError::Engine(error.to_string())))
    }
}

fn job(number: usize) -> Job {
    let user = format!("List what is in room {number} of the museum, with names and years, as JSON.");
    Ask { system: None, user, tokens: TOKENS }.job()
}

/// No answer comes to its end.
fn schema() -> Constraint {
    let item = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 40 },
            "kind": { "enum": ["painting", "statue", "vase", "coin"] },
            "year": { "type": "integer", "minimum": -3000, "maximum": 2100 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 20 }, "maxItems": 3 },
        },
        "required": ["name", "kind", "year", "tags"],
        "additionalProperties": false,
    });
    Constraint::JsonSchema {
        schema: json!({ "type": "array", "items": item, "minItems": 500 }),
        strict: true,
    }
}
