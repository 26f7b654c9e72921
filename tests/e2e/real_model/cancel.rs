//! A client that disconnects frees its slot.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::event_logs;
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Sends a request over a socket of its own and waits for the first token.
async fn client_in_mid_stream(stack: &Stack) -> Result<TcpStream> {
    let body = json!({
        // Greedy, this goes on for more than 700 tokens.
        "model": MODEL, "stream": true, "temperature": 0, "max_tokens": 4000,
        "messages": [{"role": "user", "content": "Write a very long story about a river."}],
    })
    .to_string();
    let address = stack.url.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {API_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(r#""delta":{"content":"#) {
        let read = socket.read_buf(&mut seen).await?;
        ensure!(read > 0, "no stream: {}", String::from_utf8_lossy(&seen));
    }
    Ok(socket)
}

#[tokio::test]
async fn a_killed_client_frees_its_slot() -> Result<()> {
    let stack = Stack::start().await?;
    let client = client_in_mid_stream(&stack).await?;
    stack.heartbeat(|h| h.active == 1).await?;

    drop(client);
    let gone = Instant::now();
    stack.heartbeat(|h| h.active == 0).await?;
    println!("the slot was free after {:?}", gone.elapsed());
    // The job leaves the queue, so that nobody takes it again, and it did not end by itself.
    stack.wait_for_empty_queue().await?;
    assert_eq!(event_logs::cancelled(&stack.nats).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_neighbour_of_a_killed_client_is_not_disturbed() -> Result<()> {
    let stack = Stack::start().await?;
    let body = json!({
        "model": MODEL, "seed": 3, "max_tokens": 48,
        "messages": [{"role": "user", "content": "Describe a lighthouse."}],
    });
    let alone = stack.stream(&body).await?;
    let client = client_in_mid_stream(&stack).await?;
    let (neighbour, _) = tokio::join!(stack.stream(&body), async {
        let both = stack.heartbeat(|h| h.active == 2).await;
        drop(client);
        both
    });
    let neighbour = neighbour.context("the neighbour's stream")?;
    assert!(neighbour.done);
    assert_eq!(neighbour.text(), alone.text());
    Ok(())
}
