//! `emberline`: starts the whole stack on one machine, fetches what it needs, and measures it.
//!
//! [`up`] starts nats-server, the workers and the function and looks after them; [`pull`] gets
//! models and the server from the [`catalogue`] into the [`cache`]; [`bench`] and [`status`] ask a
//! running stack, which they find by [`running_stack`]; [`keys`] says who may use it
//! and [`usage`] how much they did; [`nats_setup`] sets up the streams, and [`jobs`] looks after the jobs that
//! were given up. Open [`up`] first.

mod bench;
mod cache;
mod catalogue;
mod console;
mod jobs;
mod key_gen;
mod keys;
mod nats;
mod nats_setup;
mod programs;
mod pull;
mod running_stack;
mod runtime;
mod status;
mod table;
mod time_format;
mod up;
mod usage;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use cache::Cache;

/// Large language models behind the OpenAI API, on Spin, NATS and burn.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start nats-server, workers and the function, and stop them all on Ctrl-C.
    Up(up::UpArgs),
    /// Fetch a model or nats-server into the cache and print its path.
    Pull(pull::PullArgs),
    /// Measure the running stack, or one that is started for it.
    Bench(Box<bench::BenchArgs>),
    /// Show the workers of a running stack.
    Status(nats::access::AccessArgs),
    /// Make, list, replace and take back API keys.
    Keys(Box<keys::KeysArgs>),
    /// Show what keys and models have used.
    Usage(usage::UsageArgs),
    /// List the queues and the jobs that were given up; run one again.
    Jobs(jobs::JobsArgs),
    /// Set up what lives in NATS.
    Nats(Box<nats_setup::NatsArgs>),
    /// Run a program that ends when this process's parent does.
    #[command(hide = true)]
    Tether(up::parent_death::TetherArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(&args, &Cache::from_env()?),
        Command::Pull(args) => pull::run(&args, &Cache::from_env()?),
        Command::Bench(args) => bench::run(&args, &Cache::from_env()?),
        Command::Status(args) => status::run(&args, &Cache::from_env()?),
        Command::Keys(args) => keys::run(&args, &Cache::from_env()?),
        Command::Usage(args) => usage::run(&args, &Cache::from_env()?),
        Command::Jobs(args) => jobs::run(&args, &Cache::from_env()?),
        Command::Nats(args) => nats_setup::run(&args, &Cache::from_env()?),
        Command::Tether(args) => Err(up::parent_death::run(&args)).context("emberline tether"),
    }
}
