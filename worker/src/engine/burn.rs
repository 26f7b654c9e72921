//! The engine that runs a model with burn.
//!
//! A step looks at new jobs, computes at most one block of one prompt, and decodes one token for
//! each sequence that is past its prompt. So a long prompt holds up running answers by one block
//! at a time, and each sequence is computed alone: its tokens are what they would be without the
//! others.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::{EventKind, Usage};
use emberline_shared::heartbeat::ServedModel;
use emberline_shared::job::Job;
use emberline_shared::subject::JobId;

use super::sequence::{Sequence, too_long};
use super::{Engine, EngineEvent};
use crate::device::{Backend, ComputeDevice};
use crate::gguf::{GgufError, GgufFile};
use crate::model::{self, ComputeError, Llama, LlamaConfig, LoadError, Shapes};
use crate::template::{ChatTemplate, PromptContext, TemplateError};
use crate::tokenizer::ModelTokenizer;

/// What to load, and where.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The GGUF file.
    pub path: PathBuf,
    /// The name it is served under.
    pub name: String,
    /// Where to compute.
    pub backend: Backend,
    /// A wgpu adapter, by its number or part of its name.
    pub adapter: Option<String>,
    /// Sequences at once.
    pub slots: usize,
}

/// A model on its device, and the jobs it is working on.
#[derive(Debug)]
pub struct BurnEngine {
    model: Llama,
    tokenizer: ModelTokenizer,
    template: ChatTemplate,
    served: ServedModel,
    fingerprint: String,
    device: String,
    slots: usize,
    /// Jobs that no step has seen yet.
    arrived: Vec<(Job, Instant)>,
    /// Accepted, without a slot.
    waiting: VecDeque<Sequence>,
    /// Each holds a slot.
    running: Vec<Sequence>,
}

/// Loads a model, ready to serve.
pub fn load(options: &LoadOptions) -> Result<BurnEngine, LoadError> {
    let path = &options.path;
    let began = Instant::now();
    let file = GgufFile::open(path)?;
    // First of all: another architecture would fail with a less telling error further on.
    LlamaConfig::from_gguf(&file)?;
    let tokenizer = ModelTokenizer::from_gguf(&file)
        .map_err(|source| LoadError::Tokenizer { path: path.clone(), source })?;
    let template = ChatTemplate::from_gguf(&file)
        .map_err(|source| LoadError::Template { path: path.clone(), source })?;
    let device = ComputeDevice::open(options.backend, options.adapter.as_deref())?;
    let model = model::load(&file, &device)?;
    let (tokens, rows) = (tokenizer.vocab_size(), model.vocabulary());
    if tokens > rows {
        return Err(LoadError::Vocabulary { path: path.clone(), tokens, rows });
    }
    if device.shapes == Shapes::Bucketed {
        warm_up(&model)?;
    }
    let context_length = u32::try_from(model.config().context_length).unwrap_or(u32::MAX);
    let created = since_epoch().as_secs();
    let seconds = began.elapsed().as_secs_f32();
    tracing::info!(model = %options.name, device = %device.description, context_length, seconds, "model loaded");
    Ok(BurnEngine {
        model,
        tokenizer,
        template,
        served: ServedModel { name: options.name.clone(), context_length, created },
        fingerprint: fingerprint(path, &options.name)?,
        device: device.description,
        slots: options.slots.max(1),
        arrived: Vec::new(),
        waiting: VecDeque::new(),
        running: Vec::new(),
    })
}

/// Has the device compile and tune its kernels before a client waits for them.
fn warm_up(model: &Llama) -> Result<(), ComputeError> {
    let mut cache = model.new_cache(0);
    model.forward(&[0, 0], &mut cache)?;
    model.forward(&[0], &mut cache)?;
    Ok(())
}

impl Engine for BurnEngine {
    fn models(&self) -> Vec<ServedModel> {
        vec![self.served.clone()]
    }

    fn name(&self) -> &'static str {
        "burn"
    }

    fn device(&self) -> String {
        self.device.clone()
    }

    fn capacity(&self) -> usize {
        self.slots
    }

    fn submit(&mut self, job: Job, taken: Instant) {
        self.arrived.push((job, taken));
    }

    fn cancel(&mut self, job: &JobId) -> Option<Usage> {
        if let Some(index) = self.arrived.iter().position(|(arrived, _)| arrived.id == *job) {
            self.arrived.remove(index);
            return Some(Usage::default());
        }
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.job == *job) {
            return self.waiting.remove(index).map(|sequence| sequence.usage());
        }
        let index = self.running.iter().position(|sequence| sequence.job == *job)?;
        Some(self.running.remove(index).usage())
    }

    fn has_work(&self) -> bool {
        !(self.arrived.is_empty() && self.waiting.is_empty() && self.running.is_empty())
    }

    fn step(&mut self) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        self.expire(&mut events);
        self.admit(&mut events);
        let free = self.slots.saturating_sub(self.running.len());
        let starting = free.min(self.waiting.len());
        self.running.extend(self.waiting.drain(..starting));
        self.advance(&mut events);
        events
    }
}

