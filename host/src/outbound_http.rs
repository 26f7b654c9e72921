//! HTTP requests that a component sends: to the addresses in `allowed_outbound_hosts`, with bodies that may go in both
//! directions at once.
//!
//! Like Spin, it offers HTTP/2 to servers with TLS and speaks HTTP/1.1 to those without. The authorities that may
//! sign certificates are the system's, or those in the file that `SSL_CERT_FILE` names.

use std::future::ready;
use std::io;
use std::sync::{Arc, OnceLock};

use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

use crate::function::ComponentSettings;

type HttpClient = Client<HttpsConnector<HttpConnector>, WasiBody>;

/// Sends the requests of one component.
#[derive(Clone)]
pub struct OutboundHttp {
    settings: Arc<ComponentSettings>,
    /// Made for the first request: to read the system's certificates takes milliseconds.
    client: Arc<OnceLock<HttpClient>>,
}

impl OutboundHttp {
    /// For the component with these settings.
    pub fn new(settings: Arc<ComponentSettings>) -> Self {
        Self { settings, client: Arc::default() }
    }

    fn client(&self) -> io::Result<HttpClient> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let builder = HttpsConnectorBuilder::new().with_native_roots()?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // A request's body may be small messages that wait for nothing.
        tcp.set_nodelay(true);
        let connector = builder.https_or_http().enable_http1().enable_http2().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(self.client.get_or_init(|| client).clone())
    }

    fn check(&self, request: &http::Request<WasiBody>) -> Result<HttpClient, HttpError> {
        let (name, uri) = (&self.settings.name, request.uri());
        if !self.settings.allowed_hosts.allows_request(uri) {
            let scheme = uri.scheme_str().unwrap_or_default();
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            tracing::warn!(
                "{name}: a request to {scheme}://{authority} is refused. To allow it, add {scheme}://{authority} to \
                 allowed_outbound_hosts"
            );
            return Err(HttpError::HttpRequestDenied);
        }
        self.client().map_err(|error| {
            tracing::error!("{name}: the system's certificates can't be read: {error}");
            HttpError::ConfigurationError
        })
    }
}

type Transmission = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type SendResult = Result<(http::Response<WasiBody>, Transmission), HttpError>;

impl WasiHttpHooks for OutboundHttp {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Transmission,
    ) -> Box<dyn Future<Output = SendResult> + Send> {
        let client = self.check(&request);
        Box::new(async move {
            let response = client?.request(request).await.map_err(|error| {
                if error.is_connect() {
                    HttpError::Connect(io::Error::other(error))
                } else {
                    HttpError::InternalError(Some(error.to_string()))
                }
            })?;
            let response = response.map(|body| body.map_err(HttpError::Hyper).boxed_unsync());
            // What goes wrong after the response has begun ends its body.
            Ok((response, Box::new(ready(Ok(()))) as Transmission))
        })
    }
}
