//! Responses in the background: started, asked for again, waited for.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::stack::{API_KEY, Stack};
use crate::wait;

/// Where responses are.
pub const PATH: &str = "/v1/responses";

/// The JSON of an answer, which must have status 200.
pub async fn json_of(response: reqwest::Response) -> Result<Value> {
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// Starts a response in the background and returns its id.
pub async fn begin(stack: &Stack, body: &Value) -> Result<String> {
    let response = json_of(stack.post(PATH, API_KEY, &[], body).await?).await?;
    ensure!((&response["status"], &response["background"]) == (&json!("queued"), &json!(true)), "{response}");
    Ok(response["id"].as_str().context("id")?.to_owned())
}

/// The response as it is now.
pub async fn get(stack: &Stack, id: &str) -> Result<Value> {
    json_of(stack.get(&format!("{PATH}/{id}")).await?).await
}

/// Waits until a response is as `wanted`.
pub async fn wait_for(stack: &Stack, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut response = Value::Null;
    wait::until(format!("{id} gets there"), async || {
        response = get(stack, id).await?;
        Ok(wanted(&response))
    })
    .await?;
    Ok(response)
}

/// Waits until a response has ended, one way or the other.
pub async fn wait_until_over(stack: &Stack, id: &str) -> Result<Value> {
    wait_for(stack, id, |response| {
        !["queued", "in_progress"].contains(&response["status"].as_str().unwrap_or(""))
    })
    .await
}
