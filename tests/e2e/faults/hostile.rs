//! One key does its worst, while the requests of another are answered as if it were not there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use emberline_test_kit::cli::new_key;
use emberline_test_kit::simulated::{Endpoint, paced};
use emberline_test_kit::stack::{SIMULATED_MODEL, Stack};
use futures::StreamExt as _;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Requests of the other key, one after the other.
const REQUESTS: u32 = 40;
/// Attackers of each kind.
const EACH: usize = 4;

/// How long each of the other key's requests takes; an error if one fails.
async fn undisturbed(stack: &Stack, key: &str) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..REQUESTS {
        let began = Instant::now();
        let answer = stack.post(Endpoint::Chat.path(), key, &[], &Endpoint::Chat.body(2, false)).await?;
        ensure!(answer.status() == 200, "{}: {}", answer.status(), answer.text().await?);
        answer.bytes().await?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

fn chat(more: Value) -> Value {
    let mut body = Endpoint::Chat.body(2000, true);
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// What a hostile key sends, over and over: path, body, whether with its key.
fn worst() -> [(&'static str, Value, bool); 7] {
    let long = "word ".repeat(200_000);
    let prompts = vec!["Hi"; 60];
    [
        // Refused by its limits, and counted for all prompts at once.
        ("/v1/completions", json!({"model": SIMULATED_MODEL, "prompt": prompts, "max_tokens": 1}), true),
        // Fills the queue.
        (Endpoint::Chat.path(), chat(json!({})), true),
        // Fills the stored requests.
        ("/v1/responses", json!({"model": SIMULATED_MODEL, "input": long, "background": true}), true),
        // Fills the event logs.
        (Endpoint::Chat.path(), chat(json!({"n": 16, "logprobs": true, "top_logprobs": 20})), true),
        // Keeps workers from jobs.
        ("/tokenize", json!({"model": SIMULATED_MODEL, "prompt": long}), true),
        // Holds places with bodies that nobody reads.
        (Endpoint::Chat.path(), chat(json!({"user": long})), false),
        // Asks for what takes long to refuse.
        (
            Endpoint::Chat.path(),
            chat(json!({"messages": vec![json!({"role": "user", "content": long}); 3]})),
            true,
        ),
    ]
}

#[tokio::test]
async fn a_hostile_key_does_not_disturb_another() -> Result<()> {
    // Room for all that the hostile key may run at once, and for the other one.
    let stack = Stack::start_with(paced(200, 64, &[("queue_limit", "200")])).await?;
    let limits = ["--requests-per-minute", "3000", "--jobs-at-once", "60"];
    let hostile = new_key(&stack.nats, "hostile", &limits).await?;
    let good = new_key(&stack.nats, "good", &[]).await?;
    let before = undisturbed(&stack, &good).await?;

    let mut attack = JoinSet::new();
    for (path, body, has_key) in worst() {
        for number in 0..EACH {
            let (http, url) = (stack.http.clone(), format!("{}{path}", stack.url));
            let (body, key) = (body.clone(), hostile.clone());
            attack.spawn(async move {
                let mut sent = 0_u32;
                loop {
                    let key = if has_key { key.clone() } else { format!("sk-made-up-{number}-{sent}") };
                    sent += 1;
                    if let Ok(answer) = http.post(&url).bearer_auth(key).json(&body).send().await {
                        // A slow reader: some of it, and then it goes.
                        let mut body = answer.bytes_stream();
                        let _ = tokio::time::timeout(Duration::from_millis(200), body.next()).await;
                    }
                }
            });
        }
    }
    let during = undisturbed(&stack, &good).await;
    attack.shutdown().await;
    let during = during?;
    let median = |took: &[Duration]| took.get(took.len() / 2).copied().unwrap_or_default();
    println!(
        "median {:?} undisturbed, {:?} beside the hostile key: {:.2} times; longest {:?} and {:?}",
        median(&before),
        median(&during),
        median(&during).as_secs_f64() / median(&before).as_secs_f64(),
        before.last(),
        during.last(),
    );
    // Afterwards the hostile key's jobs are over, too.
    join_all((0..4).map(|_| undisturbed(&stack, &good))).await.into_iter().collect::<Result<Vec<_>>>()?;
    stack.wait_for_empty_queue().await
}
