//! A queue that is full, and one that is fair between keys.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::stack::{API_KEY, Engine, OTHER_KEY, Options, Stack};
use futures::future::try_join_all;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Requests that are sent at the same moment, and the time to the next ones. All thousand of them on
/// two cores that host, worker and nats-server share would measure how long these take to open a
/// thousand connections.
const BURST: u32 = 25;
const BURST_PAUSE: Duration = Duration::from_millis(100);

fn options(worker_args: &[&str], variables: &[(&'static str, &str)]) -> Options {
    Options {
        engine: Engine::Simulated,
        worker_args: worker_args.iter().map(|&arg| arg.to_owned()).collect(),
        variables: variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
    }
}

fn question(max_tokens: u32) -> Value {
    json!({"model": "simulated-echo", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]})
}

/// An answer, read to its end on a connection of its own.
struct Answer {
    status: u16,
    head: String,
    body: Value,
    /// From when its request was written.
    took: Duration,
}

impl Answer {
    fn header(&self, name: &str) -> Result<u64> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let (_, value) = lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).context(name.to_owned())?;
        value.parse().with_context(|| value.to_owned())
    }
}

/// A connection, made before anything is measured.
struct Client(TcpStream);

impl Client {
    async fn new(stack: &Stack) -> Result<Self> {
        let address = stack.url.strip_prefix("http://").context("the stack's URL")?;
        Ok(Self(TcpStream::connect(address).await?))
    }

    async fn ask(mut self, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nhost: test\r\nauthorization: Bearer {API_KEY}\r\n\
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
    ensure!(message.contains("200") && message.contains("simulated-echo"), "{message}");
    let (seconds, ms) = (answer.header("retry-after")?, answer.header("retry-after-ms")?);
    ensure!((1..=60).contains(&seconds) && seconds == ms.div_ceil(1000), "{seconds} s, {ms} ms");
    Ok(())
}

/// Prints the median, the 99th percentile and the longest; gives the median.
fn told(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: median {:?}, 99 of 100 within {:?}, longest {:?}", at(50), at(99), at(100));
    at(50)
}

/// Bytes of a process that are in memory.
fn resident(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_requests_a_queue_with_room_for_two_hundred_takes_exactly_these() -> Result<()> {
    // A job takes 20 s: none ends before the last request is refused. Half of them run at once.
    let options = options(&["--slots", "100", "--simulated-tokens-per-s", "0.5"], &[("queue_limit", "200")]);
    let stack = Stack::start_with(options).await?;
    let processes = [stack.host_id().context("no host")?, stack.worker_id().context("no worker")?];
    let memory = || anyhow::Ok([resident(processes[0])?, resident(processes[1])?]);

    let clients = try_join_all((0..1000).map(|_| Client::new(&stack))).await?;
    let mut answers = JoinSet::new();
    for (number, client) in (0_u32..).zip(clients) {
        let turn = BURST_PAUSE * (number / BURST);
        answers.spawn(async move {
            tokio::time::sleep(turn).await;
            client.ask(&question(10)).await
        });
    }
    let (mut served, mut refusals) = (Vec::new(), Vec::new());
    while refusals.len() < 800 {
        let answer = answers.join_next().await.context("fewer than 800 were refused")???;
        ensure!(answer.status == 503, "{} ended before the last was refused", answer.body);
        check_refusal(&answer)?;
        refusals.push(answer.took);
    }
    told("800 of 1,000 requests refused", refusals);
    let before = memory()?;

    // The queue is full, and requests come one after the other to each of eight connections.
    for _ in 0..2 {
        let asking =
            stream::iter(0..800).map(|_| async { Client::new(&stack).await?.ask(&question(10)).await });
        let answers: Vec<_> = asking.buffer_unordered(8).collect().await;
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        answers.iter().try_for_each(check_refusal)?;
        let median = told("800 requests, 8 at a time, refused", answers.iter().map(|a| a.took).collect());
        ensure!(median < Duration::from_millis(100), "{median:?}");
    }
    let after = memory()?;
    println!("resident bytes of host and worker: {before:?}, after 1,600 more requests {after:?}");
    for (before, after) in before.into_iter().zip(after) {
        ensure!(after < before + before / 10 + (16 << 20), "{before} bytes became {after}");
    }

    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        ensure!(answer.status == 200, "{}", answer.body);
        ensure!(answer.body["usage"]["completion_tokens"] == 10, "{}", answer.body);
        served.push(answer.took);
    }
    assert_eq!(served.len(), 200);
    told("200 served", served);
    // All places are free again.
    stack.wait_for_empty_queue().await?;
    let again = Client::new(&stack).await?.ask(&question(1)).await?;
    ensure!(again.status == 200, "{}", again.body);
    Ok(())
}

#[tokio::test]
async fn a_keys_single_request_waits_for_no_more_than_one_of_a_key_with_a_hundred() -> Result<()> {
    // A job takes half a second.
    let stack = Stack::start_with(options(&["--slots", "1", "--simulated-tokens-per-s", "10"], &[])).await?;
    let mut crowd = JoinSet::new();
    for _ in 0..100 {
        let request = stack.http.post(format!("{}/v1/chat/completions", stack.url));
        let request = request.bearer_auth(API_KEY).json(&question(5));
        crowd.spawn(async move { anyhow::Ok(request.send().await?.json::<Value>().await?) });
    }
    let waiting = async {
        while stack.jobs_queued().await? < 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.context("a hundred jobs")??;
    let mut ids = BTreeSet::new();
    for _ in 0..5 {
        // What has ended by now does not count.
        while let Some(ended) = crowd.try_join_next() {
            ended??;
        }
        let single = stack.post("/v1/chat/completions", OTHER_KEY, &[], &question(5)).await?;
        ensure!(single.status() == 200, "{}", single.text().await?);
        ids.insert(single.json::<Value>().await?["id"].to_string());
        let mut before = 0;
        while let Some(ended) = crowd.try_join_next() {
            ended??;
            before += 1;
        }
        // The one that ran, and one that was begun before the single one came.
        println!("{before} of the others ended before");
        ensure!(before <= 2, "{before} of the others ended before");
    }
    assert_eq!(ids.len(), 5);
    ensure!(crowd.len() > 80, "only {} were waiting", crowd.len());
    // Their clients go, and with them the jobs.
    drop(crowd);
    stack.wait_for_empty_queue().await
}
