//! Runs one component on wasmtime: what it may import, and how its instances are created and reused.
//!
//! Like Spin, it uses wasmtime's [`ProxyHandler`], with Spin's limits, so that requests share instances in the
//! same way.

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
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::allowed_hosts::AllowedHosts;
use crate::guest_log::GuestLog;
use crate::outbound_http::OutboundHttp;
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

/// Number of requests that one instance serves in its life; Spin's default.
pub const MAX_REQUESTS: usize = 128;
/// Number of requests that one instance serves at the same time before their response heads; Spin's default.
pub const MAX_CONCURRENT_REQUESTS: usize = 16;
/// How long an idle instance is kept; Spin's default.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a component can't be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// wasmtime does not work on this machine.
    #[error("wasmtime can't run on this machine: {0:#}")]
    Engine(wasmtime::Error),
    /// The file can't be read.
    #[error("{} can't be read ({error}). Build the component first", path.display())]
    Read {
        /// The component's file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not a component.
    #[error("{} is not a WebAssembly component: {error:#}. Build it for wasm32-wasip2", path.display())]
    Compile {
        /// The component's file.
        path: PathBuf,
        /// Why.
        error: wasmtime::Error,
    },
    /// The component imports something that this host lacks.
    #[error(
        "{} imports something that this host doesn't offer: {error:#}. \
         Remove the import, or run the application with `spin up`", path.display()
    )]
    Import {
        /// The component's file.
        path: PathBuf,
        /// The import.
        error: wasmtime::Error,
    },
    /// The component does not serve HTTP.
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

/// Makes the wasmtime engine that all components share.
///
/// With a cache folder, a component that was compiled before loads in milliseconds. Without one, or if it
/// can't be used, components are compiled at each start.
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

/// The settings of a component, with all variables expanded.
#[derive(Default)]
pub struct ComponentSettings {
    /// The component's name.
    pub name: String,
    /// The variables that `spin:variables` returns.
    pub variables: BTreeMap<String, String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// The addresses that it may connect to.
    pub allowed_hosts: AllowedHosts,
}

/// A component that answers HTTP requests.
pub type Function = ProxyHandler<FunctionState>;

/// Compiles and links the component in a file.
pub fn load(engine: &Engine, path: &Path, settings: ComponentSettings) -> Result<Function, LoadError> {
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
    let settings = Arc::new(settings);
    let outbound_http = OutboundHttp::new(settings.clone());
    Ok(ProxyHandler::new(FunctionState { service, name, settings, outbound_http }))
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<InstanceState>> {
    let mut linker = Linker::new(engine);
    // In a WASIp3 component, Rust's standard library still uses WASIp2.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    variables::add_to_linker::<_, HasSelf<InstanceState>>(&mut linker, |state| state)?;
    Ok(linker)
}

/// Creates the instances of a component.
pub struct FunctionState {
    service: ServicePre<InstanceState>,
    name: Arc<str>,
    settings: Arc<ComponentSettings>,
    outbound_http: OutboundHttp,
}

impl HandlerState for FunctionState {
    type StoreData = InstanceState;
    type WorkerExpiration = IdleTimeout;
    type WorkerState = ReusePolicy;

    async fn instantiate(&self) -> wasmtime::Result<Instance<InstanceState, IdleTimeout, ReusePolicy>> {
        let state = InstanceState::new(self.name.clone(), self.settings.clone(), self.outbound_http.clone());
        let mut store = Store::new(self.service.engine(), state);
        let proxy = Proxy::P3(self.service.instantiate_async(&mut store).await?);
        tracing::debug!("{}: a new instance", self.name);
        Ok(Instance {
            store,
            proxy,
            view: WasiHttpView::http,
            expiration: IdleTimeout(Box::pin(sleep(IDLE_TIMEOUT))),
            state: ReusePolicy(self.name.clone()),
        })
    }
}

/// Ends an instance that has been idle for [`IDLE_TIMEOUT`].
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

/// Decides how many requests an instance takes. Holds the component's name for the log.
pub struct ReusePolicy(Arc<str>);

impl WorkerState for ReusePolicy {
    type StoreData = InstanceState;
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
        _: StoreContextMut<'_, InstanceState>,
        (): (),
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // By default, Spin sets no time limit.
        Box::pin(pending())
    }

    fn drop(&self, _: Store<InstanceState>, result: Result<(), wasmtime::Error>) {
        match result {
            Ok(()) => tracing::debug!("{}: an instance ended", self.0),
            Err(error) => {
                tracing::error!("{}: an instance failed, which cuts off its responses: {error:#}", self.0);
            }
        }
    }
}

/// The host's data for one instance.
pub struct InstanceState {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound_http: OutboundHttp,
    settings: Arc<ComponentSettings>,
}

impl InstanceState {
    fn new(name: Arc<str>, settings: Arc<ComponentSettings>, outbound_http: OutboundHttp) -> Self {
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
        Self { table, wasi: wasi.build(), http: WasiHttpCtx::new(), outbound_http, settings }
    }
}

fn is_allowed(settings: &ComponentSettings, address: SocketAddr, purpose: SocketAddrUse) -> bool {
    let allowed = match purpose {
        SocketAddrUse::TcpConnect => settings.allowed_hosts.allows(address),
        // wasmtime checks this for an outgoing connection that does not bind a socket itself.
        SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
        SocketAddrUse::TcpListen
        | SocketAddrUse::TcpAccept
        | SocketAddrUse::UdpBind
        | SocketAddrUse::UdpSend
        | SocketAddrUse::UdpReceive => false,
    };
    if !allowed {
        tracing::warn!(
            "{}: {purpose:?} {address} is refused. To allow a connection, add tcp://{address} to \
             allowed_outbound_hosts; listening and UDP can't be allowed",
            settings.name
        );
    }
    allowed
}

impl WasiView for InstanceState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for InstanceState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outbound_http }
    }
}

impl variables::Host for InstanceState {}

impl<T: Send> variables::HostWithStore<T> for HasSelf<InstanceState> {
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
