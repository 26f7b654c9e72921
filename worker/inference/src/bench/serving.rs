//! Measures the whole engine as a job's submitter sees it: time to the first token, pace of running
//! streams, what the prefix cache saves, and the throughput of many streams.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use emberline_kernels::BLOCK_SIZE;
use emberline_protocol::measurement::{
    FirstTokenLatency, InterTokenLatency, PrefixReuse, ServingMeasurement, StreamThroughput,
};
use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinHandle};

use super::network::{Load, median};
use super::stream::{Ask, Seen, Stream};
use super::{BenchError, constrained, speculation};
use crate::engine::Engine;
use crate::engine::inference::{self, CacheSize, LoadError, LoadOptions};
use crate::engine::thread::{self, EngineHandle, EngineThread, SpawnError};
use crate::speculation::Speculation;

/// StreamThroughput that run beside what is measured.
const LOAD: usize = 8;
/// Tokens of each of them before the measurement begins.
const SETTLED: usize = 8;
/// Tokens of each of them at most.
const LOAD_TOKENS: usize = 1024;
/// How long their pace is watched before a long prompt arrives.
const WATCH: Duration = Duration::from_millis(1500);
/// Tokens of a stream whose throughput is measured.
const STREAM_TOKENS: u32 = 64;
/// Tokens of the system prompt that comes again.
const SYSTEM_TOKENS: usize = 1000;

/// Measures an engine of its own; `chunks` says what the last chunk of a long prompt takes alone,
/// for each prefill budget.
pub(super) fn measure(
    model: &LoadOptions,
    load: &Load,
    chunks: &[(usize, f64)],
) -> Result<ServingMeasurement, BenchError> {
    let mut serving = ServingMeasurement::default();
    let bench = Bench::start(model, load, None)?;
    serving.prefill_budget = bench.prefill_budget;
    serving.cache_tokens = bench.cache_tokens;
    tracing::info!("measuring streams");
    for &streams in &load.batches {
        serving.streams.push(bench.streams(streams)?);
    }
    tracing::info!("measuring the time to the first token");
    for &tokens in load.prompts.iter().filter(|tokens| bench.fits(**tokens)) {
        serving.first_token.push(bench.first_token(tokens, 0, load.repeat.min(3))?);
    }
    for &tokens in load.prompts.iter().filter(|tokens| bench.fits(**tokens)) {
        serving.first_token.push(bench.first_token(tokens, LOAD, load.repeat.min(3))?);
    }
    if bench.fits(SYSTEM_TOKENS) {
        serving.prefix = Some(bench.prefix(load.repeat)?);
    }
    bench.stop();
    tracing::info!("measuring streams that obey a schema");
    serving.constrained = Some(constrained::measure(model, 2 * load.steps)?);
    tracing::info!("measuring answers with drafts and without");
    serving.speculation = speculation::measure(model, load.repeat.min(3))?;
    let long = load.long_prompt;
    for &(budget, chunk_ms) in chunks {
        tracing::info!(budget, "measuring running streams while a prompt arrives");
        let bench = Bench::start(model, load, Some(budget))?;
        if bench.fits(long) {
            serving.gaps.push(bench.gap(long, budget, chunk_ms)?);
        }
        bench.stop();
    }
    Ok(serving)
}

/// A running engine.
struct Bench {
    handle: EngineHandle,
    thread: EngineThread,
    runtime: Runtime,
    prefill_budget: usize,
    cache_tokens: usize,
    context_length: usize,
    /// Tokens of a prompt without sentences, and of each sentence.
    frame: f64,
    sentence: f64,
}

