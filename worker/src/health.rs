//! Answers probes over HTTP: whether the worker lives, and whether it takes jobs.

use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::heartbeat::ModelState;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::registry::status::RegistryStatus;

/// How long a step of an engine may take. It takes seconds at most, but for the first ones on a GPU, which compile
/// kernels.
const STEP_LIMIT: Duration = Duration::from_secs(300);
/// How long a client may take, and how many may ask at once.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 64;
/// Pause after a connection can't be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is known of the worker's health.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<OnceLock<WorkerState>>);

/// What changes while a worker runs; known once it has connected to NATS.
#[derive(Debug)]
pub struct WorkerState {
    /// Whether there is a connection to NATS.
    pub connected: watch::Receiver<bool>,
    /// The models.
    pub models: watch::Receiver<RegistryStatus>,
    /// Whether the worker is about to end.
    pub draining: watch::Receiver<bool>,
}

/// Why a probe fails.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unfit {
    #[error("the engine of model {model} has been in one step for {seconds} s")]
    Stuck { model: String, seconds: u64 },
    #[error("not connected to NATS")]
    NotConnected,
    #[error("draining: it takes no more jobs")]
    Draining,
    #[error("no model is there yet")]
    NoModel,
    #[error("model {model} is not served: {reason}")]
    NotServed { model: String, reason: String },
}

/// Why probes can't be answered.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} for --http-listen: {reason}. Give another address, such as 0.0.0.0:8080")]
pub struct ListenError {
    address: String,
    reason: io::Error,
}

impl Health {
    /// Looks at this state from now on.
    pub fn watch(&self, state: WorkerState) {
        // A worker connects for the first time once.
        let _ = self.0.set(state);
    }

    /// Whether the process does what it should; if not, a restart helps.
    fn is_alive(&self) -> Result<(), Unfit> {
        let Some(state) = self.0.get() else { return Ok(()) };
        for model in &state.models.borrow().models {
            let step_time = model.loaded.as_ref().and_then(|loaded| loaded.progress.step_time());
            if let Some(time) = step_time.filter(|time| *time > STEP_LIMIT) {
                return Err(Unfit::Stuck { model: model.name.clone(), seconds: time.as_secs() });
            }
        }
        Ok(())
    }

    /// Whether it takes jobs for all its models.
    fn is_ready(&self) -> Result<(), Unfit> {
        let state = self.0.get().ok_or(Unfit::NotConnected)?;
        if *state.draining.borrow() {
            return Err(Unfit::Draining);
        }
        if !*state.connected.borrow() {
            return Err(Unfit::NotConnected);
        }
        self.is_alive()?;
        let status = state.models.borrow();
        let mut served = status.models.iter().filter(|model| model.state == ModelState::Serving);
        for model in &status.models {
            let reason = match model.state {
                ModelState::Loading => "it is being loaded".to_owned(),
                ModelState::Failed => model.reason.clone().unwrap_or_default(),
                ModelState::Serving | ModelState::Draining | ModelState::Unknown => continue,
            };
            // A model that is being replaced is there twice.
            if !served.clone().any(|other| other.name == model.name) {
                return Err(Unfit::NotServed { model: model.name.clone(), reason });
            }
        }
        if served.next().is_some() { Ok(()) } else { Err(Unfit::NoModel) }
    }

    fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let found = match request.uri().path() {
            "/health" => self.is_alive(),
            "/ready" => self.is_ready(),
            _ => return text(StatusCode::NOT_FOUND, "the worker has /health and /ready"),
        };
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD");
        }
        match found {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(unfit) => text(StatusCode::SERVICE_UNAVAILABLE, unfit),
        }
    }
}

fn text(status: StatusCode, line: impl Display) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{line}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Where probes come in.
#[derive(Debug)]
pub struct ProbeListener(TcpListener);

impl ProbeListener {
    /// Listens on `address`; port 0 chooses a free one, which the log tells.
    pub async fn bind(address: &str) -> Result<Self, ListenError> {
        let bound =
            TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (at, listener) = bound.map_err(|reason| ListenError { address: address.to_owned(), reason })?;
        tracing::info!("answering probes at http://{at}");
        Ok(Self(listener))
    }

    /// Answers; never returns.
    pub async fn serve(&self, health: &Health) {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.0.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => connections.push(answer(stream, health)),
                    Err(error) => {
                        tracing::warn!(%error, "a connection can't be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(()) = connections.next() => {}
            }
        }
    }
}

/// Answers one connection's request.
async fn answer(stream: TcpStream, health: &Health) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(health.respond(&request))));
    let mut builder = hyper::server::conn::http1::Builder::new();
    let connection = builder.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a probe's connection broke"),
        Err(_) => tracing::debug!("a probe took too long"),
    }
}

#[cfg(test)]
mod tests {
    use emberline_inference::engine::thread::EngineProgress;

    use super::*;
    use crate::intake::slots::Slots;
    use crate::registry::status::{Loaded, ModelStatus};

    fn model(name: &str, state: ModelState, reason: Option<&str>) -> ModelStatus {
        let loaded = (state == ModelState::Serving).then(|| Loaded {
            served: Vec::new(),
            device: String::new(),
            slots: Slots::new(1, Arc::default()),
            progress: EngineProgress::default(),
            memory: None,
        });
        let reason = reason.map(str::to_owned);
        ModelStatus { name: name.into(), state, reason, engine: "burn", loaded, loading: None }
    }

    /// What `/ready` says of a worker of these models.
    fn ready(connected: bool, draining: bool, models: &[(&str, ModelState)]) -> Result<(), String> {
        let models = models.iter().map(|(name, state)| model(name, *state, Some("no memory"))).collect();
        let health = Health::default();
        health.watch(WorkerState {
            connected: watch::Sender::new(connected).subscribe(),
            models: watch::Sender::new(RegistryStatus { models, problem: None }).subscribe(),
            draining: watch::Sender::new(draining).subscribe(),
        });
        assert_eq!(health.is_alive(), Ok(()));
        health.is_ready().map_err(|unfit| unfit.to_string())
    }

    #[test]
    fn a_worker_is_ready_when_it_takes_jobs_for_all_its_models() {
        use ModelState::{Draining, Failed, Loading, Serving};
        assert_eq!(Health::default().is_ready(), Err(Unfit::NotConnected));
        assert_eq!(Health::default().is_alive(), Ok(()));
        let not = |text: &str| Err(text.to_owned());
        for (connected, draining, models, expected) in [
            (true, false, &[("a", Serving)][..], Ok(())),
            // Being replaced.
            (true, false, &[("a", Loading), ("a", Serving)], Ok(())),
            (true, false, &[("a", Serving), ("b", Draining)], Ok(())),
            (false, false, &[("a", Serving)], not("not connected to NATS")),
            (true, true, &[("a", Serving)], not("draining: it takes no more jobs")),
            (true, false, &[], not("no model is there yet")),
            (true, false, &[("a", Draining)], not("no model is there yet")),
            (
                true,
                false,
                &[("a", Serving), ("b", Loading)],
                not("model b is not served: it is being loaded"),
            ),
            (true, false, &[("a", Serving), ("b", Failed)], not("model b is not served: no memory")),
        ] {
            assert_eq!(ready(connected, draining, models), expected, "{models:?}");
        }
    }
}
