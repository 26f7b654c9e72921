//! Answers that obey: JSON, a schema, a grammar, a regular expression, well-formed calls.
//!
//! A request's demands become one grammar ([`Grammars::compile`], while its prompt is made), and each
//! of its choices follows it ([`Progress`]): for the next token there is a mask of those that the
//! grammar allows, computed on threads of its own while the device computes the logits. llguidance
//! does the work: an Earley parser over the bytes of tokens, whose lexer is built as it is needed.
//!
//! What a client insists on and can't be enforced is an error; what it doesn't insist on is enforced as
//! far as it can be, and the rest noted. [`schema`] is about JSON schemas, [`source`] writes the
//! grammars.

mod disjoint;
mod formats;
mod keywords;
mod narrow;
mod patterns;
mod progress;
mod reasons;
mod schema;
mod simplify;
mod source;
mod tree;
mod values;
mod vocabulary;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::GenerationRequest;
use emberline_protocol::relaxed::Relaxed;
use emberline_protocol::tools::ToolFormat;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use rayon::{ThreadPool, ThreadPoolBuilder};
use toktrie::InferenceCapabilities;
pub use toktrie::SimpleVob as TokenSet;

use self::schema::Schema;
use self::simplify::{Trials, simplify};
use self::source::{Body, Source};
use crate::tokenizer::ModelTokenizer;
pub use progress::{Mask, Progress, Stuck};

/// Stack of the thread that compiles a grammar, and of those that compute masks: llguidance recurses
/// as deep as schemas and expressions are nested. Nothing is used of it until it is needed.
const COMPILER_STACK: usize = 256 << 20;
const MASK_STACK: usize = 32 << 20;
/// Tries at most, with a request's schemas, to find what can't be compiled; a try takes some
/// milliseconds.
const MOST_TRIALS: usize = 150;

/// No grammar can be made for a model's tokens.
#[derive(Debug, thiserror::Error)]
#[error("grammars can't be made for its tokens: {0}")]
pub struct GrammarsError(String);

/// Makes grammars for one model.
pub struct Grammars {
    factory: ParserFactory,
    masks: Arc<ThreadPool>,
}

/// What a request asks of its answers.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// What every answer follows; `None` if they may be anything.
    pub grammar: Option<Grammar>,
    /// What is not enforced.
    pub relaxed: Relaxed,
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
        let mut factory = factory.map_err(|error| GrammarsError(reasons::of_grammar(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let masks = ThreadPoolBuilder::new()
            .thread_name(|number| format!("masks-{number}"))
            .stack_size(MASK_STACK)
            .build()
            .map_err(|error| GrammarsError(error.to_string()))?;
        Ok(Self { factory, masks: Arc::new(masks) })
    }

    /// The grammar that a request's answers follow. Calls are written as `format` says. What the
    /// client insists on and can't be enforced is refused, by name.
    pub fn compile(&self, request: &GenerationRequest, format: ToolFormat) -> Result<Compiled, ApiError> {
        let Some(source) = source::of(request, format)? else { return Ok(Compiled::default()) };
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILER_STACK);
        thread::scope(|scope| {
            // A worker without room for the thread must not come to another grammar than others do.
            let thread = thread.spawn_scoped(scope, || self.compile_here(source)).map_err(|error| {
                tracing::error!(%error, "no thread could be started to compile a grammar; give the worker more room");
                no_compiler()
            })?;
            thread.join().unwrap_or_else(|_| Err(no_compiler()))
        })
    }

    /// Compiles on this thread, whose stack must be large.
    fn compile_here(&self, mut source: Source<'_>) -> Result<Compiled, ApiError> {
        let matcher = match self.build(source.lark()) {
            Ok(matcher) => matcher,
            Err(_) => self.build_less(&mut source)?,
        };
        let grammar = Grammar { matcher: Arc::new(matcher), masks: Arc::clone(&self.masks) };
        Ok(Compiled { grammar: Some(grammar), relaxed: source.relaxed })
    }

    /// Compiles as much as can be of what can't be compiled as it is.
    fn build_less(&self, source: &mut Source<'_>) -> Result<Matcher, ApiError> {
        let mut compiles = |schema: &Schema| self.build(format!("start: {}", schema.to_lark())).is_ok();
        let mut trials = Trials::new(MOST_TRIALS, &mut compiles);
        let mut relaxed = Relaxed::default();
        for part in source.parts_mut() {
            let Err(error) = self.build(part.alone()) else { continue };
            let anything = part.anything();
            match &mut part.body {
                Body::Schema(schema) if !part.strict => {
                    relaxed.extend(&simplify(schema, &part.path, anything, &mut trials));
                }
                body => return Err(refuse(&part.path, &reason(body, &error))),
            }
        }
        source.relaxed.extend(&relaxed);
        // Each part can be compiled now, and all of them together may still be too much.
        let mut given_up = 1;
        loop {
            let error = match self.build(source.lark()) {
                Ok(matcher) => return Ok(matcher),
                Err(error) => error,
            };
            if !source.give_up(given_up) {
                return Err(refuse(source.path(), &reasons::of_schema(&error)));
            }
            given_up *= 2;
        }
    }

    /// Compiles a grammar, or says in llguidance's words why it can't be done.
    fn build(&self, lark: String) -> Result<Matcher, String> {
        let compile = || {
            let parser = self.factory.create_parser(TopLevelGrammar::from_lark(lark));
            let mut matcher = Matcher::new(parser);
            if let Some(error) = matcher.get_error() {
                return Err(error);
            }
            // What is said here is not enforced.
            if let Some(warning) = matcher.grammar_warnings().first() {
                return Err(warning.clone());
            }
            match matcher.compute_mask() {
                Ok(_) => Ok(matcher),
                Err(_) => Err(reasons::NOTHING.to_owned()),
            }
        };
        // The factory keeps nothing of a grammar that it could not compile.
        panic::catch_unwind(AssertUnwindSafe(compile))
            .unwrap_or_else(|_| Err("it could not be compiled".to_owned()))
    }
}

fn no_compiler() -> ApiError {
    ApiError::new(ErrorCode::InternalError, "What the answer has to obey could not be prepared. Try again.")
}

fn refuse(path: &str, reason: &str) -> ApiError {
    let message = format!("'{path}' can't be enforced: {reason}. Change it.");
    ApiError::field(ErrorCode::InvalidValue, path, message)
}

/// Why a part of a request can't be enforced, given what llguidance says.
fn reason(body: &Body, error: &str) -> String {
    match body {
        Body::Schema(_) => reasons::of_schema(error),
        Body::Grammar(_) => reasons::of_grammar(error),
        Body::Regex(regex) => match patterns::check_whole(regex) {
            Err(reason) => reason,
            Ok(()) => reasons::of_regex(error),
        },
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
        for &token in tokens {
            // A mask gives the lexer what it may take for a token, as it did when this one was written.
            let step = matcher.compute_mask().and_then(|_| matcher.consume_token(token));
            step.map_err(|error| Stuck::new(&error.to_string()))?;
        }
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

#[cfg(test)]
#[path = "constraint_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "corpus_tests.rs"]
mod corpus_tests;
