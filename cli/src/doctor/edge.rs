//! An edge (`emberline edge`), through which functions without sockets get to NATS: whether it answers, and whether a
//! nats-server is behind it.

use std::io::Read as _;

use url::Url;

use super::http::{agent, beginning, unreachable};
use super::report::Check;
use super::tls;

const NAME: &str = "edge";
const WHAT: &str = "`emberline edge`";
/// The path of the function's `nats_url` if it has none.
const DEFAULT_PATH: &str = "/nats";
/// What a nats-server's greeting begins with.
const GREETING: &[u8] = b"INFO ";

/// Looks at the edge under this URL, as the function's `nats_url` has it.
pub(super) async fn examine(url: &Url) -> Vec<Check> {
    let mut checks = tls::of_url(url).await;
    let mut url = url.clone();
    if url.path() == "/" {
        url.set_path(DEFAULT_PATH);
    }
    let asked = tokio::task::spawn_blocking(move || greet(&url)).await;
    checks.push(asked.unwrap_or_else(|error| Check::skipped(NAME, error.to_string())));
    checks
}

/// Opens a connection to nats-server through the edge, says nothing over it, and waits for the greeting.
fn greet(url: &Url) -> Check {
    let mut response = match agent().post(url.as_str()).send_empty() {
        Ok(response) => response,
        Err(error) => return unreachable(NAME, WHAT, url.as_str(), &error),
    };
    let status = response.status().as_u16();
    if status == 200 {
        let mut begin = Vec::new();
        let length = u64::try_from(GREETING.len()).unwrap_or(u64::MAX);
        let read = response.body_mut().as_reader().take(length).read_to_end(&mut begin);
        return match read {
            Ok(_) if begin == GREETING => Check::ok(NAME, format!("{url} leads to a nats-server")),
            Ok(_) => Check::fault(
                NAME,
                format!("what answers at {url} passes on no nats-server's greeting"),
                "give the URL of `emberline edge`, and look at what its --nats names",
            ),
            Err(error) => Check::fault(
                NAME,
                format!("{url} answers, and no greeting of a nats-server comes: {error}"),
                "look whether a proxy before the edge holds back what comes; it has to pass on both directions at once",
            ),
        };
    }
    let said = beginning(&response.body_mut().read_to_string().unwrap_or_default());
    let (finding, remedy) = match status {
        502 => (
            "does not reach nats-server",
            "start nats-server, or look at the edge's --nats; its log says why",
        ),
        503 => ("takes no connection", "wait if it is about to stop; allow more with --max-connections"),
        504 => {
            ("does not answer a proxy before it in time", "start the edge, or look at where the proxy leads")
        }
        _ => ("is no edge", "give the URL of `emberline edge`, with its path if a proxy changes that"),
    };
    Check::fault(NAME, format!("{url} {finding}: status {status}: {said}"), remedy)
}
