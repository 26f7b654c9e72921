//! A model's options, from the command line or from a file.

use std::collections::HashSet;
use std::path::Path;

use emberline_inference::checkpoint::ModelSource;
use emberline_inference::device::Backend;
use emberline_inference::engine::inference::{CacheDtype, PrecisionChoice};
use emberline_inference::network::Quantize;
use emberline_inference::speculation::Speculation;
use emberline_protocol::bytes::Bytes;
use emberline_protocol::subject;

/// The source that stands for the simulated engine.
const SIMULATED: &str = "simulated";
/// Longest name as part of a subject: a consumer's name, which contains it, has at most 255 bytes.
const NAME_BYTES: usize = 200;
/// Most concurrent jobs that may be configured for a model.
pub const MAX_SLOTS: u16 = 1024;

/// A model to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelOptions {
    /// The name jobs are addressed to.
    pub name: String,
    /// Where its weights come from.
    pub source: Source,
    /// How it is run.
    pub settings: Settings,
}

/// Where a model's weights come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A GGUF file, a folder, or a repository of the hub.
    Weights(ModelSource),
    /// The simulated engine: fixed words, no weights.
    Simulated {
        /// Per job; 0 for no limit.
        tokens_per_s: f64,
    },
}

/// How a model is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where to compute.
    pub backend: Backend,
    /// A wgpu adapter, by its number or part of its name.
    pub adapter: Option<String>,
    /// Concurrent jobs; `None` for as many as the cache serves.
    pub slots: Option<u16>,
    /// Format to quantise weights to; `None` for as they are stored.
    pub quantize: Option<Quantize>,
    /// How products with weights are computed.
    pub precision: PrecisionChoice,
    /// Memory for keys and values; `None` for a default.
    pub cache_memory: Option<Bytes>,
    /// Memory of the device for all that the model needs; `None` for what the device has left.
    pub max_memory: Option<Bytes>,
    /// How keys and values are stored.
    pub cache_dtype: CacheDtype,
    /// Prompt and completion together, in tokens; `None` for the model's own.
    pub context_length: Option<u32>,
    /// Prompt tokens in a step; `None` for what suits the device.
    pub prefill_budget: Option<u16>,
    /// Whether tokens are drafted, and how.
    pub speculation: Speculation,
    /// The rate of a simulated model that names none.
    pub tokens_per_s: f64,
}

/// Why options are not a model's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum OptionsError {
    #[error("a model's name has 1 to {NAME_BYTES} bytes and none of ',', '=' and control characters")]
    Name,
    #[error("it has no source: give a GGUF file, a folder or hf:ORG/NAME")]
    NoSource,
    #[error("'{0}' can't be used as a model's name; put NAME= in front of it")]
    NoName(String),
    #[error("the rate in '{0}' is not a number of tokens per second, 0 or more")]
    Rate(String),
    #[error(
        "the simulated engine's model must be named 'simulated…', so that nobody takes it for a real one"
    )]
    NotNamedSimulated,
    #[error("there are two models of this name; remove one or rename it")]
    Twice,
}

impl ModelOptions {
    /// Checks a model's name.
    pub fn new(name: &str, source: Source, settings: Settings) -> Result<Self, OptionsError> {
        check_name(name)?;
        if matches!(source, Source::Simulated { .. }) && !name.starts_with(SIMULATED) {
            return Err(OptionsError::NotNamedSimulated);
        }
        Ok(Self { name: name.to_owned(), source, settings })
    }

    /// Reads `NAME=SOURCE`, or a source alone that gives the model its name.
    pub fn parse(text: &str, settings: Settings) -> Result<Self, OptionsError> {
        match text.split_once('=') {
            Some((name, source)) => Self::new(name, Source::parse(source, settings.tokens_per_s)?, settings),
            None => Self::unnamed(text, settings),
        }
    }

    /// Names a model after its file or directory, or as the hub does.
    fn unnamed(text: &str, settings: Settings) -> Result<Self, OptionsError> {
        let source = Source::parse(text, settings.tokens_per_s)?;
        let name = match &source {
            Source::Simulated { .. } => Some(SIMULATED),
            Source::Weights(ModelSource::Path(path)) => name_of_file(path),
            Source::Weights(ModelSource::Hub { file: Some(file), .. }) => name_of_file(Path::new(file)),
            Source::Weights(ModelSource::Hub { repository, .. }) => Some(repository.as_str()),
        };
        let name = name.filter(|name| check_name(name).is_ok());
        let name = name.ok_or_else(|| OptionsError::NoName(text.to_owned()))?.to_owned();
        Self::new(&name, source, settings)
    }

    /// The engine's name, as the heartbeat shows it.
    pub fn engine(&self) -> &'static str {
        match self.source {
            Source::Weights(_) => "burn",
            Source::Simulated { .. } => SIMULATED,
        }
    }
}

