//! The file of models: read at the start, watched, and read again when it changes.
//!
//! ```toml
//! [[model]]
//! name = "smollm2"
//! source = "smollm2-135m-instruct.gguf"   # relative to this file
//! slots = 4
//! ```
//!
//! A file that can't be read changes nothing: the error is reported and the models stay as they are.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use emberline_inference::checkpoint::ModelSource;
use emberline_inference::engine::inference::{CacheDtype, PrecisionChoice};
use emberline_inference::network::Quantize;
use emberline_inference::speculation::Speculation;
use emberline_protocol::bytes::Bytes;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::options::{MAX_SLOTS, ModelOptions, OptionsError, Settings, Source, check_unique};
use crate::logging::one_line;

/// How often the file is read. A change is applied once two readings in a row agree, so that a file is
/// not applied while it is being written.
const POLL: Duration = Duration::from_millis(500);
/// Larger files are refused: no list of models is that long, but a file of weights is.
const MAX_BYTES: u64 = 1 << 20;

/// Why no models can be read from a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum FileError {
    #[error("{}: {reason}; check the path given with --models", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{}: it is larger than {MAX_BYTES} bytes; --models takes a TOML file with [[model]] tables, weights go with --model", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax { path: PathBuf, line: usize, reason: String },
    #[error("{}: model '{name}': {source}", path.display())]
    Model { path: PathBuf, name: String, source: OptionsError },
}

/// The models to serve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WantedModels {
    /// By name.
    pub models: BTreeMap<String, ModelOptions>,
    /// Grows whenever models that failed are to be tried again.
    pub revision: u64,
    /// Why the last change of the file was not applied.
    pub problem: Option<String>,
}

/// The models of the command line and those of a file.
#[derive(Debug, Clone)]
pub struct ModelList {
    fixed: Vec<ModelOptions>,
    file: Option<PathBuf>,
    defaults: Settings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "model")]
    models: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    source: String,
    quantize: Option<Quantize>,
    precision: Option<PrecisionChoice>,
    #[serde(default, deserialize_with = "slots")]
    slots: Option<u16>,
    cache_memory: Option<Bytes>,
    max_memory: Option<Bytes>,
    cache_dtype: Option<CacheDtype>,
    #[serde(default, deserialize_with = "context_length")]
    context_length: Option<u32>,
    speculation: Option<Speculation>,
}

/// What a reading of the file gave.
type Content = Result<Vec<u8>, FileError>;

impl ModelList {
    /// `fixed` models are always wanted; `defaults` fill in what an entry of `file` leaves out.
    pub fn new(fixed: Vec<ModelOptions>, file: Option<PathBuf>, defaults: Settings) -> Self {
        Self { fixed, file, defaults }
    }

    /// Whether there is a file to watch.
    pub fn is_watched(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the models for the first time; from then on the file, if there is one, can be watched.
    pub fn open(&self) -> Result<(WantedModels, Option<FileWatcher>), FileError> {
        let Some(path) = &self.file else {
            let models = by_name(&self.fixed, Path::new("command line"))?;
            return Ok((WantedModels { models, ..WantedModels::default() }, None));
        };
        let watch = FileWatcher {
            fixed: self.fixed.clone(),
            path: path.clone(),
            defaults: self.defaults.clone(),
            seen: Ok(read(path)?),
        };
        let models = watch.models(&watch.seen)?;
        Ok((WantedModels { models, ..WantedModels::default() }, Some(watch)))
    }
}

/// A file of models, and what was last read from it.
#[derive(Debug)]
pub struct FileWatcher {
    fixed: Vec<ModelOptions>,
    path: PathBuf,
    defaults: Settings,
    seen: Content,
}

impl FileWatcher {
    /// Watches the file. Each change of `hang_ups` (SIGHUP) has it read at once, and models that failed
    /// tried again. Never returns.
    pub async fn run(mut self, mut hang_ups: watch::Receiver<u32>, wanted: &watch::Sender<WantedModels>) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.seen.clone();
        loop {
            let requested = tokio::select! {
                _ = poll.tick() => false,
                () = next(&mut hang_ups) => true,
            };
            let path = self.path.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || read(&path)).await else { continue };
            if requested || (now != self.seen && now == before) {
                self.apply(now.clone(), requested, wanted);
            }
            before = now;
        }
    }

    fn apply(&mut self, content: Content, requested: bool, wanted: &watch::Sender<WantedModels>) {
        let models = self.models(&content);
        self.seen = content;
        wanted.send_modify(|wanted| match models {
            Ok(models) => {
                tracing::info!(models = ?models.keys().collect::<Vec<_>>(), "applied the changed models file");
                *wanted = WantedModels { models, revision: wanted.revision + 1, problem: None };
            }
            Err(error) => {
                tracing::error!(%error, "the models file can't be applied; the models stay as they are");
                wanted.revision += u64::from(requested);
                wanted.problem = Some(error.to_string());
            }
        });
    }

    fn models(&self, content: &Content) -> Result<BTreeMap<String, ModelOptions>, FileError> {
        let content = content.as_ref().map_err(Clone::clone)?;
        let mut models = self.fixed.clone();
        models.extend(parse(content, &self.path, &self.defaults)?);
        by_name(&models, &self.path)
    }
}

