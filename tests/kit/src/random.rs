//! Random choices that can be repeated, and durations from the environment.

use anyhow::{Context as _, Result};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Gives the seed of a run that is to be repeated.
const VARIABLE: &str = "EMBERLINE_TEST_SEED";

/// A random number generator; its seed is printed, and a failing test shows it.
pub fn generator() -> Result<StdRng> {
    let seed = match std::env::var(VARIABLE) {
        Ok(seed) => seed.parse().with_context(|| format!("{VARIABLE} must be a number, not '{seed}'"))?,
        Err(_) => rand::random::<u64>(),
    };
    println!("{VARIABLE}={seed} makes the same choices again");
    Ok(StdRng::seed_from_u64(seed))
}

/// Seconds from a variable of the environment, such as CHAOS_SECONDS.
pub fn seconds(variable: &str, default: u64) -> Result<std::time::Duration> {
    let seconds = match std::env::var(variable) {
        Ok(seconds) => {
            seconds.parse().with_context(|| format!("{variable} must be seconds, not '{seconds}'"))?
        }
        Err(_) => default,
    };
    Ok(std::time::Duration::from_secs(seconds))
}
