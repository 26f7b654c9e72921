//! Measures what drafts save: the same answers with prompt look-up and without, in turns.

use std::time::{Duration, Instant};

use emberline_kernels::BLOCK_SIZE;
use emberline_protocol::event::EventKind;
use emberline_protocol::measurement::SpeculationGain;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::BenchError;
use super::network::median;
use super::stream::Ask;
use crate::engine::Engine;
use crate::engine::inference::{self, CacheSize, InferenceEngine, LoadOptions};
use crate::speculation::Speculation;

/// Tokens of an answer at most.
const TOKENS: u32 = 256;
/// Streams at once.
const STREAMS: [usize; 2] = [1, 8];
/// Tokens of a prompt at most.
const PROMPT: usize = 1024;

const CODE: &str = "\
class Account:
    def __init__(self, owner, total=0):
        self.owner = owner
        self.total = total
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError(\"the amount must be positive\")
        self.total = self.total + amount
        self.history.append((\"deposit\", amount))

    def withdraw(self, amount):
        if amount > self.total:
            raise ValueError(\"there is not enough money\")
        self.total = self.total - amount
        self.history.append((\"withdraw\", amount))

    def report(self):
        for kind, amount in self.history:
            print(kind, amount)
        print(\"total\", self.total)
";

const ARTICLE: &str = "\
The harbour of the old town was closed on Monday morning after a storm had torn three fishing boats from their \
moorings. Nobody was hurt, but one of the boats, the Northern Light, sank in front of the pier and blocks the way \
for larger ships. The harbour master, Ingrid Solberg, said that a crane from the shipyard would lift the boat on \
Wednesday if the wind allows it. Until then the ferry to the islands leaves from the new quay, two kilometres to \
the south, and the town has promised buses between the two. The owners of the fishing boats said that they had \
asked for stronger moorings for years. The mayor answered that the money for them was in the budget of the coming \
year. The weather service expects strong winds until Tuesday evening and calm weather after that.";

/// What is asked, and its name.
fn asks() -> [(&'static str, String); 3] {
    let edit = format!(
        "Rename `total` to `balance` everywhere in this program and answer with the whole program.\n\n\
         ```python\n{CODE}```"
    );
    let summary =
        format!("Summarize this article in five sentences, and quote what people said.\n\n{ARTICLE}");
    let story = "Write a story about a lighthouse keeper who finds a letter.".to_owned();
    [("edit code", edit), ("summary", summary), ("story", story)]
}

/// Measures on an engine of its own; the median of `rounds` counts. Nothing is measured where the context is
/// too short.
pub(super) fn measure(model: &LoadOptions, rounds: usize) -> Result<Vec<SpeculationGain>, BenchError> {
    let most = STREAMS.into_iter().max().unwrap_or(1);
    let engine = inference::load(&LoadOptions {
        slots: Some(most),
        cache: CacheSize::Blocks((most * (PROMPT + TOKENS as usize)).div_ceil(BLOCK_SIZE)),
        speculation: Speculation::PromptLookup,
        ..model.clone()
    })?;
    let context = engine.models().first().map_or(0, |model| model.context_length as usize);
    if context < PROMPT + TOKENS as usize {
        return Ok(Vec::new());
    }
    let mut bench = Bench { engine };
    let asks = asks();
    let kinds = asks.iter().flat_map(|ask| STREAMS.map(|streams| (ask, streams)));
    kinds.map(|((name, user), streams)| bench.compare(name, user, streams, rounds.max(1))).collect()
}

struct Bench {
    engine: InferenceEngine,
}

/// Answers, and what they took from the first token of each on.
struct Decoded {
    answers: Vec<Vec<u32>>,
    tokens: u64,
    steps: u64,
    drafted: u64,
    accepted: u64,
    time: Duration,
}

impl Bench {
    fn compare(
        &mut self,
        name: &str,
        user: &str,
        streams: usize,
        rounds: usize,
    ) -> Result<SpeculationGain, BenchError> {
        // The first run is not measured: it finds cold memory.
        let expected = self.decode(user, streams, false)?.answers;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let mut gain = SpeculationGain {
            prompt: name.to_owned(),
            streams,
            tokens: 0,
            steps: 0,
            plain_steps: 0,
            drafted: 0,
            accepted: 0,
            tokens_per_s: 0.0,
            plain_tokens_per_s: 0.0,
        };
        for _ in 0..rounds {
            for (drafts, rates) in [(false, &mut without), (true, &mut with)] {
                let decoded = self.decode(user, streams, drafts)?;
                if decoded.answers != expected {
                    return Err(BenchError::Engine("an answer depends on what is drafted".to_owned()));
                }
                rates.push(decoded.tokens as f64 / decoded.time.as_secs_f64());
                gain.tokens = decoded.tokens;
                if drafts {
                    (gain.steps, gain.drafted, gain.accepted) =
                        (decoded.steps, decoded.drafted, decoded.accepted);
                } else {
                    gain.plain_steps = decoded.steps;
                }
            }
        }
        (gain.tokens_per_s, gain.plain_tokens_per_s) = (median(&mut with), median(&mut without));
        Ok(gain)
    }

    fn decode(&mut self, user: &str, streams: usize, drafts: bool) -> Result<Decoded, BenchError> {
        self.engine.set_drafting(drafts);
        let receivers: Vec<_> = (0..streams).map(|_| self.submit(user)).collect::<Result<_, _>>()?;
        let generated = |engine: &InferenceEngine| engine.stats().generated_tokens;
        let first = generated(&self.engine) + streams as u64;
        while self.engine.has_work() && generated(&self.engine) < first {
            self.step()?;
        }
        let (before, from) = (self.engine.counts(), generated(&self.engine));
        let began = Instant::now();
        while self.engine.has_work() {
            self.step()?;
        }
        let (time, after) = (began.elapsed(), self.engine.counts());
        self.engine.flush().map_err(|error| BenchError::Engine(error.to_string()))?;
        Ok(Decoded {
            answers: receivers.into_iter().map(ids).collect(),
            tokens: generated(&self.engine) - from,
            steps: after.steps - before.steps,
            drafted: after.drafted - before.drafted,
            accepted: after.accepted - before.accepted,
            time,
        })
    }

    fn submit(&mut self, user: &str) -> Result<UnboundedReceiver<EventKind>, BenchError> {
        let (events, receiver) = unbounded_channel();
        let mut job = Ask { system: None, user: user.to_owned(), tokens: TOKENS }.job();
        // What comes after an answer's end repeats itself.
        job.request.sampling.ignore_eos = false;
        let prepared = self.engine.preprocessor().prepare(job, Instant::now());
        self.engine.submit(prepared.map_err(|error| BenchError::Engine(error.message))?, events);
        Ok(receiver)
    }

    fn step(&mut self) -> Result<(), BenchError> {
        self.engine.step().map_err(|error| BenchError::Engine(error.to_string()))
    }
}

fn ids(mut events: UnboundedReceiver<EventKind>) -> Vec<u32> {
    let of_event = |event| match event {
        EventKind::Tokens { ids, .. } => ids,
        _ => Vec::new(),
    };
    std::iter::from_fn(|| events.try_recv().ok()).flat_map(of_event).collect()
}
