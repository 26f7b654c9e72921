//! Logging to stderr, filtered by EMBERLINE_LOG or RUST_LOG.

use std::io::IsTerminal;

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
    std::panic::set_hook(Box::new(|panic| tracing::error!("{}", one_line(&panic.to_string()))));
}

/// A text of several lines on one.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
