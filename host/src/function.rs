//! One component on wasmtime: what it may import, and how its instances are made and reused.
//!
//! wasmtime's [`ProxyHandler`] is what Spin uses too, here with Spin's numbers, so requests
//! share instances in the same way.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};
use wasmtime::component::{Accessor, Component, GuestTaskId, HasSelf, Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Config, Engine, Store, StoreContextMut};
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyHandler, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::allowed_hosts::AllowedHosts;
use crate::guest_log::GuestLog;
use crate::variables::check_name;

mod bindings {
    //! `spin:variables@3.0.0`.
    wasmtime::component::bindgen!({
        inline: "
            package spin:variables@3.0.0;

            interface variables {
                variant error {
                    invalid-name(string),
                    undefined(string),
                    provider(string),
                    other(string),
                }
                get: async func(name: string) -> result<string, error>;
            }

            world host {
                import variables;
            }
        ",
    });
}

use bindings::spin::variables::variables;

/// Requests that one instance serves in its life; Spin's default.
pub const MAX_REQUESTS: usize = 128;
/// Requests that one instance serves before their response heads, at once; Spin's default.
pub const MAX_CONCURRENT_REQUESTS: usize = 16;
/// How long an instance with nothing to do is kept; Spin's default.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a component can't be run. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// wasmtime refuses its settings.
    #[error("wasmtime can't run on this machine: {0:#}")]
    Engine(wasmtime::Error),
    /// The file isn't there.
    #[error("{} can't be read ({error}). Build the component first", path.display())]
    Read {
        /// The component's file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Not a component.
    #[error("{} is not a WebAssembly component: {error:#}. Build it for wasm32-wasip2", path.display())]
    Compile {
        /// The component's file.
        path: PathBuf,
        /// Why.
        error: wasmtime::Error,
    },
    /// It imports what isn't there.
    #[error(
        "{} needs what this host doesn't offer: {error:#}. \
         Take it out of the component, or run the application with `spin up`", path.display()
    )]
    Import {
        /// The component's file.
        path: PathBuf,
        /// The import.
        error: wasmtime::Error,
    },
    /// It serves no HTTP.
    #[error(
        "{} is not a WASIp3 HTTP service: {error:#}. \
         Export wasi:http/handler@0.3.0; spin-sdk 7's http_service does", path.display()
    )]
    NotAService {
        /// The component's file.
        path: PathBuf,
        /// Why.
        error: wasmtime::Error,
    },
}

/// Makes the engine that all components share.
///
/// With a cache folder a component that was compiled before starts in milliseconds; without
/// one, or when it can't be used, it is compiled again.
pub fn engine(cache_folder: Option<&Path>) -> Result<Engine, LoadError> {
    let mut config = Config::new();
    config.wasm_component_model_async(true);
    if let Some(folder) = cache_folder {
        let mut cache = CacheConfig::new();
        cache.with_directory(folder);
        match Cache::new(cache) {
            Ok(cache) => _ = config.cache(Some(cache)),
            Err(error) => tracing::warn!("compiled components are not cached: {error:#}"),
        }
    }
    Engine::new(&config).map_err(LoadError::Engine)
}

/// What a component is given, variables put in.
#[derive(Default)]
pub struct Settings {
    /// The component's name.
    pub name: String,
    /// What `spin:variables` answers.
    pub variables: BTreeMap<String, String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Where it may connect to.
    pub allowed_hosts: AllowedHosts,
}

/// A component that answers HTTP requests.
pub type Function = ProxyHandler<FunctionState>;

