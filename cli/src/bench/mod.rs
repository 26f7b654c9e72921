//! `emberline bench`: measures how fast a worker is, and how much time the way to it costs.
//!
//! Rates are by the worker's clock: it publishes its timings at the end of each job's event log. The time to
//! the first token is measured by the client; the part of it that exceeds the worker's own is spent in the
//! function, in NATS and in HTTP. [`engine`] measures the engine alone, [`gateway`]
//! everything but the engine.

mod client;
mod engine;
mod gateway;
mod report;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};

use crate::cache::Cache;
use crate::console::Console;
use crate::nats::access::{AccessArgs, AccessError, NatsAccess};
use crate::nats::stored;
use crate::running_stack::{self, RunningStack};
use crate::runtime::runtime;
use crate::up::plan::ALIAS;
use crate::up::{self, UpArgs};
use client::{ChatClient, ClientMeasurement, RequestError};
use report::{ReportRow, RequestSeries, Sample, StackReport};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    /// The function's URL [default: the running stack's; a stack is started if none runs]
    #[arg(long, requires = "nats")]
    url: Option<String>,
    /// Model or alias to ask for
    #[arg(long = "request-model", default_value = ALIAS, value_name = "MODEL")]
    alias: String,
    /// Approximate prompt lengths to measure, in tokens
    #[arg(long, value_delimiter = ',', default_values_t = [32, 256, 1024], value_name = "TOKENS")]
    prompts: Vec<u32>,
    /// Tokens to generate for each request
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Numbers of concurrent requests to measure
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4], value_name = "N")]
    concurrency: Vec<usize>,
    /// Requests for each measurement; concurrent requests run at least two rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
    /// Options of the stack that is started if none runs.
    #[command(flatten)]
    up: UpArgs,
}

/// Benchmarks of something other than the whole stack.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure the engine alone, and llama.cpp with the same weights
    Engine(Box<engine::EngineArgs>),
    /// Measure everything but the model, and other gateways under the same load
    Gateway(Box<gateway::GatewayArgs>),
    /// Answer chat requests with fixed words at once, behind a gateway that needs a backend
    #[command(hide = true)]
    Backend(gateway::BackendArgs),
}

/// The stack to measure.
struct BenchTarget {
    url: String,
    api_key: String,
    nats: NatsAccess,
}

pub(crate) fn run(args: &BenchArgs, cache: &Cache) -> anyhow::Result<()> {
    match &args.command {
        Some(BenchCommand::Engine(args)) => return engine::run(args, cache),
        Some(BenchCommand::Gateway(args)) => return gateway::run(args, cache),
        Some(BenchCommand::Backend(args)) => return gateway::run_backend(args),
        None => {}
    }
    ensure!(!args.concurrency.contains(&0), "--concurrency must be 1 or more");
    let runtime = runtime()?;
    let report = match running_target(args, cache)? {
        Some(target) => runtime.block_on(measure(args, &target))?,
        None => {
            let console = Console::default();
            console.print("no stack is running; starting one for the benchmark");
            let prepared = up::prepare(&args.up, cache, console)?;
            let measured =
                up::with_stack(prepared, async |stack| measure(args, &BenchTarget::of_stack(stack)?).await);
            runtime.block_on(measured)?.context("interrupted")?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.render());
    }
    Ok(())
}

/// The stack that the options name, or the running one.
fn running_target(args: &BenchArgs, cache: &Cache) -> anyhow::Result<Option<BenchTarget>> {
    let Some(url) = args.url.clone() else {
        return Ok(running_stack::find(cache)?.as_ref().map(BenchTarget::of_stack).transpose()?);
    };
    let key = args.up.api_key.clone().map_or_else(|| cache.existing_api_key(), |key| Ok(Some(key)))?;
    let api_key = key.context("--url needs --api-key or EMBERLINE_API_KEY")?;
    Ok(Some(BenchTarget { url, api_key, nats: args.access.resolve(cache)? }))
}

impl BenchTarget {
    fn of_stack(stack: &RunningStack) -> Result<Self, AccessError> {
        let nats = NatsAccess::worker(&stack.nats, stack.worker_seed.clone())?;
        Ok(Self { url: stack.url.clone(), api_key: stack.api_key.clone(), nats })
    }
}