impl Bench {
    fn start(model: &LoadOptions, load: &Load, budget: Option<usize>) -> Result<Self, BenchError> {
        let most = load.batches.iter().copied().max().unwrap_or(1);
        // Room for all that runs at once, so that nothing is preempted.
        let tokens = (most * 2 * STREAM_TOKENS as usize).max(load.long_prompt) + LOAD * LOAD_TOKENS;
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let options = LoadOptions {
            slots: Some(most.max(LOAD + 1)),
            prefill_budget: budget,
            cache: CacheSize::Blocks(blocks),
            // What the streams say repeats itself.
            speculation: Speculation::Off,
            ..model.clone()
        };
        let failed = |error: std::io::Error| BenchError::Engine(error.to_string());
        let (facts, known) = mpsc::channel();
        let load = move || -> Result<Box<dyn Engine>, LoadError> {
            let engine = inference::load(&options)?;
            // It is waited for.
            let _ = facts.send((engine.prefill_budget(), engine.stats().scheduler.blocks_total * BLOCK_SIZE));
            Ok(Box::new(engine))
        };
        let (info, handle, thread) = thread::spawn(load).map_err(|error| match error {
            SpawnError::Load(error) => BenchError::Load(error),
            other => BenchError::Engine(other.to_string()),
        })?;
        let (prefill_budget, cache_tokens) =
            known.recv().map_err(|error| BenchError::Engine(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(failed)?;
        let context_length = info.models.first().map_or(0, |model| model.context_length as usize);
        let mut bench = Self {
            handle,
            thread,
            runtime,
            prefill_budget,
            cache_tokens,
            context_length,
            frame: 0.0,
            sentence: 1.0,
        };
        bench.calibrate()?;
        Ok(bench)
    }

    fn stop(self) {
        self.thread.stop();
    }

    /// Whether a prompt of this many tokens fits the context with a short answer.
    fn fits(&self, tokens: usize) -> bool {
        tokens + 2 * STREAM_TOKENS as usize <= self.context_length
    }

    /// Learns how many tokens sentences make.
    fn calibrate(&mut self) -> Result<(), BenchError> {
        const MANY: usize = 4 * SENTENCES.len();
        let count =
            |sentences| Ok::<_, BenchError>(self.run(&ask(None, &story(sentences), 1))?.prompt_tokens as f64);
        let (none, many) = (count(0)?, count(MANY)?);
        self.frame = none;
        self.sentence = ((many - none) / MANY as f64).max(1.0);
        Ok(())
    }

    /// A prompt of about `tokens` tokens like no other.
    fn prompt(&self, tokens: usize) -> String {
        story(((tokens as f64 - self.frame) / self.sentence).round().max(0.0) as usize)
    }

    fn submit(&self, ask: &Ask) -> Stream {
        let job = ask.job();
        let id = job.id.clone();
        let _runtime = self.runtime.enter();
        Stream::new(id, self.handle.submit(job))
    }

    /// A job alone.
    fn run(&self, ask: &Ask) -> Result<Seen, BenchError> {
        let stream = self.submit(ask);
        let seen = self.runtime.block_on(stream.finish())?;
        match seen.end {
            Some(_) => Ok(seen),
            None => Err(BenchError::Engine("a job ended without an end; see the log above".to_owned())),
        }
    }

    /// From submission to the first token.
    fn first_token_ms(&self, ask: &Ask) -> Result<(f64, usize), BenchError> {
        let submitted = Instant::now();
        let seen = self.run(ask)?;
        let first = seen.arrivals.first().map(|arrival| arrival.at.saturating_duration_since(submitted));
        let first = first.ok_or_else(|| BenchError::Engine("an answer has no tokens".to_owned()))?;
        Ok((first.as_secs_f64() * 1e3, seen.prompt_tokens))
    }

    /// Time to the first token of a prompt beside `load` running streams.
    fn first_token(
        &self,
        tokens: usize,
        load: usize,
        repeat: usize,
    ) -> Result<FirstTokenLatency, BenchError> {
        let (beside, _) = self.beside(load)?;
        let (mut times, mut lengths) = (Vec::new(), Vec::new());
        for _ in 0..repeat.max(1) {
            // Two tokens: the text of the first alone may be held back.
            let (ms, length) = self.first_token_ms(&ask(None, &self.prompt(tokens), 2))?;
            times.push(ms);
            lengths.push(length as f64);
        }
        self.end(beside)?;
        Ok(FirstTokenLatency {
            prompt_tokens: median(&mut lengths) as usize,
            load,
            median_ms: median(&mut times),
            min_ms: times.iter().copied().fold(f64::INFINITY, f64::min),
            max_ms: times.iter().copied().fold(0.0, f64::max),
        })
    }

    /// Starts `count` streams that go on for long, and waits until all of them have their pace.
    fn beside(&self, count: usize) -> Result<(Vec<Stream>, Vec<Seen>), BenchError> {
        let room = LOAD_TOKENS.min(self.context_length) - 128;
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let mut streams: Vec<Stream> = (0..count).map(|_| self.submit(&ask(None, &story(1), room))).collect();
        let mut seen = vec![Seen::default(); count];
        for (stream, seen) in streams.iter_mut().zip(&mut seen) {
            self.runtime.block_on(stream.read(seen, SETTLED))?;
        }
        Ok((streams, seen))
    }

    /// Cancels streams.
    fn end(&self, streams: Vec<Stream>) -> Result<(), BenchError> {
        for stream in streams {
            self.runtime.block_on(self.handle.cancel(&stream.job));
        }
        Ok(())
    }

    /// The pace of running streams while a prompt arrives.
    fn gap(&self, tokens: usize, budget: usize, chunk_ms: f64) -> Result<InterTokenLatency, BenchError> {
        let (streams, _) = self.beside(LOAD)?;
        // Read as they come: an arrival's time is when it is read.
        let jobs: Vec<_> = streams.iter().map(|stream| stream.job.clone()).collect();
        let readers: Vec<_> = streams.into_iter().map(|stream| self.runtime.spawn(stream.finish())).collect();
        let watched = Instant::now();
        std::thread::sleep(WATCH);
        let arrived = Instant::now();
        let (first_token_ms, prompt_tokens) = self.first_token_ms(&ask(None, &self.prompt(tokens), 2))?;
        let prefilled = arrived + Duration::from_secs_f64(first_token_ms / 1e3);
        for job in &jobs {
            self.runtime.block_on(self.handle.cancel(job));
        }
        let all = self.read_all(readers)?;
        let mut before: Vec<f64> = all.iter().flat_map(|seen| seen.gaps(watched, arrived)).collect();
        let before_ms = median(&mut before);
        // The step with the prompt's first token has one for every stream, some of which come later.
        let until = prefilled + Duration::from_secs_f64(before_ms / 1e3);
        let mut during: Vec<f64> = all.iter().flat_map(|seen| seen.gaps(arrived, until)).collect();
        Ok(InterTokenLatency {
            prefill_budget: budget,
            streams: LOAD,
            prompt_tokens,
            before_ms,
            median_ms: median(&mut during),
            p99_ms: quantile(&during, 0.99),
            max_ms: quantile(&during, 1.0),
            chunk_ms,
            first_token_ms,
        })
    }

    /// A system prompt that comes again with other questions.
    fn prefix(&self, repeat: usize) -> Result<PrefixReuse, BenchError> {
        let system = self.prompt(SYSTEM_TOKENS);
        let question = |number: usize| format!("Question {number}: who lit the lamps?");
        let prefill = |system: Option<&str>, number| {
            let seen = self.run(&ask(system, &question(number), 1))?;
            let end = seen.end.ok_or_else(|| BenchError::Engine("a job was cancelled".to_owned()))?;
            Ok::<_, BenchError>((end.1.prefill_ms, end.0.cached_tokens as usize))
        };
        let (first_ms, _) = prefill(Some(&system), 100)?;
        let (mut repeated, mut own, mut cached) = (Vec::new(), Vec::new(), 0);
        // The default system prompt of a template is known by now, and is so short as to cost nothing.
        prefill(None, 200)?;
        for number in 0..repeat.max(1) {
            let (ms, tokens) = prefill(Some(&system), 101 + number)?;
            repeated.push(ms);
            cached = tokens;
            own.push(prefill(None, 201 + number)?.0);
        }
        Ok(PrefixReuse {
            system_tokens: SYSTEM_TOKENS,
            first_ms,
            repeated_ms: median(&mut repeated),
            own_ms: median(&mut own),
            cached_tokens: cached,
        })
    }

    fn read_all(&self, readers: Vec<JoinHandle<Result<Seen, BenchError>>>) -> Result<Vec<Seen>, BenchError> {
        let failed = |error: JoinError| BenchError::Engine(error.to_string());
        readers.into_iter().map(|reader| self.runtime.block_on(reader).map_err(failed)?).collect()
    }

    /// Throughput of `count` streams while all of them run.
    fn streams(&self, count: usize) -> Result<StreamThroughput, BenchError> {
        let asks = (0..count).map(|_| ask(None, &story(1), STREAM_TOKENS));
        let streams: Vec<Stream> = asks.map(|ask| self.submit(&ask)).collect();
        let readers: Vec<_> = streams.into_iter().map(|stream| self.runtime.spawn(stream.finish())).collect();
        let all = self.read_all(readers)?;
        let tokens_per_s = together(&all).ok_or_else(|| {
            BenchError::Engine(format!("{count} streams never ran all at once; see the log above"))
        })?;
        Ok(StreamThroughput { streams: count, tokens_per_s })
    }
}

/// Tokens per second from the last first token to the first last one.
fn together(streams: &[Seen]) -> Option<f64> {
    let from = streams.iter().map(|seen| seen.arrivals.first().map(|arrival| arrival.at)).max()??;
    let to = streams.iter().map(|seen| seen.arrivals.last().map(|arrival| arrival.at)).min()??;
    let seconds = to.checked_duration_since(from)?.as_secs_f64();
    let within = streams.iter().flat_map(|seen| &seen.arrivals).filter(|a| a.at > from && a.at <= to);
    let tokens: usize = within.map(|arrival| arrival.tokens).sum();
    (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds)
}

fn ask(system: Option<&str>, user: &str, tokens: u32) -> Ask {
    Ask { system: system.map(str::to_owned), user: user.to_owned(), tokens }
}

/// What prompts are made of.
const SENTENCES: [&str; 4] = [
    "The old river carried slow boats past the stone houses of the town.",
    "A grey cat watched the market from the roof and waited for the fishermen to return.",
    "Nobody remembered who had built the clock tower, but everyone trusted its bell.",
    "In the evening they lit lamps along the bridge and told each other long stories.",
];

/// A text of this many sentences with a unique beginning, so that none of it is cached.
fn story(sentences: usize) -> String {
    // Always as many digits: tokenizers may take each digit for a token.
    let number = rand::random_range(100_000..1_000_000);
    let story: Vec<&str> = SENTENCES.into_iter().cycle().take(sentences).collect();
    format!("Story {number}. {} Go on.", story.join(" "))
}

/// Nearest-rank quantile of sorted values; 0 of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stream::Arrival;

    fn seen(start: Instant, arrivals: &[(u64, usize)]) -> Seen {
        let arrivals = arrivals
            .iter()
            .map(|&(ms, tokens)| Arrival { at: start + Duration::from_millis(ms), tokens })
            .collect();
        Seen { arrivals, ..Seen::default() }
    }

    #[test]
    fn throughput_counts_only_while_all_streams_run() {
        let start = Instant::now();
        let early = seen(start, &[(0, 1), (100, 1), (200, 1), (300, 2), (400, 1)]);
        let late = seen(start, &[(200, 1), (300, 1), (600, 5)]);
        // Between 200 and 400 ms: 2 + 1 of the first, 1 of the second.
        let rate = together(&[early.clone(), late]).unwrap();
        assert!((rate - 20.0).abs() < 1e-6, "{rate}");
        assert_eq!(together(&[early, seen(start, &[(500, 1), (600, 1)])]), None, "never at once");
    }

    #[test]
    fn gaps_are_of_single_tokens_in_the_window() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let seen = seen(start, &[(0, 1), (10, 1), (30, 1), (60, 2), (100, 1), (150, 1)]);
        let gaps: Vec<f64> = seen.gaps(at(5), at(120)).map(f64::round).collect();
        assert_eq!(gaps, [10.0, 20.0, 40.0]);
    }

    #[test]
    fn stories_differ_from_the_start_and_grow() {
        assert_ne!(story(0), story(0));
        assert_eq!(story(5).len() - story(4).len(), SENTENCES[0].len() + 1);
    }
}
