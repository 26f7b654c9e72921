//! A server of chat completions that does nothing: it answers at once with as many words as are asked for.
//!
//! A gateway that only passes requests on is measured before it. It reads a request's body for two fields only.

use std::io;
use std::net::SocketAddr;

use clap::Args;
use memchr::memmem;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::runtime::runtime;

const MAX_HEADERS: usize = 64;
const READ_SIZE: usize = 16 * 1024;

#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
}

/// What shapes an answer.
#[derive(Debug, Default, Deserialize)]
struct ChatRequest {
    #[serde(default)]
    stream: bool,
    #[serde(alias = "max_completion_tokens", default)]
    max_tokens: usize,
}

/// Serves until the process is ended.
pub(crate) fn run(args: &BackendArgs) -> anyhow::Result<()> {
    Ok(runtime()?.block_on(accept(args.listen))?)
}

async fn accept(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A client that hangs up, or sends something else, ends its own connection only.
        tokio::spawn(async move { serve(stream).await.ok() });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    loop {
        let (body_at, end) = loop {
            if let Some(place) = request_body(&received)? {
                break place;
            }
            received.reserve(READ_SIZE);
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        let body = received.get(body_at..end).unwrap_or_default();
        let request: ChatRequest = serde_json::from_slice(body).unwrap_or_default();
        stream.write_all(response(&request).as_bytes()).await?;
        received.drain(..end);
    }
}

/// Where the body of the request at the beginning of `received` begins and ends, if it is complete.
fn request_body(received: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let invalid = |error: &dyn ToString| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    // Parsing the head again after each read costs more than looking for its end.
    if memmem::find(received, b"\r\n\r\n").is_none() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(received).map_err(|error| invalid(&error))? else {
        return Ok(None);
    };
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        None => 0,
        Some(header) => {
            let text = std::str::from_utf8(header.value).map_err(|error| invalid(&error))?;
            text.trim().parse::<usize>().map_err(|error| invalid(&error))?
        }
    };
    let end = head.saturating_add(length);
    Ok((received.len() >= end).then_some((head, end)))
}

fn response(request: &ChatRequest) -> String {
    let tokens = request.max_tokens;
    let usage = format!(
        r#""usage":{{"prompt_tokens":2,"completion_tokens":{tokens},"total_tokens":{}}}"#,
        tokens + 2
    );
    if !request.stream {
        let text: String = words(tokens).collect();
        let body = format!(
            r#"{{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"fixed","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"length"}}],{usage}}}"#
        );
        let length = body.len();
        return format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
    }
    let head =
        r#"{"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"fixed","choices":["#;
    let delta = |delta: &str, reason: &str| {
        format!(r#"{head}{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#)
    };
    let mut answer =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    let mut push = |data: &str| answer.push_str(&chunk(&format!("data: {data}\n\n")));
    push(&delta(r#"{"role":"assistant","content":""}"#, "null"));
    words(tokens).for_each(|word| push(&delta(&format!(r#"{{"content":"{word}"}}"#), "null")));
    push(&delta("{}", r#""length""#));
    push(&format!("{head}],{usage}}}"));
    push("[DONE]");
    answer.push_str("0\r\n\r\n");
    answer
}

/// Words that differ from their neighbours: LiteLLM takes a stream of equal chunks for a broken one.
fn words(count: usize) -> impl Iterator<Item = &'static str> {
    [" one", " two", " three", " four"].into_iter().cycle().take(count)
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_wanted_tokens() {
        let whole = response(&ChatRequest { stream: false, max_tokens: 3 });
        let (_, body) = whole.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["choices"][0]["message"]["content"], " one two three");
        assert_eq!(body["usage"]["completion_tokens"], 3);
        let stream = response(&ChatRequest { stream: true, max_tokens: 3 });
        let events: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!((events.len(), events.last()), (7, Some(&"[DONE]")));
        for event in &events[..6] {
            serde_json::from_str::<serde_json::Value>(event).unwrap();
        }
    }

    #[test]
    fn a_request_is_complete_with_its_body() {
        let text = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdGET";
        assert_eq!(request_body(text).unwrap(), Some((38, 42)));
        assert_eq!(request_body(&text[..40]).unwrap(), None);
        assert_eq!(request_body(&text[..20]).unwrap(), None);
        assert!(request_body(b"NATS\r\n\r\n").is_err());
    }
}