impl BurnEngine {
    /// Ends jobs whose answer nobody waits for any more.
    fn expire(&mut self, events: &mut Vec<EngineEvent>) {
        let now = u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX);
        let mut keep = |job: &JobId, deadline: u64| {
            let expired = deadline <= now;
            if expired {
                let message = "The answer was not complete in time. Ask for fewer tokens or try again later.";
                events.push(failed(job, ApiError::new(ErrorCode::Timeout, message)));
            }
            !expired
        };
        self.arrived.retain(|(job, _)| keep(&job.id, job.deadline));
        self.waiting.retain(|sequence| keep(&sequence.job, sequence.deadline));
        self.running.retain(|sequence| keep(&sequence.job, sequence.deadline));
    }

    /// Accepts or refuses the jobs that have come since the last step.
    fn admit(&mut self, events: &mut Vec<EngineEvent>) {
        for (job, taken) in std::mem::take(&mut self.arrived) {
            let id = job.id.clone();
            let prompt = self.prompt(&job);
            let sequence =
                prompt.and_then(|prompt| Sequence::new(job, taken, prompt, &self.model, &self.tokenizer));
            match sequence {
                Ok(sequence) => {
                    let kind = EventKind::Accepted {
                        prompt_tokens: sequence.prompt_tokens(),
                        cached_tokens: 0,
                        fingerprint: self.fingerprint.clone(),
                    };
                    events.push(EngineEvent { job: id, kind });
                    self.waiting.push_back(sequence);
                }
                Err(error) => events.push(failed(&id, error)),
            }
        }
    }

    /// The token ids of a conversation.
    fn prompt(&self, job: &Job) -> Result<Vec<u32>, ApiError> {
        let internal = |error: &dyn std::error::Error| {
            tracing::error!(%error, "a prompt can't be built");
            ApiError::new(ErrorCode::InternalError, "The prompt could not be built.")
        };
        let (request, about) = (&job.request, PromptContext::at(job.created));
        let text = self.template.render(&request.messages, &about).map_err(|error| match error {
            TemplateError::TooLong => ApiError::field(ErrorCode::InvalidValue, "messages", error.to_string()),
            TemplateError::Refused(reason) => {
                let message = format!(
                    "The model's chat template refuses these messages: {reason}. Change the messages."
                );
                ApiError::field(ErrorCode::InvalidValue, "messages", message)
            }
            other => internal(&other),
        })?;
        // Encoding what can't fit anyway would hold up every other sequence.
        let least = self.tokenizer.least_tokens(&text);
        if least >= self.served.context_length as usize {
            let prompt = format!("at least {least}");
            return Err(too_long(&prompt, request.max_tokens, self.served.context_length));
        }
        let tokens = self.tokenizer.encode_prompt(&text).map_err(|error| internal(&error))?;
        match tokens.is_empty() {
            true => Err(ApiError::field(
                ErrorCode::InvalidValue,
                "messages",
                "The messages make an empty prompt. Add text.",
            )),
            false => Ok(tokens),
        }
    }

    /// One block of the oldest unfinished prompt, and one token for every other sequence.
    fn advance(&mut self, events: &mut Vec<EngineEvent>) {
        let prefilling = self.running.iter().position(|sequence| !sequence.is_prefilled());
        let (model, tokenizer) = (&self.model, &self.tokenizer);
        let mut index = 0;
        self.running.retain_mut(|sequence| {
            let has_turn = sequence.is_prefilled() || prefilling == Some(index);
            index += 1;
            if !has_turn {
                return true;
            }
            let tokens = sequence.next_tokens(model.block());
            match model.forward(&tokens, &mut sequence.cache) {
                Ok(_) if !sequence.is_prefilled() => true,
                Ok(logits) => {
                    let (kinds, finished) = sequence.pick(&logits, tokenizer);
                    let job = &sequence.job;
                    events.extend(kinds.into_iter().map(|kind| EngineEvent { job: job.clone(), kind }));
                    !finished
                }
                Err(error) => {
                    tracing::error!(job = %sequence.job, %error, "a computation failed");
                    let message = "The model could not compute an answer. Try again.";
                    events.push(failed(&sequence.job, ApiError::new(ErrorCode::InternalError, message)));
                    false
                }
            }
        });
    }
}

fn failed(job: &JobId, error: ApiError) -> EngineEvent {
    EngineEvent { job: job.clone(), kind: EventKind::Error(error.into()) }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Names engine version and weights: `emberline-<version>-<8 hexadecimal digits>`.
///
/// The digits hash the model's name, the file's size and its beginning, which holds the metadata:
/// cheap, and the same on every worker that has the same file.
fn fingerprint(path: &Path, name: &str) -> Result<String, GgufError> {
    const BEGINNING: u64 = 1 << 20;
    let io = |source| GgufError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut beginning = Vec::new();
    file.take(BEGINNING).read_to_end(&mut beginning).map_err(io)?;
    // FNV-1a, from http://www.isthe.com/chongo/tech/comp/fnv/
    let bytes = name.bytes().chain(size.to_le_bytes()).chain(beginning);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ok(format!("emberline-{}-{:08x}", env!("CARGO_PKG_VERSION"), (hash >> 32) ^ (hash & 0xffff_ffff)))
}

#[cfg(test)]
#[path = "burn_tests.rs"]
mod tests;
