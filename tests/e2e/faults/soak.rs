//! Steady load with deaths and restarts: at the end the processes hold what they held at the beginning. The
//! engine alone, with the real model, is soaked in the worker's own test.
//!
//! SOAK_SECONDS says for how long: 15 by default, ten minutes in `make soak`.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::load::clients::{Behaviour, Client, ExpectedAnswers, Load};
use emberline_test_kit::load::report::Report;
use emberline_test_kit::load::{Timeline, pause, requests};
use emberline_test_kit::process::{open_files, resident_bytes};
use emberline_test_kit::random;
use emberline_test_kit::stack::{Engine, Options, Stack};
use emberline_test_kit::wait;
use rand::RngExt as _;
use rand::rngs::StdRng;

const CLIENTS: usize = 60;
/// Number of workers; the first is never disturbed, so that it can be measured.
const WORKERS: usize = 3;
/// At most, and no more than a third of the whole time.
const WARM_UP: Duration = Duration::from_secs(12);
/// From one death or restart to the next.
const INTERVAL: Duration = Duration::from_secs(4);
const SAMPLES: u32 = 10;

/// Connections and instances are pooled and come and go with the load; a leak of one for each of
/// hundreds of requests is far more.
const MORE_FILES: u64 = 4;
const MORE_SUBSCRIPTIONS: u64 = 4;
/// An allocator's fragments and the caches of a compiled component; a leak of a few KiB for each
/// request is more in ten minutes, and one of its answer in one.
const MORE_MIB: u64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_load_with_deaths_leaves_nothing_behind() -> Result<()> {
    let lasts = random::seconds("SOAK_SECONDS", 15)?;
    let warm_up = WARM_UP.min(lasts / 3);
    let mut soak = Soak::start().await?;
    soak.run(warm_up, &mut Vec::new()).await?.conclude(&soak.timeline)?;
    let before = soak.quiet().await?;
    let mut table = vec![before];
    let report = soak.run(lasts - warm_up, &mut table).await?;
    let after = soak.quiet().await?;
    table.push(after);
    println!("{}", Sample::HEAD);
    table.iter().for_each(|sample| println!("{sample}"));
    report.conclude(&soak.timeline)?;
    ensure!(report.disconnected > 0, "no client disconnected");
    after.is_no_more_than(&before)
}

struct Soak {
    stack: Stack,
    client: Client,
    expected: ExpectedAnswers,
    random: StdRng,
    timeline: Timeline,
    began: Instant,
}

impl Soak {
    async fn start() -> Result<Self> {
        let args = "--slots 40 --simulated-tokens-per-s 20 --drain-s 1";
        let worker_args = args.split(' ').map(str::to_owned).collect();
        let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
        let mut stack = Stack::start_with(options.clone()).await?;
        for _ in 1..WORKERS {
            stack.add_worker(&options)?;
        }
        let client = Client::of(&stack);
        let expected = ExpectedAnswers::learn(&client, requests::simulated()).await?;
        let (random, timeline, began) = (random::generator()?, Timeline::default(), Instant::now());
        Ok(Self { stack, client, expected, random, timeline, began })
    }

    /// Load for a time, in which workers end; what is held meanwhile goes into `table`.
    async fn run(&mut self, time: Duration, table: &mut Vec<Sample>) -> Result<Report> {
        let behaviour = Behaviour {
            disconnect_percent: 10,
            disconnect_within: Duration::from_secs(3),
            ..Behaviour::patient(CLIENTS)
        };
        let (begin, sampled_every) = (Instant::now(), time / SAMPLES);
        let load = Load::start(&self.client, &self.expected, behaviour, &mut self.random);
        let mut next_sample = begin;
        while begin.elapsed() < time {
            pause(INTERVAL.min(time.saturating_sub(begin.elapsed()))).await;
            self.disturb().await?;
            if Instant::now() >= next_sample {
                table.push(self.sample().await?);
                next_sample += sampled_every;
            }
        }
        load.finish().await
    }

    /// Ends a worker, one way or the other, and starts it again.
    async fn disturb(&mut self) -> Result<()> {
        let victim = self.random.random_range(1..WORKERS);
        let workers = &mut self.stack.workers;
        if self.random.random() {
            workers.kill(victim).await?;
            self.timeline.note(format!("worker {victim} killed"));
        } else {
            workers.terminate(victim)?;
            ensure!(workers.exit(victim).await?.success(), "worker {victim} did not end well");
            self.timeline.note(format!("worker {victim} stopped"));
        }
        workers.start(victim)
    }

    /// What is held when nothing is asked.
    async fn quiet(&mut self) -> Result<Sample> {
        self.stack.wait_for_empty_queue().await?;
        // Instances of the function end some time after their last request, and their connections.
        let mut last = self.sample().await?;
        let settled = async {
            loop {
                pause(Duration::from_secs(2)).await;
                let now = self.sample().await?;
                if now.connections == last.connections && now.host_files == last.host_files {
                    return Ok(now);
                }
                last = now;
            }
        };
        wait::within("the number of connections settles without load", settled).await
    }

    async fn sample(&self) -> Result<Sample> {
        let Self { stack, .. } = self;
        let held = |id: Option<u32>| {
            let id = id.unwrap_or_default();
            (resident_bytes(id).unwrap_or_default() >> 20, open_files(id).unwrap_or_default())
        };
        let (host_mib, host_files) = held(stack.host_id());
        let (worker_mib, worker_files) = held(stack.workers.id(0));
        let (nats_mib, _) = held(Some(stack.nats.id()));
        let about = stack.nats.monitoring("varz").await?;
        let count = |name: &str| about[name].as_u64().with_context(|| format!("varz has no {name}"));
        Ok(Sample {
            seconds: self.began.elapsed().as_secs(),
            host_mib,
            host_files,
            worker_mib,
            worker_files,
            nats_mib,
            connections: count("connections")?,
            subscriptions: count("subscriptions")?,
        })
    }
}

/// What the processes hold at a time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: u64,
    host_mib: u64,
    host_files: u64,
    worker_mib: u64,
    worker_files: u64,
    nats_mib: u64,
    connections: u64,
    subscriptions: u64,
}

impl Sample {
    const HEAD: &str = "     s | host MiB, files | worker MiB, files | nats MiB, connections, subscriptions";

    fn is_no_more_than(&self, before: &Self) -> Result<()> {
        let limits = [
            ("the host's memory", self.host_mib, before.host_mib + MORE_MIB),
            ("the worker's memory", self.worker_mib, before.worker_mib + MORE_MIB),
            ("the host's files", self.host_files, before.host_files + MORE_FILES),
            ("the worker's files", self.worker_files, before.worker_files + MORE_FILES),
            ("connections to NATS", self.connections, before.connections),
            ("subscriptions", self.subscriptions, before.subscriptions + MORE_SUBSCRIPTIONS),
        ];
        for (what, found, limit) in limits {
            ensure!(found <= limit, "{what}: {found} at the end, which is more than {limit}");
        }
        Ok(())
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, host_mib, host_files, worker_mib, worker_files, .. } = self;
        let Self { nats_mib, connections, subscriptions, .. } = self;
        write!(f, "{seconds:6} | {host_mib:8}, {host_files:5} | {worker_mib:10}, {worker_files:5} | ")?;
        write!(f, "{nats_mib:8}, {connections:11}, {subscriptions:13}")
    }
}
