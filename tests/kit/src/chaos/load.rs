//! Clients that keep asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::task::JoinSet;

use super::answer::Answer;
use super::asks::Ask;
use super::check::check;
use super::recording::Recording;
use super::report::Report;
use crate::stack::{API_KEY, PATIENCE, Stack};

/// Whoever asks a stack's function.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    /// One of a stack.
    pub fn of<N>(stack: &Stack<N>) -> Self {
        Self { http: stack.http.clone(), url: format!("{}/v1/chat/completions", stack.url) }
    }

    async fn ask(&self, ask: &Ask, begun: impl FnOnce()) -> Recording {
        let request = self.http.post(&self.url).bearer_auth(API_KEY).json(&ask.body);
        Recording::of(request, ask.body["stream"] == Value::Bool(true), begun).await
    }
}

/// Requests with their answers when nothing is broken.
#[derive(Debug, Clone)]
pub struct Known(Arc<Vec<(Ask, Answer)>>);

impl Known {
    /// Asks each once, all at the same time.
    pub async fn learn(client: &Client, asks: Vec<Ask>) -> Result<Self> {
        let answers = asks.iter().map(async |ask| {
            let checked = check(&client.ask(ask, || ()).await, None).context(ask.name)?;
            ensure!(checked.answer.choices.iter().any(|choice| *choice != Default::default()), ask.name);
            anyhow::Ok(checked.answer)
        });
        let answers = try_join_all(answers).await?;
        Ok(Self(Arc::new(asks.into_iter().zip(answers).collect())))
    }
}

/// How clients behave.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// How many ask at the same time, each one request after the other.
    pub clients: usize,
    /// How many of a hundred requests are left before their end, within the given time.
    pub vanish: u32,
    /// See [`Habits::vanish`].
    pub vanish_within: Duration,
    /// Whether to come again, as `Retry-After` says, where a request was not accepted.
    pub come_again: bool,
}

impl Habits {
    /// So many that wait for their answers.
    pub fn patient(clients: usize) -> Self {
        Self { clients, vanish: 0, vanish_within: Duration::ZERO, come_again: false }
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<Report>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    known: Known,
    habits: Habits,
    begun: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    /// Begins; each client chooses from what is known.
    pub fn start(client: &Client, known: &Known, habits: Habits, random: &mut StdRng) -> Self {
        let (client, known) = (client.clone(), known.clone());
        let (begun, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { client, known, habits, begun, stop });
        let mut clients = JoinSet::new();
        for number in 0..habits.clients {
            clients.spawn(Arc::clone(&shared).keep_asking(number, StdRng::seed_from_u64(random.random())));
        }
        Self { shared, clients }
    }

    /// Waits until the first of so many more answers has come.
    pub async fn begun(&self, more: usize) -> Result<()> {
        let goal = self.shared.begun.load(Ordering::Relaxed) + more;
        let reached = async {
            while self.shared.begun.load(Ordering::Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.context("no more answers begin")
    }

    /// Lets the clients have the answers that they wait for, and ends.
    pub async fn finish(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        let finished = async {
            while let Some(report) = self.clients.join_next().await {
                all.merge(report?);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, finished).await.context("answers don't come to their end")??;
        Ok(all)
    }
}

impl Shared {
    async fn keep_asking(self: Arc<Self>, number: usize, mut random: StdRng) -> Report {
        let mut report = Report::default();
        let known = &self.known.0;
        // Not all with the same, so that each is asked even in a short run.
        let mut next = number;
        while !self.stop.load(Ordering::Relaxed) {
            let Some((ask, answer)) = known.get(next % known.len().max(1)) else { break };
            next = random.random_range(0..known.len());
            let asked = self.until_accepted(ask, &mut report);
            if random.random_range(0..100) < self.habits.vanish {
                let patience = self.habits.vanish_within.mul_f64(random.random());
                // Going away is closing the connection.
                if tokio::time::timeout(patience, asked).await.is_err() {
                    report.vanished += 1;
                }
                continue;
            }
            let recording = asked.await;
            report.add(ask.name, recording.streamed, check(&recording, Some(answer)));
        }
        report
    }

    async fn until_accepted(&self, ask: &Ask, report: &mut Report) -> Recording {
        loop {
            let recording = self.client.ask(ask, || _ = self.begun.fetch_add(1, Ordering::Relaxed)).await;
            match recording.is_put_off() {
                Some(pause) if self.habits.come_again => {
                    report.put_off(recording.ended.duration_since(recording.sent));
                    tokio::time::sleep(pause).await;
                }
                _ => return recording,
            }
        }
    }
}
