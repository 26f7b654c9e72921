//! The function as its clients see it: whether its URL answers, takes the API key, and streams.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use emberline_protocol::subject::JobId;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};
use url::Url;

use super::http::{self, beginning, unreachable};
use super::report::Check;
use super::tls;

/// What serves the function.
const HOST: &str = "the function's host";
/// How long an answer may take, with a model that is loaded first.
const STREAM_TIMEOUT: Duration = Duration::from_secs(120);

/// A function, and the key to use it with.
#[derive(Debug, Clone)]
pub(super) struct Function {
    agent: Agent,
    address: Url,
    /// Its text, without what clients append.
    url: String,
    key: Option<String>,
}

/// What arrived of a streamed answer, by the time since it was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    /// The job that made it, as the answer's id names it.
    pub(super) job: Option<JobId>,
    /// Each line that is not empty.
    pub(super) lines: Vec<Duration>,
    /// Each piece of text.
    pub(super) texts: Vec<Duration>,
}

impl Function {
    pub(super) fn new(address: Url, key: Option<String>) -> Self {
        let url = address.as_str().trim_end_matches('/');
        // Clients' base URLs have it.
        let url = url.strip_suffix("/v1").unwrap_or(url).to_owned();
        Self { agent: http::agent(), address, url, key }
    }

    /// Judges the certificate under which it is reached, if it is by https.
    pub(super) async fn certificate(&self) -> Vec<Check> {
        tls::of_url(&self.address).await
    }

    /// Checks all but streaming; the models that may be asked.
    pub(super) fn examine(&self) -> (Vec<Check>, Vec<String>) {
        let health = self.health();
        if health.is_fault() {
            return (vec![health], Vec::new());
        }
        let ready = self.ready();
        let (key, models) = self.models();
        (vec![health, ready, key], models)
    }

    fn get(&self, path: &str, with_key: bool) -> Result<(u16, String), ureq::Error> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = self.key.as_ref().filter(|_| with_key) {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call()?;
        let body = response.body_mut().read_to_string().unwrap_or_default();
        Ok((response.status().as_u16(), body))
    }

    fn health(&self) -> Check {
        const NAME: &str = "function";
        let elsewhere = "give the URL under which clients reach the function, without a path";
        match self.get("/health", false) {
            Err(error) => unreachable(NAME, HOST, &self.url, &error),
            Ok((200, body)) if read(&body)["status"] == "ok" => {
                Check::ok(NAME, format!("{} answers", self.url))
            }
            Ok((200, body)) => Check::fault(
                NAME,
                format!("something else than the function answers at {}: '{}'", self.url, beginning(&body)),
                elsewhere,
            ),
            Ok((status @ (502..=504), _)) => Check::fault(
                NAME,
                format!("a proxy at {} does not reach the function: status {status}", self.url),
                "start the function's host, and look at the address to which the proxy passes requests on",
            ),
            Ok((status, _)) => {
                Check::fault(NAME, format!("{}/health answers with status {status}", self.url), elsewhere)
            }
        }
    }

    /// Whether the function gets to NATS and sees a worker.
    fn ready(&self) -> Check {
        const NAME: &str = "function's bus";
        match self.get("/ready", false) {
            Err(error) => unreachable(NAME, HOST, &self.url, &error),
            Ok((200, _)) => Check::ok(NAME, "it sees workers"),
            Ok((status, body)) => {
                let error = &read(&body)["error"];
                let message = error["message"].as_str().unwrap_or("no reason given");
                let remedy = "the function's log says why: look at its nats_scheme and nats_server, at what proves who it is \
                              (nats_nkey_seed, nats_credentials, nats_token or nats_password), at what its host lets it \
                              connect to (allowed_outbound_hosts), and at the workers";
                Check::fault(NAME, format!("not ready ({status}): {message}"), remedy)
            }
        }
    }