/// Compiles and links the component in a file.
pub fn load(engine: &Engine, path: &Path, settings: Settings) -> Result<Function, LoadError> {
    let wasm = std::fs::read(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
    let component =
        Component::new(engine, &wasm).map_err(|error| LoadError::Compile { path: path.to_owned(), error })?;
    let linker = linker(engine).map_err(LoadError::Engine)?;
    let instance = linker
        .instantiate_pre(&component)
        .map_err(|error| LoadError::Import { path: path.to_owned(), error })?;
    let service =
        ServicePre::new(instance).map_err(|error| LoadError::NotAService { path: path.to_owned(), error })?;
    let name = settings.name.as_str().into();
    Ok(ProxyHandler::new(FunctionState { service, name, settings: Arc::new(settings) }))
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    // Rust's standard library still uses WASIp2 in a WASIp3 component.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    variables::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    Ok(linker)
}

/// Makes a component's instances.
pub struct FunctionState {
    service: ServicePre<State>,
    name: Arc<str>,
    settings: Arc<Settings>,
}

impl HandlerState for FunctionState {
    type StoreData = State;
    type WorkerExpiration = IdleTimeout;
    type WorkerState = Reuse;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, IdleTimeout, Reuse>> {
        let state = State::new(self.name.clone(), self.settings.clone());
        let mut store = Store::new(self.service.engine(), state);
        let proxy = Proxy::P3(self.service.instantiate_async(&mut store).await?);
        tracing::debug!("{}: a new instance", self.name);
        Ok(Instance {
            store,
            proxy,
            view: WasiHttpView::http,
            expiration: IdleTimeout(Box::pin(sleep(IDLE_TIMEOUT))),
            state: Reuse(self.name.clone()),
        })
    }
}

/// Ends an instance that has had nothing to do for [`IDLE_TIMEOUT`].
pub struct IdleTimeout(Pin<Box<Sleep>>);

impl WorkerExpiration for IdleTimeout {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        if status != WorkerStatus::Idle {
            return Poll::Pending;
        }
        let deadline = (since + IDLE_TIMEOUT).into();
        if self.0.deadline() != deadline {
            self.0.as_mut().reset(deadline);
        }
        self.0.as_mut().poll(cx)
    }
}

/// How many requests an instance takes. Holds the component's name.
pub struct Reuse(Arc<str>);

impl WorkerState for Reuse {
    type StoreData = State;
    type RequestData = ();

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= MAX_REQUESTS {
            ShouldAccept::Never
        } else if concurrent >= MAX_CONCURRENT_REQUESTS {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, State>,
        (): (),
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // Spin sets no time limit unless told to.
        Box::pin(pending())
    }

    fn drop(&self, _: Store<State>, result: Result<(), wasmtime::Error>) {
        match result {
            Ok(()) => tracing::debug!("{}: an instance ended", self.0),
            Err(error) => {
                tracing::error!("{}: an instance failed, and its responses end here: {error:#}", self.0);
            }
        }
    }
}

/// An instance's side of the host.
pub struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    no_outbound_http: NoOutboundHttp,
    settings: Arc<Settings>,
}

impl State {
    fn new(name: Arc<str>, settings: Arc<Settings>) -> Self {
        let mut wasi = WasiCtxBuilder::new();
        for (name, value) in &settings.environment {
            wasi.env(name, value);
        }
        wasi.stdout(GuestLog::new(name.clone())).stderr(GuestLog::new(name));
        let for_check = settings.clone();
        wasi.allow_tcp(true).socket_addr_check(move |address, purpose| {
            let allowed = is_allowed(&for_check, address, purpose);
            Box::pin(async move { allowed })
        });
        let table = ResourceTable::new();
        Self {
            table,
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            no_outbound_http: NoOutboundHttp,
            settings,
        }
    }
}

fn is_allowed(settings: &Settings, address: SocketAddr, purpose: SocketAddrUse) -> bool {
    let allowed = match purpose {
        SocketAddrUse::TcpConnect => settings.allowed_hosts.allows(address),
        // wasmtime asks this of an outgoing connection that binds nothing itself.
        SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
        SocketAddrUse::TcpListen
        | SocketAddrUse::TcpAccept
        | SocketAddrUse::UdpBind
        | SocketAddrUse::UdpSend
        | SocketAddrUse::UdpReceive => false,
    };
    if !allowed {
        tracing::warn!(
            "{}: {purpose:?} {address} is refused. A connection needs an entry tcp://{address} in \
             allowed_outbound_hosts; nothing else is possible",
            settings.name
        );
    }
    allowed
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.no_outbound_http }
    }
}

/// Refuses outbound HTTP requests: no entry of `allowed_outbound_hosts` can allow one here.
struct NoOutboundHttp;

type Sent =
    Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), HttpError>> + Send>), HttpError>;

impl WasiHttpHooks for NoOutboundHttp {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(async { Err(HttpError::HttpRequestDenied) })
    }
}

impl variables::Host for State {}

impl<T: Send> variables::HostWithStore<T> for HasSelf<State> {
    async fn get(accessor: &Accessor<T, Self>, name: String) -> Result<String, variables::Error> {
        if let Err(error) = check_name(&name) {
            return Err(variables::Error::InvalidName(error.to_string()));
        }
        accessor.with(|mut access| {
            let settings = &access.get().settings;
            settings.variables.get(&name).cloned().ok_or_else(|| {
                let component = &settings.name;
                variables::Error::Undefined(format!("'{name}' is not in [component.{component}.variables]"))
            })
        })
    }
}
