//! Keys that do their worst beside one that behaves: whatever they try, it is served.
//!
//! How much longer it waits is printed and not asserted: attackers, servers and the one who behaves share the
//! machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cli::new_key;
use emberline_test_kit::simulated::{Endpoint, paced, words};
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{OTHER_KEY, SIMULATED_MODEL as MODEL, Stack};
use emberline_test_kit::wait;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const WORDS_PER_S: u32 = 50;
const SLOTS: usize = 32;
const QUEUE_LIMIT: usize = 200;
/// Requests of the one who behaves, before the attack and during it, and the words of each answer.
const REQUESTS: usize = 30;
const WORDS: usize = 8;
/// Pause of an attacker between two requests that are refused at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Jobs that one key keeps waiting or running.
const HOARD: usize = 110;
/// Size of the bodies that are sent for nothing.
const LARGE: usize = 256 * 1024;

/// How often an attack had the answer that it has while it lasts.
type Count = Arc<AtomicUsize>;

/// The attacks; they end when this is dropped.
struct Attack {
    http: reqwest::Client,
    url: String,
    tasks: JoinSet<()>,
    counts: Vec<(&'static str, Count)>,
}

impl Attack {
    fn new(stack: &Stack) -> Self {
        // Connections of its own.
        let http = reqwest::Client::new();
        Self { http, url: stack.url.clone(), tasks: JoinSet::new(), counts: Vec::new() }
    }

    fn count(&mut self, name: &'static str) -> Count {
        let count = Count::default();
        self.counts.push((name, Arc::clone(&count)));
        count
    }

    /// Posts `body` again and again with the keys that `key` gives, and counts answers with `status`.
    fn repeat(
        &mut self,
        name: &'static str,
        at_once: usize,
        path: &str,
        body: &Value,
        status: u16,
        key: impl Fn() -> String + Clone + Send + 'static,
    ) {
        let count = self.count(name);
        for _ in 0..at_once {
            let (http, url, body) = (self.http.clone(), format!("{}{path}", self.url), body.clone());
            let (key, count) = (key.clone(), Arc::clone(&count));
            self.tasks.spawn(async move {
                loop {
                    let sent = http.post(&url).bearer_auth(key()).json(&body).send().await;
                    if sent.is_ok_and(|answer| answer.status() == status) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }

    /// Asks for a wide answer and never reads it.
    async fn never_read(&mut self, name: &'static str, key: &str) -> Result<()> {
        let count = self.count(name);
        let messages = json!([{"role": "user", "content": "hi"}]);
        let body = json!({
            "model": MODEL, "messages": messages, "n": 16, "logprobs": true, "top_logprobs": 20,
            "max_tokens": 200, "stream": true,
        });
        let body = body.to_string();
        let address = self.url.strip_prefix("http://").context("the stack's URL")?;
        let mut connection = TcpStream::connect(address).await?;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.tasks.spawn(async move {
            if connection.write_all(head.as_bytes()).await.is_ok() && connection.readable().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
            std::future::pending::<()>().await;
        });
        Ok(())
    }

    /// Waits until each attack has had its answer.
    async fn wait_until_under_way(&self) -> Result<()> {
        wait::until("every attack is under way", async || {
            Ok(self.counts.iter().all(|(_, count)| count.load(Ordering::Relaxed) > 0))
        })
        .await
    }
}

/// One who behaves: sends one request after the other; the median time to the end of an answer.
async fn behave(http: &reqwest::Client, url: &str) -> Result<Duration> {
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let sent = Instant::now();
        let request = http.post(format!("{url}{}", Endpoint::Chat.path())).bearer_auth(OTHER_KEY);
        let answer = request.json(&Endpoint::Chat.body(WORDS, true)).send().await?;
        ensure!(answer.status() == 200, "{}: {}", answer.status(), answer.text().await?);
        let answer = Transcript::read(answer).await?;
        ensure!(answer.done && answer.text() == words(WORDS), "{answer:?}");
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_behaves_is_served_whatever_other_keys_do() -> Result<()> {
    let limit = QUEUE_LIMIT.to_string();
    let stack = Stack::start_with(paced(WORDS_PER_S, SLOTS, &[("queue_limit", &limit)])).await?;
    let before = behave(&stack.http, &stack.url).await?;

    let limited = new_key(&stack.nats, "limited", &["--requests-per-minute", "1"]).await?;
    let key = async |name| new_key(&stack.nats, name, &[]).await;
    let (hoarder, keeper, wide, counter) =
        (key("hoarder").await?, key("keeper").await?, key("wide").await?, key("counter").await?);
    let chat = |words| Endpoint::Chat.body(words, false);
    let text = "word ".repeat(LARGE / 5);
    let mut attack = Attack::new(&stack);
    attack.repeat("over its limit of requests", 2, Endpoint::Chat.path(), &chat(1), 429, move || {
        limited.clone()
    });
    attack.repeat("more jobs than the queue has room for", HOARD, Endpoint::Chat.path(), &chat(100), 503, {
        move || hoarder.clone()
    });
    let background = json!({"model": MODEL, "input": text, "background": true, "max_output_tokens": 1});
    attack.repeat("large background requests", 1, Endpoint::Responses.path(), &background, 200, move || {
        keeper.clone()
    });
    // The simulated engine has no tokenizer, and says so in the worker.
    let tokens = json!({"model": MODEL, "prompt": text});
    attack.repeat("requests for tokens", 2, "/tokenize", &tokens, 400, move || counter.clone());
    let large = json!({"model": MODEL, "messages": [{"role": "user", "content": text}]});
    attack.repeat("keys that nobody made", 2, Endpoint::Chat.path(), &large, 401, || {
        format!("sk-emb-{:032x}", rand::random::<u128>())
    });
    for _ in 0..2 {
        attack.never_read("a wide answer that is never read", &wide).await?;
    }
    attack.wait_until_under_way().await?;

    let during = behave(&stack.http, &stack.url).await?;
    let ratio = during.as_secs_f64() / before.as_secs_f64();
    println!("median time of an answer: {before:?} before, {during:?} during the attack, {ratio:.2} times");
    for (name, count) in &attack.counts {
        println!("{name}: {}", count.load(Ordering::Relaxed));
    }
    Ok(())
}
