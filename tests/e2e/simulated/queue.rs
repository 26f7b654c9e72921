//! A full queue refuses exactly what has no place in it, and a queue is fair between keys.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::event_watcher::EventWatcher;
use emberline_test_kit::process::resident_bytes;
use emberline_test_kit::stack::{API_KEY, OTHER_KEY, Options, SIMULATED_MODEL, Stack};
use emberline_test_kit::wait;
use futures::future::try_join_all;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Number of requests that are sent at the same moment, and the time to the next ones.
const BURST: u32 = 25;
const BURST_PAUSE: Duration = Duration::from_millis(100);

fn question(max_tokens: u32) -> Value {
    json!({"model": SIMULATED_MODEL, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]})
}

/// An answer, read to its end on a connection of its own.
struct Answer {
    status: u16,
    head: String,
    body: Value,
    /// Time since its request was written.
    took: Duration,
}

impl Answer {
    fn header(&self, name: &str) -> Result<u64> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let (_, value) = lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).context(name.to_owned())?;
        value.parse().with_context(|| value.to_owned())
    }
}

/// A connection that is made before its request is sent.
struct Client(TcpStream);

impl Client {
    async fn new(stack: &Stack) -> Result<Self> {
        let address = stack.url.strip_prefix("http://").context("the stack's URL")?;
        Ok(Self(TcpStream::connect(address).await?))
    }

    async fn ask(mut self, key: &str, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nhost: test\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await?;
        let written = Instant::now();
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).await?;
        let took = written.elapsed();
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok(Answer { status, head: head.to_owned(), body: serde_json::from_str(body)?, took })
    }
}

fn check_refusal(answer: &Answer) -> Result<()> {
    let error = &answer.body["error"];
    ensure!((answer.status, error["code"].as_str()) == (503, Some("overloaded")), "{}", answer.body);
    let message = error["message"].as_str().context("no message")?;
    ensure!(message.contains("200 of its 400 places") && message.contains("simulated-echo"), "{message}");
    let (seconds, ms) = (answer.header("retry-after")?, answer.header("retry-after-ms")?);
    ensure!((1..=60).contains(&seconds) && seconds == ms.div_ceil(1000), "{seconds} s, {ms} ms");
    Ok(())
}

/// Prints the median, the 99th percentile and the longest time.
fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: median {:?}, 99 of 100 within {:?}, longest {:?}", at(50), at(99), at(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_keys_thousand_requests_a_queue_takes_exactly_its_half_and_then_another_keys() -> Result<()> {
    // No job ends before the last request is refused. Half of those that are taken run at once.
    let endless = Options::simulated(&["--slots", "100", "--simulated-tokens-per-s", "0.01"]);
    let mut stack = Stack::start_with(endless.variable("queue_limit", "400")).await?;
    let processes = [stack.host_id().context("no host")?, stack.worker_id().context("no worker")?];
    let memory = || processes.map(|process| resident_bytes(process).unwrap_or_default());

    let clients = try_join_all((0..1000).map(|_| Client::new(&stack))).await?;
    let mut answers = JoinSet::new();
    for (number, client) in (0_u32..).zip(clients) {
        let turn = BURST_PAUSE * (number / BURST);
        answers.spawn(async move {
            tokio::time::sleep(turn).await;
            client.ask(API_KEY, &question(10)).await
        });
    }
    let (mut served, mut refusals) = (Vec::new(), Vec::new());
    while refusals.len() < 800 {
        let answer = answers.join_next().await.context("fewer than 800 were refused")???;
        ensure!(answer.status == 503, "{} ended before the last was refused", answer.body);
        check_refusal(&answer)?;
        refusals.push(answer.took);
    }
    print_times("800 of 1,000 requests refused", refusals);
    let before = memory();

    // There is no room for this key, and its requests come one after the other to each of eight connections.
    for _ in 0..2 {
        let ask = async || Client::new(&stack).await?.ask(API_KEY, &question(10)).await;
        let asking = stream::iter(0..800).map(|_| ask());
        let answers: Vec<_> = asking.buffer_unordered(8).collect().await;
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        answers.iter().try_for_each(check_refusal)?;
        print_times("800 requests, 8 at a time, refused", answers.iter().map(|a| a.took).collect());
    }
    let after = memory();
    println!("resident bytes of host and worker: {before:?}, after 1,600 more requests {after:?}");
    for (before, after) in before.into_iter().zip(after) {
        ensure!(after < before + before / 10 + (16 << 20), "{before} bytes became {after}");
    }

    // A key with few jobs finds room.
    let client = Client::new(&stack).await?;
    answers.spawn(async move { client.ask(OTHER_KEY, &question(10)).await });
    wait::until("another key's job is queued", async || Ok(stack.jobs_queued().await? >= 201)).await?;

    // Another worker takes them over, and ends them.
    stack.kill_worker().await?;
    stack.start_worker(&Options::simulated(&["--slots", "100", "--simulated-tokens-per-s", "0"]))?;
    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        ensure!(answer.status == 200, "{}", answer.body);
        ensure!(answer.body["usage"]["completion_tokens"] == 10, "{}", answer.body);
        served.push(answer.took);
    }
    assert_eq!(served.len(), 201);
    print_times("201 served", served);
    // All places are free again.
    stack.wait_for_empty_queue().await?;
    let again = Client::new(&stack).await?.ask(API_KEY, &question(1)).await?;
    ensure!(again.status == 200, "{}", again.body);
    Ok(())
}

#[tokio::test]
async fn a_keys_single_request_waits_for_no_more_than_one_of_a_key_with_a_hundred() -> Result<()> {
    // Long enough that the crowd outlasts the single requests.
    let options = Options::simulated(&["--slots", "1", "--simulated-tokens-per-s", "20"]);
    let stack = Stack::start_with(options).await?;
    let events = EventWatcher::start(&stack.nats).await?;
    let mut crowd = JoinSet::new();
    for _ in 0..100 {
        let request = stack.http.post(format!("{}/v1/chat/completions", stack.url));
        let request = request.bearer_auth(API_KEY).json(&question(5));
        crowd.spawn(async move { anyhow::Ok(request.send().await?.json::<Value>().await?) });
    }
    wait::until("a hundred jobs are queued", async || Ok(stack.jobs_queued().await? >= 100)).await?;
    let mut ids = BTreeSet::new();
    for number in 1..=5 {
        let taken_when_queued = async {
            let queued = 100 + number;
            wait::until("it is queued", async || Ok(stack.jobs_queued().await? >= queued)).await?;
            Ok(events.jobs_taken())
        };
        let body = question(5);
        let single = stack.post("/v1/chat/completions", OTHER_KEY, &[], &body);
        let (single, taken_when_queued) = tokio::try_join!(single, taken_when_queued)?;
        ensure!(single.status() == 200, "{}", single.text().await?);
        let single: Value = single.json().await?;
        let id = single["id"].as_str().and_then(|id| id.strip_prefix("chatcmpl-")).context("id")?;
        let before = events.jobs_taken_before(id).await?.saturating_sub(taken_when_queued);
        // The one that the worker has asked for already.
        println!("{before} of the others went first");
        ensure!(before <= 1, "{before} of the others went first");
        ids.insert(id.to_owned());
    }
    assert_eq!(ids.len(), 5);
    while let Some(ended) = crowd.try_join_next() {
        ended??;
    }
    ensure!(crowd.len() > 50, "only {} were waiting", crowd.len());
    // Their clients disconnect, and their jobs go.
    drop(crowd);
    stack.wait_for_empty_queue().await
}
