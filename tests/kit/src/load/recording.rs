//! What one client received, byte by byte, with times.

use std::time::{Duration, Instant};

use reqwest::RequestBuilder;

/// A client gives up when nothing arrives for this long.
const SILENCE: Duration = Duration::from_secs(60);

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Whether a stream was asked for.
    pub streamed: bool,
    /// When the request was sent.
    pub sent: Instant,
    /// The head's status.
    pub status: Option<u16>,
    /// The `Retry-After` header.
    pub retry_after: Option<Duration>,
    /// The body as it arrived, with times.
    pub arrivals: Vec<(Instant, Vec<u8>)>,
    /// When it was over.
    pub ended: Instant,
    /// Why it ended early, if it did.
    pub broken: Option<String>,
}

impl Recording {
    /// Sends a request and records its answer to the end; `begun` is called when the first
    /// part of its body arrives.
    pub async fn of(request: RequestBuilder, streamed: bool, begun: impl FnOnce()) -> Self {
        let sent = Instant::now();
        let mut recording = Self {
            streamed,
            sent,
            status: None,
            retry_after: None,
            arrivals: Vec::new(),
            ended: sent,
            broken: None,
        };
        recording.broken = recording.receive(request, begun).await.err();
        recording.ended = Instant::now();
        recording
    }

    async fn receive(&mut self, request: RequestBuilder, begun: impl FnOnce()) -> Result<(), String> {
        let mut begun = Some(begun);
        let mut response = patiently(request.send()).await?;
        self.status = Some(response.status().as_u16());
        let seconds =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        self.retry_after = seconds.map(Duration::from_secs);
        while let Some(bytes) = patiently(response.chunk()).await? {
            if let Some(begun) = begun.take() {
                begun();
            }
            self.arrivals.push((Instant::now(), bytes.to_vec()));
        }
        Ok(())
    }

    /// How long to wait before another try, if the request was refused for the time being.
    pub fn retry_later(&self) -> Option<Duration> {
        self.retry_after.filter(|_| self.status == Some(503) && self.broken.is_none())
    }

    /// The whole body.
    pub fn body(&self) -> Vec<u8> {
        self.arrivals.iter().flat_map(|(_, bytes)| bytes).copied().collect()
    }
}

async fn patiently<T>(coming: impl Future<Output = reqwest::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(SILENCE, coming).await {
        Ok(come) => come.map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        Err(_) => Err(format!("nothing came for {SILENCE:?}")),
    }
}
