//! What one client received, byte by byte, with times.

use std::time::{Duration, Instant};

use reqwest::RequestBuilder;

/// A client that hears nothing for so long gives up.
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
    /// When the head says that another try is worth it.
    pub retry_after: Option<Duration>,
    /// What the network brought, cut as it liked.
    pub arrivals: Vec<(Instant, Vec<u8>)>,
    /// When it was over.
    pub ended: Instant,
    /// Why it was over before its end, if it was.
    pub broken: Option<String>,
}

impl Recording {
    /// Sends a request and records its answer to the end; `begun` is called when the first of its
    /// body is there.
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

    /// Whether nothing was accepted, and the client told to come again.
    pub fn is_put_off(&self) -> Option<Duration> {
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
