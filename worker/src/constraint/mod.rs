//! Answers that obey: JSON, a schema, a grammar, a regular expression, well-formed calls.
//!
//! A request's demands become one grammar ([`Grammars::compile`], while its prompt is made), and each
//! of its choices follows it ([`Progress`]): for the next token there is a mask of those that the
//! grammar allows, computed on threads of its own while the device computes the logits. llguidance
//! does the work: an Earley parser over the bytes of tokens, whose lexer is built as it is needed.
//!
//! [`schema`] says which JSON schemas can be enforced, [`source`] writes the grammars.

mod dates;
mod disjoint;
mod progress;
mod schema;
mod source;
mod vocabulary;

use std::fmt;
use std::sync::Arc;
use std::thread;

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::job::GenerationRequest;
use emberline_shared::tools::ToolFormat;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use rayon::{ThreadPool, ThreadPoolBuilder};
use toktrie::InferenceCapabilities;

pub use progress::{Mask, Progress, Stuck};
pub use toktrie::SimpleVob as TokenSet;

use crate::tokenizer::ModelTokenizer;

/// Stack of the thread that compiles a grammar, and of those that compute masks: llguidance recurses
/// as deep as schemas and expressions are nested. Nothing is used of it until it is needed.
const COMPILER_STACK: usize = 256 << 20;
const MASK_STACK: usize = 32 << 20;
/// Longest reason that a client is told.
const LONGEST_REASON: usize = 400;

/// No grammar can be made for a model's tokens.
#[derive(Debug, thiserror::Error)]
#[error("grammars can't be made for its tokens: {0}")]
pub struct GrammarsError(String);

/// Makes grammars for one model.
pub struct Grammars {
    factory: ParserFactory,
    masks: Arc<ThreadPool>,
}

/// A request's demands on its answers.
#[derive(Clone)]
pub struct Grammar {
    /// As it is before the first token.
    matcher: Arc<Matcher>,
    masks: Arc<ThreadPool>,
}

impl Grammars {
    /// Prepares for a model's tokens.
    pub fn new(tokenizer: &ModelTokenizer) -> Result<Self, GrammarsError> {
        let slices = SlicedBiasComputer::general_slices();
        let factory =
            ParserFactory::new(&vocabulary::of(tokenizer), InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| GrammarsError(reason(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let masks = ThreadPoolBuilder::new()
            .thread_name(|number| format!("masks-{number}"))
            .stack_size(MASK_STACK)
            .build()
            .map_err(|error| GrammarsError(error.to_string()))?;
        Ok(Self { factory, masks: Arc::new(masks) })
    }

    /// The grammar that a request's answers follow; `None` if they may be anything. Calls are written
    /// as `format` says. What can't be enforced is refused, by name.
    pub fn compile(
        &self,
        request: &GenerationRequest,
        format: ToolFormat,
    ) -> Result<Option<Grammar>, ApiError> {
        let Some(source) = source::of(request, format)? else { return Ok(None) };
        let matcher = self.build(source.lark).map_err(|reason| self.blame(source.parts, &reason))?;
        Ok(Some(Grammar { matcher: Arc::new(matcher), masks: Arc::clone(&self.masks) }))
    }

    /// Names the part of a request that can't be compiled.
    fn blame(&self, parts: Vec<(String, String)>, whole: &str) -> ApiError {
        let only = match &parts[..] {
            [(path, _)] => Some((path.clone(), whole.to_owned())),
            _ => None,
        };
        let first = || parts.into_iter().find_map(|(path, lark)| Some((path, self.build(lark).err()?)));
        let (path, reason) = only.or_else(first).unwrap_or_else(|| ("tools".to_owned(), whole.to_owned()));
        let message = format!("'{path}' can't be enforced: {reason}. Change it.");
        ApiError::field(ErrorCode::InvalidValue, path, message)
    }

    /// Compiles a grammar, on a thread with a stack of its own; or says why it can't be done.
    fn build(&self, lark: String) -> Result<Matcher, String> {
        let compile = || {
            let parser = self.factory.create_parser(TopLevelGrammar::from_lark(lark));
            let mut matcher = Matcher::new(parser);
            if let Some(error) = matcher.get_error() {
                return Err(reason(&error));
            }
            // What is said here is not enforced.
            if let Some(warning) = matcher.grammar_warnings().first() {
                return Err(reason(warning));
            }
            match matcher.compute_mask() {
                Ok(_) => Ok(matcher),
                Err(_) => Err("nothing can fulfil it".to_owned()),
            }
        };
        let failed = || "it could not be compiled".to_owned();
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILER_STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|_| failed())?;
            thread.join().map_err(|_| failed())?
        })
    }
}

impl Grammar {
    /// At the beginning of an answer.
    pub fn begin(&self) -> Progress {
        Progress::new(self.matcher.deep_clone(), &self.masks)
    }

    /// After `tokens` of an answer that someone else began.
    pub fn resume(&self, tokens: &[u32]) -> Result<Progress, Stuck> {
        let mut matcher = self.matcher.deep_clone();
        matcher.consume_tokens(tokens).map_err(|error| Stuck::new(&error.to_string()))?;
        Ok(Progress::new(matcher, &self.masks))
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// What a grammar may take: some 30 ms to compile, less than 20 ms a token, and 50 MB of the lexer's
/// states at the very worst. Schemas in use stay far below all of it.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 25_000, verbose_errors: false, ..ParserLimits::default() }
}

/// What llguidance says, as one line.
fn reason(error: &str) -> String {
    // After it come backtraces and states, which are nobody's business.
    let end = ["\n<", "panic:"].iter().filter_map(|mark| error.find(mark)).min().unwrap_or(error.len());
    let line = error.get(..end).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches('.');
    match line.char_indices().nth(LONGEST_REASON) {
        _ if line.is_empty() => "it is too complex".to_owned(),
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
#[path = "constraint_tests.rs"]
mod tests;
