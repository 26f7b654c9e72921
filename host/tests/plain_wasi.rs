//! The function without Spin: build/function-wasi.wasm on wasmtime's own WASI, which is what `wasmtime serve` offers it,
//! with its settings in the environment. Nothing of `emberline-host` runs here.

// In a test, a failed step fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::{pending, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;
use emberline_host::function::engine;
use emberline_protocol::streams::Layout;
use emberline_test_kit::nats::{FUNCTION_SEED, Nats as _, NatsServer, set_up};
use emberline_test_kit::options::{Options, SIMULATED_MODEL};
use emberline_test_kit::simulated::{Endpoint, words};
use emberline_test_kit::stack::API_KEY;
use emberline_test_kit::wait;
use emberline_test_kit::workers::Workers;
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use wasmtime::component::{Component, GuestTaskId, Linker, ResourceTable};
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyHandler, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

#[tokio::test]
async fn the_function_needs_nothing_of_spin_and_looks_up_names() -> Result<()> {
    let nats = NatsServer::start().await?;
    let url = format!("nats://localhost:{}", port(&nats)?);
    answers(&nats, vec![("EMBERLINE_NATS_URL", url)]).await
}

#[tokio::test]
async fn tls_takes_the_name_that_was_looked_up() -> Result<()> {
    let nats = NatsServer::start_with_tls().await?;
    set_up(&nats, &Layout::default()).await?;
    let url = format!("tls://localhost:{}", port(&nats)?);
    let ca = std::fs::read_to_string(nats.ca().context("no certificate")?)?;
    answers(&nats, vec![("EMBERLINE_NATS_URL", url), ("EMBERLINE_NATS_TLS_CA", ca)]).await
}

fn port(nats: &NatsServer) -> Result<String> {
    Ok(nats.address().rsplit_once(':').context("no port")?.1.to_owned())
}

/// All kinds of answers, whole and streamed, with these settings beside those of every test.
async fn answers(nats: &NatsServer, mut environment: Vec<(&'static str, String)>) -> Result<()> {
    let mut workers = Workers::trusting(nats.ca());
    workers.add(&Options::simulated(&["--simulated-tokens-per-s", "0"]), &nats.urls().join(","))?;
    environment.extend([
        ("EMBERLINE_NATS_NKEY_SEED", FUNCTION_SEED.to_owned()),
        ("EMBERLINE_API_KEY_HASHES", HEXLOWER.encode(&Sha256::digest(API_KEY))),
        ("EMBERLINE_MODELS", SIMULATED_MODEL.to_owned()),
        ("EMBERLINE_MODEL_ALIASES", format!("vllm-primary={SIMULATED_MODEL}")),
    ]);
    let url = serve(environment).await?;
    let http = reqwest::Client::new();
    wait::until("/ready answers 200", async || {
        Ok(http.get(format!("{url}/ready")).send().await?.status() == 200)
    })
    .await?;
    for endpoint in Endpoint::ALL {
        for stream in [false, true] {
            let request = http.post(format!("{url}{}", endpoint.path())).bearer_auth(API_KEY);
            let response = request.json(&endpoint.body(20, stream)).send().await?;
            ensure!(endpoint.read(response, stream).await? == words(20), "{endpoint:?}, stream: {stream}");
        }
    }
    let refused = http.get(format!("{url}/v1/models")).bearer_auth("another").send().await?;
    ensure!(refused.status() == 401, "{refused:?}");
    Ok(())
}

/// Serves the function on a port that the system chooses, until the test ends; its URL.
async fn serve(environment: Vec<(&'static str, String)>) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/function-wasi.wasm");
    let wasm = std::fs::read(&path)
        .with_context(|| format!("{}: run `deploy/setup.sh wasi`, or `make test`", path.display()))?;
    // Compiled code is kept from run to run.
    let engine = engine(Some(&emberline_test_kit::paths::cache().join("wasmtime")))?;
    let component = tokio::task::spawn_blocking({
        let engine = engine.clone();
        move || Component::new(&engine, &wasm)
    })
    .await??;
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    let service = ServicePre::new(linker.instantiate_pre(&component)?)?;
    let handler = ProxyHandler::new(Serve { service, environment });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener, address, handler));
    Ok(format!("http://{address}"))
}

async fn accept(listener: TcpListener, address: SocketAddr, handler: ProxyHandler<Serve>) {
    while let Ok((stream, _)) = listener.accept().await {
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(|mut request: http::Request<hyper::body::Incoming>| {
                let handler = handler.clone();
                let target = format!("http://{address}{}", request.uri());
                async move {
                    *request.uri_mut() = target.parse()?;
                    let request = request.map(|body| body.map_err(HttpError::Hyper).boxed_unsync());
                    handler.handle((), request).await.map_err(anyhow::Error::from)
                }
            });
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        });
    }
}

/// Makes instances, as `wasmtime serve -S tcp,inherit-network,allow-ip-name-lookup` does.
struct Serve {
    service: ServicePre<State>,
    environment: Vec<(&'static str, String)>,
}

impl HandlerState for Serve {
    type StoreData = State;
    type WorkerExpiration = Never;
    type WorkerState = Always;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Never, Always>> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.inherit_network().allow_tcp(true).allow_ip_name_lookup(true).inherit_stderr();
        for (name, value) in &self.environment {
            wasi.env(name, value);
        }
        let (table, http) = (ResourceTable::new(), WasiHttpCtx::new());
        let state = State { table, wasi: wasi.build(), http, requests: NoRequests };
        let mut store = Store::new(self.service.engine(), state);
        let proxy = Proxy::P3(self.service.instantiate_async(&mut store).await?);
        Ok(Instance { store, proxy, view: WasiHttpView::http, expiration: Never, state: Always })
    }
}

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    requests: NoRequests,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.requests }
    }
}

/// The function sends no requests where it has sockets.
struct NoRequests;

type Transmission = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type SendResult = Result<(http::Response<WasiBody>, Transmission), HttpError>;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Transmission,
    ) -> Box<dyn Future<Output = SendResult> + Send> {
        Box::new(ready(Err(HttpError::HttpRequestDenied)))
    }
}

struct Never;

impl WorkerExpiration for Never {
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>, _: WorkerStatus, _: Instant) -> Poll<()> {
        Poll::Pending
    }
}

struct Always;

impl WorkerState for Always {
    type StoreData = State;
    type RequestData = ();

    fn should_accept_request(&self, _: usize, _: usize) -> ShouldAccept {
        ShouldAccept::Yes
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, State>,
        (): (),
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        Box::pin(pending())
    }

    fn drop(&self, _: Store<State>, result: wasmtime::Result<()>) {
        result.unwrap();
    }
}