/// Refuses two models of the same name.
fn by_name(models: &[ModelOptions], path: &Path) -> Result<BTreeMap<String, ModelOptions>, FileError> {
    check_unique(models).map_err(|(name, source)| FileError::Model {
        path: path.to_owned(),
        name: name.to_owned(),
        source,
    })?;
    Ok(models.iter().map(|model| (model.name.clone(), model.clone())).collect())
}

/// Waits for the next change; forever if the sender is gone.
async fn next(count: &mut watch::Receiver<u32>) {
    if count.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn read(path: &Path) -> Content {
    let failed = |error: io::Error| FileError::Read { path: path.to_owned(), reason: error.to_string() };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(content)
}

fn parse(content: &[u8], path: &Path, defaults: &Settings) -> Result<Vec<ModelOptions>, FileError> {
    let syntax = |place: usize, reason: String| {
        let line = 1 + content.iter().take(place).filter(|&&byte| byte == b'\n').count();
        FileError::Syntax { path: path.to_owned(), line, reason }
    };
    let text = std::str::from_utf8(content)
        .map_err(|error| syntax(error.valid_up_to(), "it is not UTF-8 text".to_owned()))?;
    let file: File = toml::from_str(text).map_err(|error| {
        let reason = one_line(error.message());
        syntax(error.span().map_or(0, |span| span.start), reason)
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    file.models.into_iter().map(|entry| entry.into_options(path, folder, defaults)).collect()
}

impl Entry {
    fn into_options(
        self,
        path: &Path,
        folder: &Path,
        defaults: &Settings,
    ) -> Result<ModelOptions, FileError> {
        let settings = Settings {
            slots: self.slots.or(defaults.slots),
            quantize: self.quantize.or(defaults.quantize),
            precision: self.precision.unwrap_or(defaults.precision),
            cache_memory: self.cache_memory.or(defaults.cache_memory),
            max_memory: self.max_memory.or(defaults.max_memory),
            cache_dtype: self.cache_dtype.unwrap_or(defaults.cache_dtype),
            context_length: self.context_length.or(defaults.context_length),
            speculation: self.speculation.unwrap_or(defaults.speculation),
            ..defaults.clone()
        };
        let mut source = Source::parse(&self.source, settings.tokens_per_s);
        if let Ok(Source::Weights(ModelSource::Path(weights))) = &mut source {
            *weights = folder.join(&*weights);
        }
        source
            .and_then(|source| ModelOptions::new(&self.name, source, settings))
            .map_err(|source| FileError::Model { path: path.to_owned(), name: self.name, source })
    }
}

fn slots<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<u16>, D::Error> {
    match u16::deserialize(value)? {
        slots @ 1..=MAX_SLOTS => Ok(Some(slots)),
        other => Err(serde::de::Error::custom(format!("slots is {other}, but must be 1 to {MAX_SLOTS}"))),
    }
}

fn context_length<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(value)? {
        0 => Err(serde::de::Error::custom("context_length is 0, but must be at least 1")),
        length => Ok(Some(length)),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
