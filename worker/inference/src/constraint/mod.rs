//! Constrained answers: JSON, a schema, a grammar, a regular expression, well-formed tool calls.
//!
//! A request's constraints are compiled into one grammar ([`GrammarCompiler::compile`], while its prompt
//! is prepared), and each of its choices follows the grammar ([`Progress`]): a mask of allowed tokens is
//! computed on other threads while the device computes the logits. llguidance does the work: an Earley
//! parser over the bytes of tokens, whose lexer is built as it is needed.
//!
//! What a client insists on and can't be enforced is an error; anything else is enforced as far as
//! possible and the rest reported. [`schema`] handles JSON schemas, [`source`] writes the grammars.

mod disjoint;
mod drafts;
mod formats;
mod keywords;
mod narrow;
mod patterns;
mod progress;
mod property_names;
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
use self::source::{GrammarSource, PartBody};
use crate::tokenizer::ModelTokenizer;
pub use progress::{Mask, Progress, Stuck};

/// Stack sizes of the thread that compiles a grammar and of those that compute masks: llguidance recurses
/// as deep as schemas and expressions are nested. Pages are only allocated when used.
const COMPILER_STACK: usize = 256 << 20;
const MASK_STACK: usize = 32 << 20;
/// Most trial compilations for a request, to find what can't be compiled; each takes some milliseconds.
const MOST_TRIALS: usize = 150;

/// A model's vocabulary can't be used for grammars.
#[derive(Debug, thiserror::Error)]
#[error("grammars can't be made for its tokens: {0}")]
pub struct GrammarCompilerError(String);

/// Compiles grammars for one model.
pub struct GrammarCompiler {
    factory: ParserFactory,
    masks: Arc<ThreadPool>,
}

/// A request's compiled constraints.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// The grammar that every answer follows; `None` if answers are free.
    pub grammar: Option<Grammar>,
    /// What is not enforced.
    pub relaxed: Relaxed,
}

/// A grammar that a request's answers follow.
#[derive(Clone)]
pub struct Grammar {
    /// The state before the first token.
    matcher: Arc<Matcher>,
    masks: Arc<ThreadPool>,
}

impl GrammarCompiler {
    /// Prepares for a model's tokens.
    pub fn new(tokenizer: &ModelTokenizer) -> Result<Self, GrammarCompilerError> {
        let slices = SlicedBiasComputer::general_slices();
        let factory =
            ParserFactory::new(&vocabulary::of(tokenizer), InferenceCapabilities::default(), &slices);
        let mut factory =
            factory.map_err(|error| GrammarCompilerError(reasons::of_grammar(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let masks = ThreadPoolBuilder::new()
            .thread_name(|number| format!("masks-{number}"))
            .stack_size(MASK_STACK)
            .build()
            .map_err(|error| GrammarCompilerError(error.to_string()))?;
        Ok(Self { factory, masks: Arc::new(masks) })
    }

    /// Compiles a request's constraints; `format` is how calls are written. What the client insists on and
    /// can't be enforced is refused by its name.
    pub fn compile(&self, request: &GenerationRequest, format: ToolFormat) -> Result<Compiled, ApiError> {
        let Some(source) = source::of(request, format)? else { return Ok(Compiled::default()) };
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILER_STACK);
        thread::scope(|scope| {
            // A worker without memory for the thread must fail, not compile another grammar than other workers.
            let thread = thread.spawn_scoped(scope, || self.compile_here(source)).map_err(|error| {
                tracing::error!(%error, "can't start a thread to compile a grammar; give the worker more memory");
                no_compiler()
            })?;
            thread.join().unwrap_or_else(|_| Err(no_compiler()))
        })
    }

    /// Compiles on this thread, whose stack must be large.
    fn compile_here(&self, mut source: GrammarSource<'_>) -> Result<Compiled, ApiError> {
        let matcher = match self.build(source.lark()) {
            Ok(matcher) => matcher,
            Err(_) => self.build_less(&mut source)?,
        };
        let grammar = Grammar { matcher: Arc::new(matcher), masks: Arc::clone(&self.masks) };
        Ok(Compiled { grammar: Some(grammar), relaxed: source.relaxed })
    }

    /// Compiles as much as possible of constraints that can't be compiled as they are.
    fn build_less(&self, source: &mut GrammarSource<'_>) -> Result<Matcher, ApiError> {
        let mut compiles = |schema: &Schema| self.build(format!("start: {}", schema.to_lark())).is_ok();
        let mut trials = Trials::new(MOST_TRIALS, &mut compiles);
        let mut relaxed = Relaxed::default();
        for part in source.parts_mut() {
            let Err(error) = self.build(part.alone()) else { continue };
            let anything = part.anything();
            match &mut part.body {
                PartBody::Schema(schema) if !part.strict => {
                    relaxed.extend(&simplify(schema, &part.path, anything, &mut trials));
                }
                body => return Err(refuse(&part.path, &reason(body, &error))),
            }
        }
        source.relaxed.extend(&relaxed);
        // Each part can be compiled now, but all of them together may still be too large.
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

    /// Compiles a grammar; the error is in llguidance's words.
    fn build(&self, lark: String) -> Result<Matcher, String> {
        let compile = || {
            let parser = self.factory.create_parser(TopLevelGrammar::from_lark(lark));
            let mut matcher = Matcher::new(parser);
            if let Some(error) = matcher.get_error() {
                return Err(error);
            }
            // What llguidance warns of is not enforced.
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
fn reason(body: &PartBody, error: &str) -> String {
    match body {
        PartBody::Schema(_) => reasons::of_schema(error),
        PartBody::Grammar(_) => reasons::of_grammar(error),
        PartBody::Regex(regex) => match patterns::check_whole(regex) {
            Err(reason) => reason,
            Ok(()) => reasons::of_regex(error),
        },
    }
}

impl Grammar {
    /// The state before an answer's first token.
    pub fn begin(&self) -> Progress {
        Progress::new(self.matcher.deep_clone(), &self.masks)
    }

    /// The state after the `tokens` that another worker generated.
    pub fn resume(&self, tokens: &[u32]) -> Result<Progress, Stuck> {
        let mut matcher = self.matcher.deep_clone();
        for &token in tokens {
            // Computing a mask gives the lexer one token's budget, as when the token was generated.
            let step = matcher.compute_mask().and_then(|_| matcher.consume_token(token));
            step.map_err(|error| Stuck::new(&error.to_string()))?;
        }
        Ok(Progress::new(matcher, &self.masks))
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// Limits of a grammar: some 30 ms to compile, less than 20 ms a token, and 50 MB of lexer states in the
/// worst case. Schemas in practice stay far below.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 25_000, verbose_errors: false, ..ParserLimits::default() }
}

#[cfg(test)]
#[path = "constraint_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "walk_tests.rs"]
mod walk_tests;

#[cfg(test)]
#[path = "corpus_tests.rs"]
mod corpus_tests;
