//! Reading a stream of server-sent events as a client would.

mod transcript;

use anyhow::Result;

pub use transcript::Transcript;

/// A stream that is being read.
pub struct Reading {
    response: reqwest::Response,
    /// What has come.
    pub transcript: Transcript,
}

impl Reading {
    /// Begins with a response.
    pub fn new(response: reqwest::Response) -> Self {
        Self { response, transcript: Transcript::default() }
    }

    /// Reads on; whether there was more. Each line must be an event, a comment or empty.
    pub async fn advance(&mut self) -> Result<bool> {
        let Some(bytes) = self.response.chunk().await? else {
            self.transcript.end()?;
            return Ok(false);
        };
        self.transcript.push(&bytes)?;
        Ok(true)
    }
}

impl Transcript {
    /// Reads a response to its end.
    pub async fn read(response: reqwest::Response) -> Result<Self> {
        let mut reading = Reading::new(response);
        while reading.advance().await? {}
        Ok(reading.transcript)
    }
}
