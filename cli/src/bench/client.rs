//! A client of the function that measures one streamed chat request.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use emberline_protocol::subject::JobId;
use serde::Deserialize;

/// What the client measured of one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClientMeasurement {
    pub(crate) job: JobId,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// From sending the request to the first text.
    pub(crate) first_token: Duration,
    /// From sending the request to the end of the stream.
    pub(crate) total: Duration,
}

/// Why a request was not answered properly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{url}: {source}")]
    Http { url: String, source: Box<ureq::Error> },
    #[error("{url} answered {status}: {body}")]
    Status { url: String, status: u16, body: String },
    #[error("the stream broke off: {0}")]
    Io(#[from] std::io::Error),
    #[error("the stream is not a valid chat stream: {0}")]
    Stream(String),
    #[error("the model answered without any text")]
    NoText,
}

/// Sends chat requests to one function.
#[derive(Debug, Clone)]
pub(crate) struct ChatClient {
    agent: ureq::Agent,
    url: String,
    api_key: String,
    model: String,
}

#[derive(Deserialize)]
struct Chunk {
    id: String,
    choices: Vec<ChunkChoice>,
    usage: Option<ChunkUsage>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    delta: ChunkDelta,
}

#[derive(Deserialize)]
struct ChunkDelta {
    #[serde(default)]
    content: String,
}

#[derive(Deserialize)]
struct ChunkUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
}

impl ChatClient {
    pub(crate) fn new(base: &str, api_key: &str, model: &str) -> Self {
        // No proxy, since its time would be measured too.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_idle_connections_per_host(16)
            .timeout_per_read(Some(Duration::from_secs(120)));
        Self {
            agent: config.build().into(),
            url: format!("{}/v1/chat/completions", base.trim_end_matches('/')),
            api_key: api_key.to_owned(),
            model: model.to_owned(),
        }
    }

    /// Requests `max_tokens` tokens at temperature 0 and reads the stream to its end.
    pub(crate) fn request(&self, prompt: &str, max_tokens: u32) -> Result<ClientMeasurement, RequestError> {
        let body = serde_json::json!({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let sent = Instant::now();
        let request = self.agent.post(&self.url).header("authorization", format!("Bearer {}", self.api_key));
        let response = request
            .send_json(body)
            .map_err(|source| RequestError::Http { url: self.url.clone(), source: Box::new(source) })?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if status != 200 {
            let body = body.read_to_string().unwrap_or_default();
            return Err(RequestError::Status { url: self.url.clone(), status, body });
        }
        read_stream(BufReader::new(body.into_with_config().limit(u64::MAX).reader()), || sent.elapsed())
    }
}

/// Reads server-sent events to the end of the body. `clock` returns the time since the request was sent.
fn read_stream(
    mut body: impl BufRead,
    clock: impl Fn() -> Duration,
) -> Result<ClientMeasurement, RequestError> {
    let (mut first_token, mut id, mut usage, mut total) = (None, None, None, None);
    let mut line = String::new();
    loop {
        line.clear();
        if body.read_line(&mut line)? == 0 {
            break;
        }
        let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            total = Some(clock());
            continue;
        }
        let chunk: Chunk =
            serde_json::from_str(data).map_err(|e| RequestError::Stream(format!("{e} in {data}")))?;
        if first_token.is_none() && chunk.choices.iter().any(|choice| !choice.delta.content.is_empty()) {
            first_token = Some(clock());
        }
        id = Some(chunk.id);
        usage = chunk.usage.or(usage);
    }
    let missing = |what: &str| RequestError::Stream(format!("it has no {what}"));
    let id = id.ok_or_else(|| missing("chunk"))?;
    let job = id.strip_prefix("chatcmpl-").and_then(|job| JobId::try_from(job.to_owned()).ok());
    let usage = usage.ok_or_else(|| missing("usage"))?;
    Ok(ClientMeasurement {
        job: job.ok_or_else(|| RequestError::Stream(format!("'{id}' is not the id of a completion")))?,
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        first_token: first_token.ok_or(RequestError::NoText)?,
        total: total.ok_or_else(|| missing("[DONE]"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const ID: &str = "chatcmpl-0123456789abcdef0123456789abcdef";

    /// Reads a stream with a clock that advances by a second at each reading.
    fn read(stream: &str) -> Result<ClientMeasurement, RequestError> {
        let now = Cell::new(0);
        read_stream(stream.as_bytes(), || {
            now.set(now.get() + 1);
            Duration::from_secs(now.get())
        })
    }

    fn chunk(delta: &str) -> String {
        format!("data: {{\"id\":\"{ID}\",\"choices\":[{{\"delta\":{delta}}}],\"usage\":null}}\n\n")
    }

    fn usage() -> String {
        format!(
            "data: {{\"id\":\"{ID}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":2}}}}\n\n"
        )
    }

    #[test]
    fn the_first_token_is_the_first_text_not_the_role_nor_a_comment() {
        let role = chunk(r#"{"role":"assistant","content":""}"#);
        let text = chunk(r#"{"content":"a"}"#);
        let stream =
            [&role, ": waiting\n\n", &text, &text, &chunk("{}"), &usage(), "data: [DONE]\n\n"].concat();
        let measured = read(&stream).unwrap();
        assert_eq!((measured.first_token.as_secs(), measured.total.as_secs()), (1, 2));
        assert_eq!((measured.prompt_tokens, measured.completion_tokens), (9, 2));
        assert_eq!(measured.job.as_str(), "0123456789abcdef0123456789abcdef");
    }

    #[test]
    fn a_stream_that_lacks_a_part_is_no_measurement() {
        let (text, usage, done) = (chunk(r#"{"content":"a"}"#), usage(), "data: [DONE]\n\n");
        for (parts, lacks) in [
            (vec![usage.as_str(), done], "without any text"),
            (vec![&text, done], "usage"),
            (vec![&text, &usage], "[DONE]"),
            (vec![done], "chunk"),
        ] {
            let error = read(&parts.concat()).unwrap_err().to_string();
            assert!(error.contains(lacks), "{error}");
        }
        assert!(read("data: {\"error\":{}}\n\n").is_err());
    }
}
