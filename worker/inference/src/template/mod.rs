//! A model's chat template: a conversation to the prompt that the model was trained on.
//!
//! Templates are Jinja as Hugging Face's `apply_chat_template` renders it: blocks trimmed, loop
//! controls, Python's string methods and the functions that templates use (`functions`). They are
//! given what it gives them (`conversation`). Templates can do more or less: what one writes of
//! functions, names and system messages is found by trying (`capabilities`), and what it would leave
//! out is put into messages that it does write (`polyfill`).

mod capabilities;
mod continuation;
mod conversation;
mod functions;
mod polyfill;
mod source;
mod variables;

use std::collections::HashSet;
use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};

use emberline_protocol::job::{Message, Role, Tool};
use emberline_protocol::tools::ToolFormat;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Map;

use crate::checkpoint::gguf::{GgufError, GgufFile};
use crate::checkpoint::hf::HfFileError;
use capabilities::Capabilities;
pub use conversation::Conversation;
use conversation::{NoContent, TemplateMessage, described};

/// The template's name in error messages.
const NAME: &str = "chat_template";
/// Limit of a prompt's cost: about this many instructions, or 64 times as many bytes. A conversation
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
    /// The template does not write the last message as it is: the client's fault, too.
    #[error(
        "The model's chat template does not write the last message's text as it is, so that no answer can go on \
         with it. Change the message, or set 'continue_final_message' to false."
    )]
    NotContinued,
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

/// Variables that no request sets: templates are given them in any case.
const GIVEN: [&str; 4] = ["messages", "tools", "add_generation_prompt", "strftime_now"];

/// A compiled chat template, and what it can write.
#[derive(Debug)]
pub struct ChatTemplate {
    compiled: Compiled,
    capabilities: Capabilities,
    variables: HashSet<String>,
}

#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
}

/// The input of a template.
#[derive(Debug, Clone, Copy)]
struct TemplateInput<'a> {
    messages: &'a [Message],
    no_content: NoContent,
    tools: &'a [Tool],
    variables: Option<&'a Map<String, serde_json::Value>>,
    now: u64,
    add_generation_prompt: bool,
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
        environment.add_test("iterable", functions::is_iterable);
        // Templates add these to strings even where the model has none.
        for role in ["bos_token", "eos_token"] {
            environment.add_global(role, "");
        }
        for (role, token) in tokens {
            environment.add_global(role.to_owned(), token.to_owned());
        }
        // Hugging Face passes them even when there are none; templates ask whether they are none.
        environment.add_global("documents", ());
        let source = source::without_generation_marks(source);
        environment.add_template_owned(NAME, source).map_err(TemplateError::Invalid)?;
        let mut variables =
            variables::read_by(&environment.get_template(NAME).map_err(TemplateError::Invalid)?);
        let documents = variables.take("documents");
        variables.retain(|name| {
            !GIVEN.contains(&name.as_str()) && !environment.globals().any(|(global, _)| global == name)
        });
        variables.extend(documents);
        let compiled = Compiled { environment };
        let capabilities = Capabilities::find(&compiled);
        Ok(Self { compiled, capabilities, variables })
    }

    /// The template in a GGUF file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TemplateError> {
        source::from_gguf(file)
    }

    /// The template in a model's folder as on the Hugging Face hub.
    pub fn from_hf_dir(folder: &Path) -> Result<Self, TemplateError> {
        source::from_hf_dir(folder)
    }

    /// Whether a request may set this variable: the template reads it.
    pub fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// How the model writes its calls; in the way of Hermes models where the template is silent.
    pub fn tool_format(&self) -> ToolFormat {
        self.capabilities.tools.unwrap_or(ToolFormat::Hermes)
    }

    /// Whether the template itself lists functions.
    pub fn writes_tools(&self) -> bool {
        self.capabilities.tools.is_some()
    }

    /// The prompt for a conversation.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let mut messages = self.adapted(conversation);
        let space = conversation.continue_final_message.then(|| continuation::mark(&mut messages));
        let mut tools = if self.writes_tools() { conversation.offered().to_vec() } else { Vec::new() };
        if self.capabilities.needs_descriptions {
            tools.iter_mut().for_each(|tool| _ = tool.description.get_or_insert_default());
        }
        let text = self.compiled.write(&TemplateInput {
            messages: &messages,
            no_content: self.capabilities.no_content,
            tools: &tools,
            variables: Some(&conversation.variables),
            now: conversation.now,
            add_generation_prompt: conversation.add_generation_prompt,
        })?;
        match space {
            Some(space) => continuation::cut(text, &space).ok_or(TemplateError::NotContinued),
            None => Ok(text),
        }
    }

    /// The messages, changed where the template would leave something out.
    fn adapted(&self, conversation: &Conversation<'_>) -> Vec<Message> {
        let capabilities = &self.capabilities;
        let mut messages = conversation.messages.to_vec();
        let is_unnamed = |message: &&mut Message| {
            message.role != Role::Tool && !capabilities.names.contains(&message.role)
        };
        messages.iter_mut().filter(is_unnamed).for_each(polyfill::name_as_prefix);
        polyfill::name_results(&mut messages);
        if !conversation.offered().is_empty() && capabilities.tools.is_none() {
            polyfill::list_tools_in_system(&mut messages, conversation);
        }
        if !capabilities.calls {
            polyfill::calls_as_text(&mut messages);
        } else if !capabilities.parallel_calls {
            messages = polyfill::split_parallel_calls(messages);
        }
        if capabilities.tools == Some(ToolFormat::Mistral) {
            polyfill::shorten_ids(&mut messages);
        }
        if !capabilities.results {
            messages = polyfill::results_as_user_messages(messages);
        }
        if !capabilities.system {
            messages = polyfill::merge_system_into_user(messages);
        }
        messages
    }
}

impl<'a> TemplateInput<'a> {
    /// Messages and nothing else.
    fn of(messages: &'a [Message]) -> Self {
        Self {
            messages,
            no_content: NoContent::Empty,
            tools: &[],
            variables: None,
            now: 0,
            add_generation_prompt: true,
        }
    }
}

impl Compiled {
    fn write(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(TemplateError::Invalid)?;
        let now = input.now;
        let turns: Vec<TemplateMessage<'_>> =
            input.messages.iter().map(|message| TemplateMessage::new(message, input.no_content)).collect();
        let tools: Option<Vec<_>> =
            (!input.tools.is_empty()).then(|| input.tools.iter().map(described).collect());
        let context = context! {
            messages => Serde(&turns),
            tools => Serde(&tools),
            add_generation_prompt => input.add_generation_prompt,
            strftime_now => Value::from_function(move |format: &str| functions::strftime(now, format)),
            ..Value::from(Serde(&input.variables.unwrap_or(&Map::new())))
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

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tools_tests;
