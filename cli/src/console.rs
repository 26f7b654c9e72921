//! Messages and progress bars on the terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Writes to standard error; bars are drawn only when that is a terminal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Console {
    bars: MultiProgress,
}

impl Console {
    /// Prints one line, above any bar.
    pub(crate) fn print(&self, line: &str) {
        self.bars.suspend(|| eprintln!("{line}"));
    }

    /// A progress bar for a download of `bytes` bytes.
    pub(crate) fn download_bar(&self, label: &str, bytes: u64) -> ProgressBar {
        let template = "  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = ProgressBar::new(bytes).with_message(label.to_owned());
        self.bars.add(with_template(bar, template))
    }

    /// A spinner for work of unknown length.
    pub(crate) fn spinner(&self, message: &str) -> ProgressBar {
        let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
        let spinner = self.bars.add(with_template(spinner, "{spinner} {msg} ({elapsed})"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }
}

fn with_template(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