impl Source {
    /// Reads a source; `simulated` and `simulated:RATE` are the simulated engine.
    pub fn parse(text: &str, tokens_per_s: f64) -> Result<Self, OptionsError> {
        match text.split_once(':') {
            _ if text.is_empty() => Err(OptionsError::NoSource),
            _ if text == SIMULATED => Ok(Self::Simulated { tokens_per_s }),
            Some((SIMULATED, rate)) => match tokens_per_second(rate) {
                Ok(tokens_per_s) => Ok(Self::Simulated { tokens_per_s }),
                Err(_) => Err(OptionsError::Rate(text.to_owned())),
            },
            _ => {
                let Ok(source) = text.parse();
                Ok(Self::Weights(source))
            }
        }
    }
}

/// Refuses two models of the same name; the error comes with the name.
pub fn check_unique<'a>(
    models: impl IntoIterator<Item = &'a ModelOptions>,
) -> Result<(), (&'a str, OptionsError)> {
    let mut names = HashSet::new();
    match models.into_iter().find(|model| !names.insert(&model.name)) {
        None => Ok(()),
        Some(model) => Err((&model.name, OptionsError::Twice)),
    }
}

/// A GGUF file's name without its extension, or a folder's name.
fn name_of_file(path: &Path) -> Option<&str> {
    let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
    if is_gguf { path.file_stem()?.to_str() } else { path.file_name()?.to_str() }
}

fn check_name(name: &str) -> Result<(), OptionsError> {
    // A comma and '=' have a meaning in the function's lists of names.
    let bad = |c: char| c.is_control() || c == ',' || c == '=';
    let length = subject::model_token(name).len();
    let fits = (1..=NAME_BYTES).contains(&length) && name.trim() == name;
    if fits && !name.contains(bad) { Ok(()) } else { Err(OptionsError::Name) }
}

/// Reads a rate of the simulated engine, in tokens per second.
pub fn tokens_per_second(text: &str) -> Result<f64, &'static str> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("give a number of tokens per second, 0 or more"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// What nothing was said about.
    pub(crate) fn settings() -> Settings {
        Settings {
            backend: Backend::Cpu,
            adapter: None,
            slots: Some(8),
            quantize: None,
            precision: PrecisionChoice::Exact,
            cache_memory: None,
            max_memory: None,
            cache_dtype: CacheDtype::Auto,
            context_length: None,
            prefill_budget: None,
            speculation: Speculation::Auto,
            tokens_per_s: 50.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::settings;
    use super::*;

    fn parse(text: &str) -> Result<(String, Source), OptionsError> {
        ModelOptions::parse(text, settings()).map(|model| (model.name, model.source))
    }

    #[test]
    fn a_model_has_the_name_in_front_of_it_or_its_sources_own() {
        let weights = |source: &str| Source::Weights(source.parse().unwrap());
        for (text, name, source) in [
            ("small=/m/x.gguf", "small", weights("/m/x.gguf")),
            ("/m/qwen2.5-0.5b.gguf", "qwen2.5-0.5b", weights("/m/qwen2.5-0.5b.gguf")),
            ("/m/Qwen2.5", "Qwen2.5", weights("/m/Qwen2.5")),
            ("hf:org/name@main", "org/name", weights("hf:org/name")),
            ("hf:org/name/x-q4.gguf", "x-q4", weights("hf:org/name/x-q4.gguf")),
            ("a=hf:org/b=c", "a", weights("hf:org/b=c")),
            ("simulated", "simulated", Source::Simulated { tokens_per_s: 50.0 }),
            ("simulated-a=simulated:7.5", "simulated-a", Source::Simulated { tokens_per_s: 7.5 }),
        ] {
            assert_eq!(parse(text), Ok((name.to_owned(), source)));
        }
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for (text, error) in [
            ("", OptionsError::NoSource),
            ("a=", OptionsError::NoSource),
            ("=x.gguf", OptionsError::Name),
            ("a,b=x.gguf", OptionsError::Name),
            (" a=x.gguf", OptionsError::Name),
            ("..", OptionsError::NoName("..".into())),
            ("a,b.gguf", OptionsError::NoName("a,b.gguf".into())),
            ("gpt=simulated", OptionsError::NotNamedSimulated),
            ("simulated=simulated:-1", OptionsError::Rate("simulated:-1".into())),
            ("simulated=simulated:", OptionsError::Rate("simulated:".into())),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        assert_eq!(parse(&format!("{}=x", "n".repeat(201))), Err(OptionsError::Name));
    }

    #[test]
    fn two_models_of_one_name_are_refused() {
        let models = ["a=x", "b=x", "a=y"].map(|text| ModelOptions::parse(text, settings()).unwrap());
        assert_eq!(check_unique(&models), Err(("a", OptionsError::Twice)));
        assert_eq!(check_unique(&models[..2]), Ok(()));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_name_that_is_taken_is_taken_everywhere(name in "\\PC{1,40}") {
            let named = ModelOptions::new(&name, Source::Weights("x.gguf".parse().unwrap()), settings());
            if named.is_ok() {
                let model = ModelOptions::parse(&format!("{name}=x.gguf"), settings()).unwrap();
                prop_assert_eq!(model.name, name);
            }
        }
    }
}
