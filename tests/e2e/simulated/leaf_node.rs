//! Servers that are linked as leaf nodes: function, workers and commands use the streams in the JetStream domain of the
//! server behind theirs, or a cell with streams of its own shares keys and usage.

use anyhow::{Context as _, Result};
use emberline_test_kit::cli::emberline;
use emberline_test_kit::leaf_node::{DOMAIN, LEAF_DOMAIN, LeafKind, LeafNode};
use emberline_test_kit::stack::{API_KEY, Options, SIMULATED_MODEL, Stack};
use emberline_test_kit::wait;
use serde_json::{Value, json};

const IN_DOMAIN: [&str; 2] = ["--nats-jetstream-domain", DOMAIN];

async fn command(nats: &LeafNode, args: &[&str]) -> Result<String> {
    emberline(nats, &[args, &IN_DOMAIN].concat()).await
}

/// A response's text, or what there is of it.
fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_default()
}

/// A leaf node of a server with all streams.
async fn at_the_hub(kind: LeafKind) -> Result<LeafNode> {
    let nats = LeafNode::start(kind).await?;
    command(&nats, &["nats", "setup", "--yes"]).await?;
    Ok(nats)
}

/// A cell that has its keys from the server behind it, which has its usage.
async fn cell() -> Result<LeafNode> {
    let nats = LeafNode::start(LeafKind::Cell).await?;
    emberline(nats.hub(), &["nats", "setup", "--yes", "--usage-from", LEAF_DOMAIN]).await?;
    emberline(&nats, &["nats", "setup", "--yes", "--keys-from", DOMAIN]).await?;
    Ok(nats)
}

/// Streams, buckets, acknowledgements, takeovers and counters, all by way of the leaf node.
async fn everything_works(kind: LeafKind) -> Result<()> {
    let options = Options::simulated(&IN_DOMAIN).variable("nats_jetstream_domain", DOMAIN);
    let mut stack = Stack::start_on(async || at_the_hub(kind).await, options.clone()).await?;
    let key =
        command(&stack.nats, &["keys", "create", "--name", "ada", "--requests-per-minute", "9"]).await?;
    let chat = json!({"model": SIMULATED_MODEL, "messages": [{"role": "user", "content": "two words"}], "max_tokens": 8});
    let answer = stack.post("/v1/chat/completions", &key, &[], &chat).await?;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["x-ratelimit-remaining-requests"].to_str()?),
        (200, "8")
    );
    let answer: Value = answer.json().await?;
    assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");

    // A stored request, whose worker is killed while it runs.
    let body =
        json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 100, "background": true});
    let begun: Value = stack.post("/v1/responses", API_KEY, &[], &body).await?.json().await?;
    let path = format!("/v1/responses/{}", begun["id"].as_str().with_context(|| begun.to_string())?);
    let mut response = Value::Null;
    wait::until("the response has text", async || {
        response = stack.get(&path).await?.json().await?;
        Ok(!text(&response).is_empty())
    })
    .await?;
    stack.kill_worker().await?;
    stack.add_worker(&options)?;
    wait::until("the response is over", async || {
        response = stack.get(&path).await?.json().await?;
        Ok(response["status"] == "incomplete" || response["status"] == "completed")
    })
    .await?;
    assert_eq!(response["usage"]["output_tokens"], 100, "{response}");

    wait::until("both jobs are charged", async || {
        let lines = command(&stack.nats, &["usage", "export"]).await?;
        Ok(lines.lines().count() == 2)
    })
    .await?;
    let named = command(&stack.nats, &["usage", "export", "--name", "billing"]).await?;
    assert_eq!(named.lines().count(), 2, "{named}");
    let queues = command(&stack.nats, &["jobs", "list"]).await?;
    assert!(queues.contains(SIMULATED_MODEL), "{queues}");
    let log = stack.nats.log();
    assert!(!log.to_lowercase().contains("violation"), "{log}");
    Ok(())
}

#[tokio::test]
async fn everything_works_at_a_leaf_node_without_jetstream() -> Result<()> {
    everything_works(LeafKind::WithoutJetStream).await
}

#[tokio::test]
async fn everything_works_at_a_leaf_node_with_a_domain_of_its_own() -> Result<()> {
    everything_works(LeafKind::WithJetStream).await
}

#[tokio::test]
async fn a_cell_obeys_the_keys_of_another_and_its_usage_is_added_up_there() -> Result<()> {
    let stack = Stack::start_on(cell, Options::simulated(&[])).await?;
    let key = emberline(stack.nats.hub(), &["keys", "create", "--name", "ada"]).await?;
    let chat = json!({"model": SIMULATED_MODEL, "messages": [{"role": "user", "content": "two words"}], "max_tokens": 8});
    let status = async || -> Result<u16> {
        Ok(stack.post("/v1/chat/completions", &key, &[], &chat).await?.status().as_u16())
    };
    wait::until("the key is known in the cell", async || Ok(status().await? == 200)).await?;
    wait::until("the job is charged in the other cell", async || {
        let usage = emberline(stack.nats.hub(), &["usage", "export"]).await?;
        Ok(usage.lines().count() == 1)
    })
    .await?;
    // The other cell has none of its jobs.
    let queues = emberline(stack.nats.hub(), &["jobs", "list"]).await?;
    assert!(!queues.contains(SIMULATED_MODEL), "{queues}");

    emberline(stack.nats.hub(), &["keys", "revoke", "ada"]).await?;
    wait::until("the key is refused in the cell", async || Ok(status().await? == 401)).await
}