async fn measure(args: &BenchArgs, target: &BenchTarget) -> anyhow::Result<StackReport> {
    let nats = target.nats.connect().await?;
    let heartbeats = stored::heartbeats(&nats).await?;
    let client = ChatClient::new(&target.url, &target.api_key, &args.alias);
    let mut rows = Vec::new();
    for (i, &prompt_tokens) in args.prompts.iter().enumerate() {
        for (j, &concurrency) in args.concurrency.iter().enumerate() {
            // Kernels for new shapes may have to be compiled first.
            let warm_up = match (i, j) {
                (0, _) => concurrency,
                (_, 0) => 1,
                _ => 0,
            };
            let requests = (args.requests as usize).max(if concurrency > 1 { 2 * concurrency } else { 1 });
            let load = Load { prompt_tokens, max_tokens: args.max_tokens, concurrency };
            rows.extend(measure_row(&nats, &client, load, warm_up, requests).await?);
        }
    }
    Ok(StackReport {
        url: target.url.clone(),
        model: args.alias.clone(),
        workers: heartbeats.iter().map(Into::into).collect(),
        max_tokens: args.max_tokens,
        rows,
    })
}

/// The requests of one measurement: their size, and how many run at the same time.
#[derive(Debug, Clone, Copy)]
struct Load {
    prompt_tokens: u32,
    max_tokens: u32,
    concurrency: usize,
}

async fn measure_row(
    nats: &crate::nats::access::NatsConnection,
    client: &ChatClient,
    load: Load,
    warm_up: usize,
    requests: usize,
) -> anyhow::Result<Option<ReportRow>> {
    let sender = client.clone();
    let send = move || -> Result<_, RequestError> {
        load.send(&sender, warm_up)?;
        let began = Instant::now();
        let measurements = load.send(&sender, requests)?;
        Ok((measurements, began.elapsed()))
    };
    let (measurements, total) = tokio::task::spawn_blocking(send).await??;
    let mut samples = Vec::with_capacity(measurements.len());
    for client in measurements {
        let worker = stored::timings(nats, &client.job).await?;
        samples.push(Sample { client, worker });
    }
    Ok(RequestSeries { concurrency: load.concurrency, samples, total }.summarise())
}

impl Load {
    /// Sends `requests` requests, [`Load::concurrency`] at a time. A request whose answer has no text is repeated.
    fn send(self, client: &ChatClient, requests: usize) -> Result<Vec<ClientMeasurement>, RequestError> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(requests));
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency.min(requests) {
                scope.spawn(|| {
                    while next.fetch_add(1, Ordering::Relaxed) < requests {
                        let result = self.send_one(client);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                    }
                });
            }
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
    }

    fn send_one(self, client: &ChatClient) -> Result<ClientMeasurement, RequestError> {
        let send = || client.request(&prompt(self.prompt_tokens, rand::random()), self.max_tokens);
        let is_empty =
            |result: &Result<ClientMeasurement, RequestError>| matches!(result, Err(RequestError::NoText));
        (0..MAX_EMPTY_ANSWERS)
            .map(|_| send())
            .find(|result| !is_empty(result))
            .unwrap_or(Err(RequestError::NoText))
    }
}

/// Answers without text in a row that count as an error: a model may end its turn at once, but not always.
const MAX_EMPTY_ANSWERS: usize = 5;

/// The sentences that prompts consist of, of about [`SENTENCE_TOKENS`] tokens each.
const SENTENCES: [&str; 6] = [
    "The old river carried slow boats past the stone houses of the town.",
    "Every morning the baker opened her window and sang to the children in the street.",
    "A grey cat watched the market from the roof and waited for the fishermen to return.",
    "Behind the hills the summer storm gathered, and the farmers hurried to bring in the hay.",
    "Nobody remembered who had built the clock tower, but everyone trusted its bell.",
    "In the evening they lit lamps along the bridge and told each other long stories.",
];
const SENTENCE_TOKENS: u32 = 16;
/// Approximate number of tokens that the chat template and the rest of the prompt add.
const FRAME_TOKENS: u32 = 48;

/// A prompt of about `tokens` tokens. `nonce` makes its beginning unique, so that nothing of it is cached.
fn prompt(tokens: u32, nonce: u16) -> String {
    let count = tokens.saturating_sub(FRAME_TOKENS) / SENTENCE_TOKENS;
    let start = usize::from(nonce);
    let story: Vec<&str> =
        SENTENCES.iter().cycle().skip(start % SENTENCES.len()).take(count as usize).copied().collect();
    format!("Story {nonce}. {} Write a long story about a town by a river.", story.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_the_wanted_length_and_differ_from_the_start() {
        let sentences = |tokens| prompt(tokens, 1).matches('.').count();
        assert_eq!(sentences(1024) - sentences(256), 768 / SENTENCE_TOKENS as usize);
        assert_eq!(sentences(1), sentences(0));
        assert_ne!(prompt(256, 1)[..7], prompt(256, 2)[..7]);
    }
}
