//! A model's chat template: a conversation to the prompt that the model was trained on.
//!
//! Templates are Jinja as Hugging Face's `apply_chat_template` renders it: blocks trimmed, loop
//! controls, Python's string methods, `raise_exception`, and a `tojson` that leaves HTML alone.
//! There is no `strftime_now`: a prompt must be the same on every worker that renders it, so
//! templates take the date they bring along where they ask for it that way.

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;

use emberline_shared::job::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::gguf::{GgufError, GgufFile, Metadata};

/// The name by which error messages call the template.
const NAME: &str = "chat_template";
/// What one prompt may cost: about as many instructions, or 64 times as many bytes. A conversation
/// that fills the largest request a server takes stays below a tenth of it.
const FUEL: u64 = 4_000_000;

/// Why a template could not be compiled or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template itself refuses the conversation: the client's fault.
    #[error("{0}")]
    Refused(String),
    /// The conversation takes more work than is allowed: the client's fault, too.
    #[error("the conversation is too long for the model's chat template; send fewer messages")]
    TooLong,
    /// The template is not valid, or uses what is not there.
    #[error("the model's chat template can't be used: {}; choose another model or conversion", describe(.0))]
    Invalid(#[source] Error),
    /// The metadata name a token that does not exist.
    #[error("{}: {key} is {id}, but there are {count} tokens; pull the model again", path.display())]
    NoSuchToken {
        /// The model file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// Its value.
        id: u32,
        /// How many tokens there are.
        count: usize,
    },
    /// The metadata lack the template.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are what it knows as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(TemplateError::Invalid)?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_global("bos_token", bos.to_owned());
        environment.add_global("eos_token", eos.to_owned());
        // Hugging Face passes these even when there are none; templates ask whether they are none.
        environment.add_global("tools", ());
        environment.add_global("documents", ());
        environment.add_template_owned(NAME, source.to_owned()).map_err(TemplateError::Invalid)?;
        Ok(Self { environment })
    }

    /// The template in a model file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TemplateError> {
        let metadata = file.metadata();
        let source = metadata.get_str("tokenizer.chat_template")?;
        let bos = token_text(file, metadata, "tokenizer.ggml.bos_token_id")?;
        let eos = token_text(file, metadata, "tokenizer.ggml.eos_token_id")?;
        Self::new(source, bos, eos)
    }

    /// The prompt for a conversation, up to where the assistant's answer begins.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(TemplateError::Invalid)?;
        template.render(context! { messages => Serde(messages), add_generation_prompt => true }).map_err(
            |error| match refusal(&error) {
                Some(Refusal(message)) => TemplateError::Refused(message.clone()),
                None if error.kind() == ErrorKind::OutOfFuel => TemplateError::TooLong,
                None => TemplateError::Invalid(error),
            },
        )
    }
}

/// The text of the token that `key` names; empty if there is no such key.
fn token_text<'a>(
    file: &GgufFile,
    metadata: &'a Metadata,
    key: &'static str,
) -> Result<&'a str, TemplateError> {
    let Some(id) = metadata.opt_u32(key)? else { return Ok("") };
    let tokens = metadata.get_str_array("tokenizer.ggml.tokens")?;
    tokens.get(id as usize).map(String::as_str).ok_or_else(|| TemplateError::NoSuchToken {
        path: file.path().to_path_buf(),
        key,
        id,
        count: tokens.len(),
    })
}

/// What a template says when it calls `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Refusal(message)))
}

/// The refusal behind an error, however deep it was raised (in a macro, say).
fn refusal(error: &Error) -> Option<&Refusal> {
    std::iter::successors(error.source(), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// An error with what caused it.
fn describe(error: &Error) -> String {
    std::iter::successors(error.source(), |&error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it.
#[allow(clippy::needless_pass_by_value)] // filters take their options so
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    // Templates may say what is the case anyway.
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson can't escape to ASCII"));
    }
    options.assert_all_used()?;
    let json = match indent {
        Some(indent) => serialize(value, PrettyFormatter::with_indent(" ".repeat(indent.min(16)).as_bytes())),
        None => serialize(value, SpacedFormatter),
    };
    json.map(Value::from).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "can't write this value as JSON").with_source(error)
    })
}

fn serialize(value: &Value, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, formatter))?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// One line, with a space after each comma and colon.
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
