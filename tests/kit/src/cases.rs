//! Several tests that share one stack, because none disturbs another: each is a case with the name of its
//! function, and what fails is listed by name.
//!
//! EMBERLINE_TEST_CASE=word runs the cases whose names contain that word.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Instant;

use anyhow::{Result, ensure};
use futures::{FutureExt as _, StreamExt as _, stream};

/// Selects cases by a part of their names.
const VARIABLE: &str = "EMBERLINE_TEST_CASE";

/// One of several tests of a stack.
pub struct Case<'a> {
    name: &'static str,
    test: Pin<Box<dyn Future<Output = Result<()>> + 'a>>,
}

impl<'a> Case<'a> {
    /// A case that passes if `test` does.
    pub fn new(name: &'static str, test: impl Future<Output = Result<()>> + 'a) -> Self {
        Self { name, test: Box::pin(test) }
    }
}

/// A list of [`Case`]s made from async functions that take a stack: `cases![&stack; first, second]`.
#[macro_export]
macro_rules! cases {
    ($stack:expr; $($test:ident),+ $(,)?) => {
        vec![$($crate::cases::Case::new(stringify!($test), $test($stack))),+]
    };
}

/// Runs `at_once` cases at a time to their ends, prints how each went, and fails if one failed or panicked.
pub async fn run(at_once: usize, cases: Vec<Case<'_>>) -> Result<()> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    let chosen: Vec<_> = cases.into_iter().filter(|case| case.name.contains(&wanted)).collect();
    ensure!(!chosen.is_empty(), "{VARIABLE}={wanted}: there is no such case here");
    let outcomes = stream::iter(chosen).map(async |case| {
        let began = Instant::now();
        let failure = match AssertUnwindSafe(case.test).catch_unwind().await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:?}")),
            Err(panic) => Some(message(&*panic).to_owned()),
        };
        let word = if failure.is_some() { "FAILED" } else { "passed" };
        println!("{word} {} ({:.2} s)", case.name, began.elapsed().as_secs_f64());
        failure.map(|failure| format!("case {}: {failure}", case.name))
    });
    let failures: Vec<String> =
        outcomes.buffer_unordered(at_once).filter_map(async |failure| failure).collect().await;
    ensure!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn every_failure_is_named_and_the_rest_still_runs() {
        let ran = std::cell::Cell::new(false);
        let cases = vec![
            Case::new("fails", async { bail!("because of this") }),
            Case::new("panics", async { panic!("because of {}", "that") }),
            Case::new("passes", async {
                ran.set(true);
                Ok(())
            }),
        ];
        let failed = run(1, cases).await.unwrap_err().to_string();
        assert!(failed.contains("case fails: because of this"), "{failed}");
        assert!(failed.contains("case panics: because of that"), "{failed}");
        assert!(!failed.contains("passes") && ran.get());
    }
}
