//! Eight streams at once answer correctly, each as it would alone.

use anyhow::Result;
use emberline_test_kit::stack::{MODEL, Stack};
use futures::future::try_join_all;
use serde_json::{Value, json};

fn question(i: usize) -> Value {
    let topics = ["rivers", "the number 7", "bread", "night", "a fox", "iron", "Peru", "chess"];
    json!({
        "model": MODEL, "max_tokens": 24 + i, "seed": i, "temperature": if i.is_multiple_of(2) { 0.0 } else { 0.8 },
        "messages": [{"role": "user", "content": format!("Write two sentences about {}.", topics[i])}],
    })
}

#[tokio::test]
async fn eight_streams_at_once_are_each_what_they_are_alone() -> Result<()> {
    let stack = Stack::start().await?;
    let mut alone = Vec::new();
    for i in 0..8 {
        alone.push(stack.stream(&question(i)).await?);
    }
    let questions: Vec<Value> = (0..8).map(question).collect();
    let together = async { try_join_all(questions.iter().map(|q| stack.stream(q))).await };
    let (together, full) = tokio::join!(together, stack.heartbeat(|h| h.active == 8));
    full?; // all eight did run at once
    for (i, (alone, together)) in alone.iter().zip(together?).enumerate() {
        assert!(together.done);
        assert_eq!(alone.text(), together.text(), "stream {i}");
        assert_eq!(alone.finish_reason(), together.finish_reason(), "stream {i}");
    }
    Ok(())
}