    fn models(&self) -> (Check, Vec<String>) {
        const NAME: &str = "key";
        let check = match self.get("/v1/models", true) {
            Err(error) => unreachable(NAME, HOST, &self.url, &error),
            Ok((200, body)) => {
                let body = read(&body);
                let entries = body["data"].as_array().map_or(&[][..], Vec::as_slice);
                let models: Vec<String> =
                    entries.iter().filter_map(|model| model["id"].as_str()).map(str::to_owned).collect();
                let check = match self.key {
                    Some(_) => Check::ok(NAME, format!("accepted; models: {}", models.join(", "))),
                    None => Check::warning(
                        NAME,
                        "the function answers without a key",
                        "create keys with `emberline keys create`",
                    ),
                };
                return (check, models);
            }
            Ok((401 | 403, _)) if self.key.is_none() => {
                Check::skipped(NAME, "the function asks for one; give --api-key or EMBERLINE_API_KEY")
            }
            Ok((401 | 403, _)) => Check::fault(
                NAME,
                "the function refuses the API key",
                "`emberline keys list` shows which there are and which have ended, `emberline keys create` makes one",
            ),
            Ok((status, body)) => {
                let message =
                    read(&body)["error"]["message"].as_str().map_or_else(|| beginning(&body), str::to_owned);
                let remedy = "see the check of the function's bus: keys and models are asked for there";
                Check::fault(NAME, format!("/v1/models answers with status {status}: {message}"), remedy)
            }
        };
        (check, Vec::new())
    }

    /// Asks `model` for a streamed answer of at most `tokens` tokens; an error in one line.
    pub(super) fn stream(&self, model: &str, tokens: u32) -> Result<Arrivals, String> {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Count from one to five hundred, in words."}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": true,
        });
        let sent = Instant::now();
        let mut request = self
            .agent
            .post(format!("{}/v1/chat/completions", self.url))
            .config()
            .timeout_recv_response(Some(STREAM_TIMEOUT))
            .timeout_recv_body(Some(STREAM_TIMEOUT))
            .build();
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.send_json(body).map_err(|error| error.to_string())?;
        read_stream(response, || sent.elapsed())
    }
}

fn read_stream(mut response: Response<Body>, clock: impl Fn() -> Duration) -> Result<Arrivals, String> {
    let status = response.status().as_u16();
    if status != 200 {
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let message =
            read(&body)["error"]["message"].as_str().map_or_else(|| beginning(&body), str::to_owned);
        return Err(format!("status {status}: {message}"));
    }
    read_lines(BufReader::new(response.into_body().into_reader()), clock)
}

fn read_lines(mut body: impl BufRead, clock: impl Fn() -> Duration) -> Result<Arrivals, String> {
    let mut arrivals = Arrivals::default();
    let mut line = String::new();
    loop {
        line.clear();
        match body.read_line(&mut line) {
            Ok(0) => return Err("it breaks off".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        arrivals.lines.push(clock());
        match line.strip_prefix("data:").map(str::trim) {
            Some("[DONE]") => return Ok(arrivals),
            None => {}
            Some(data) => {
                let chunk = read(data);
                if let Some(message) = chunk["error"]["message"].as_str() {
                    return Err(message.to_owned());
                }
                if chunk["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                    arrivals.texts.extend(arrivals.lines.last());
                }
                let job = chunk["id"].as_str().and_then(|id| id.strip_prefix("chatcmpl-"));
                arrivals.job = job.and_then(|job| JobId::try_from(job.to_owned()).ok()).or(arrivals.job);
            }
        }
    }
}

fn read(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const ID: &str = "chatcmpl-0123456789abcdef0123456789abcdef";

    /// Reads a stream with a clock that goes on by a second at each line.
    fn lines(stream: &str) -> Result<Arrivals, String> {
        let now = Cell::new(0);
        read_lines(stream.as_bytes(), || {
            now.set(now.get() + 1);
            Duration::from_secs(now.get())
        })
    }

    #[test]
    fn text_is_told_from_what_else_arrives() {
        let chunk =
            |delta: &str| format!("data: {{\"id\":\"{ID}\",\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
        let (role, text) = (chunk(r#"{"role":"assistant","content":""}"#), chunk(r#"{"content":"a"}"#));
        let arrivals =
            lines(&[&role, ": keep-alive\n\n", &text, &text, "data: [DONE]\n\n"].concat()).unwrap();
        let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs).collect::<Vec<_>>();
        assert_eq!(seconds(&arrivals.lines), [1, 2, 3, 4, 5]);
        assert_eq!(seconds(&arrivals.texts), [3, 4]);
        assert_eq!(arrivals.job.unwrap().as_str(), "0123456789abcdef0123456789abcdef");
        assert_eq!(lines(&text).unwrap_err(), "it breaks off");
        let error = "data: {\"error\":{\"message\":\"the queue is full\"}}\n\n";
        assert_eq!(lines(error).unwrap_err(), "the queue is full");
    }

    #[test]
    fn a_url_is_taken_with_and_without_what_clients_append() {
        for url in ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"] {
            assert_eq!(Function::new(url.parse().unwrap(), None).url, "http://a:1");
        }
    }
}
