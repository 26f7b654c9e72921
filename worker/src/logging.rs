//! Logging to stderr, filtered by EMBERLINE_LOG or RUST_LOG.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;

/// The worker's own messages, and only warnings of its libraries.
const LOG_DEFAULT: &str = "warn,emberline_worker=info,emberline_inference=info";

/// Starts logging, panics included.
pub fn start() {
    let filter = ["EMBERLINE_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|filter| !filter.is_empty()))
        .unwrap_or_else(|| LOG_DEFAULT.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    std::panic::set_hook(Box::new(log_panic));
}

/// Says where a panic was, and why if that is a fixed text. One that was put together may quote a prompt, as the
/// panic of an index into the middle of a character does.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    match panic.payload().downcast_ref::<&'static str>() {
        Some(message) => tracing::error!(%location, "a panic: {}", one_line(message)),
        None => {
            tracing::error!(%location, "a panic; its message may quote a prompt and is logged at level trace");
            let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
            tracing::trace!(%location, "a panic: {}", one_line(message));
        }
    }
}

/// A text of several lines on one.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
