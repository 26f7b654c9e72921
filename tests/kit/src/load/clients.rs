//! Clients that keep sending requests.

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
use super::check::check;
use super::recording::Recording;
use super::report::Report;
use super::requests::TestRequest;
use crate::stack::{API_KEY, Stack};
use crate::wait;

/// A client of a stack's function.
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

    async fn send(&self, request: &TestRequest, begun: impl FnOnce()) -> Recording {
        let sent = self.http.post(&self.url).bearer_auth(API_KEY).json(&request.body);
        Recording::of(sent, request.body["stream"] == Value::Bool(true), begun).await
    }
}

/// Requests with the answers that they have when nothing is broken.
#[derive(Debug, Clone)]
pub struct ExpectedAnswers(Arc<Vec<(TestRequest, Answer)>>);

impl ExpectedAnswers {
    /// Sends each request once, all at the same time.
    pub async fn learn(client: &Client, requests: Vec<TestRequest>) -> Result<Self> {
        let answers = requests.iter().map(async |request| {
            let checked = check(&client.send(request, || ()).await, None).context(request.name)?;
            ensure!(checked.answer.choices.iter().any(|choice| *choice != Default::default()), request.name);
            anyhow::Ok(checked.answer)
        });
        let answers = try_join_all(answers).await?;
        Ok(Self(Arc::new(requests.into_iter().zip(answers).collect())))
    }
}

/// How clients behave.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Number of clients; each sends one request after the other.
    pub clients: usize,
    /// Percentage of requests whose client disconnects before the end, within `disconnect_within`.
    pub disconnect_percent: u32,
    /// The longest time until such a client disconnects.
    pub disconnect_within: Duration,
    /// Whether to try again, as `Retry-After` says, when a request is refused.
    pub retry: bool,
}

impl Behaviour {
    /// Clients that wait for every answer.
    pub fn patient(clients: usize) -> Self {
        Self { clients, disconnect_percent: 0, disconnect_within: Duration::ZERO, retry: false }
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
    expected: ExpectedAnswers,
    behaviour: Behaviour,
    begun: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    /// Starts the clients; each chooses from the expected requests.
    pub fn start(
        client: &Client,
        expected: &ExpectedAnswers,
        behaviour: Behaviour,
        random: &mut StdRng,
    ) -> Self {
        let (client, expected) = (client.clone(), expected.clone());
        let (begun, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { client, expected, behaviour, begun, stop });
        let mut clients = JoinSet::new();
        for number in 0..behaviour.clients {
            clients.spawn(Arc::clone(&shared).keep_asking(number, StdRng::seed_from_u64(random.random())));
        }
        Self { shared, clients }
    }

    /// Waits until `more` more answers have begun to arrive.
    pub async fn wait_for_answers(&self, more: usize) -> Result<()> {
        let goal = self.shared.begun.load(Ordering::Relaxed) + more;
        wait::until(format!("{more} more answers begin"), async || {
            Ok(self.shared.begun.load(Ordering::Relaxed) >= goal)
        })
        .await
    }

    /// Waits for the answers that are under way, and ends.
    pub async fn finish(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        let finished = async {
            while let Some(report) = self.clients.join_next().await {
                all.merge(report?);
            }
            Ok(())
        };
        wait::within("all answers end", finished).await?;
        Ok(all)
    }
}

impl Shared {
    async fn keep_asking(self: Arc<Self>, number: usize, mut random: StdRng) -> Report {
        let mut report = Report::default();
        let expected = &self.expected.0;
        // Not all with the same, so that each is asked even in a short run.
        let mut next = number;
        while !self.stop.load(Ordering::Relaxed) {
            let Some((request, answer)) = expected.get(next % expected.len().max(1)) else { break };
            next = random.random_range(0..expected.len());
            let asked = self.until_accepted(request, &mut report);
            if random.random_range(0..100) < self.behaviour.disconnect_percent {
                let patience = self.behaviour.disconnect_within.mul_f64(random.random());
                // Going away is closing the connection.
                if tokio::time::timeout(patience, asked).await.is_err() {
                    report.disconnected += 1;
                }
                continue;
            }
            let recording = asked.await;
            report.add(request.name, recording.streamed, check(&recording, Some(answer)));
        }
        report
    }

    async fn until_accepted(&self, request: &TestRequest, report: &mut Report) -> Recording {
        loop {
            let recording =
                self.client.send(request, || _ = self.begun.fetch_add(1, Ordering::Relaxed)).await;
            match recording.retry_later() {
                Some(pause) if self.behaviour.retry => {
                    report.retried(recording.ended.duration_since(recording.sent));
                    tokio::time::sleep(pause).await;
                }
                _ => return recording,
            }
        }
    }
}
