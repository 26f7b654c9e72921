//! A model's chat template: a conversation to the prompt that the model was trained on.
//!
//! Templates are Jinja as Hugging Face's `apply_chat_template` renders it: blocks trimmed, loop
//! controls, Python's string methods and the functions that templates use (`functions`).

mod functions;
mod source;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};

use emberline_shared::job::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::gguf::{GgufError, GgufFile};
use crate::hf::HfFileError;

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
    /// A file of the model's folder is damaged.
    #[error(transparent)]
    File(#[from] HfFileError),
    /// None of the files of the model's folder has a template.
    #[error(
        "{} has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json; \
         choose a model that was trained for chats",
        path.display()
    )]
    Missing {
        /// The model's folder.
        path: PathBuf,
    },
}

/// What a prompt depends on beside its messages.
#[derive(Debug, Clone, Default)]
pub struct PromptContext {
    /// The time that templates see, unix milliseconds: that of the job, so that every worker that
    /// takes it up renders the same prompt.
    pub now: u64,
    /// The template's own variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl PromptContext {
    /// A prompt at a time, without variables.
    pub fn at(now: u64) -> Self {
        Self { now, variables: BTreeMap::new() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template. `tokens` are the special tokens that it knows by the names of their
    /// roles, `bos_token` and the like.
    pub fn new<'a>(
        source: &str,
        tokens: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(TemplateError::Invalid)?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_filter("tojson", functions::to_json);
        // Templates add these to strings even where the model has none.
        for role in ["bos_token", "eos_token"] {
            environment.add_global(role, "");
        }
        for (role, token) in tokens {
            environment.add_global(role.to_owned(), token.to_owned());
        }
        // Hugging Face passes these even when there are none; templates ask whether they are none.
        environment.add_global("tools", ());
        environment.add_global("documents", ());
        let source = source::without_generation_marks(source);
        environment.add_template_owned(NAME, source).map_err(TemplateError::Invalid)?;
        Ok(Self { environment })
    }

    /// The template in a GGUF file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TemplateError> {
        source::from_gguf(file)
    }

    /// The template in a model's folder as on the Hugging Face hub.
    pub fn from_hf_dir(folder: &Path) -> Result<Self, TemplateError> {
        source::from_hf_dir(folder)
    }

    /// The prompt for a conversation, up to where the assistant's answer begins.
    pub fn render(&self, messages: &[Message], about: &PromptContext) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(TemplateError::Invalid)?;
        let now = about.now;
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            strftime_now => Value::from_function(move |format: &str| functions::strftime(now, format)),
            ..Value::from(Serde(&about.variables))
        };
        template.render(context).map_err(|error| match refusal(&error) {
            Some(Refusal(message)) => TemplateError::Refused(message.clone()),
            None if error.kind() == ErrorKind::OutOfFuel => TemplateError::TooLong,
            None => TemplateError::Invalid(error),
        })
    }
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

/// The refusal behind an error, however deep it was raised (in a macro, say).
fn refusal(error: &Error) -> Option<&Refusal> {
    std::iter::successors(error.source(), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// An error with what caused it.
fn describe(error: &Error) -> String {
    std::iter::successors(error.source(), |&error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
