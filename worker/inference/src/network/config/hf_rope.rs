//! The rotary settings of a `config.json`, in the ways in which they have been written.

use serde::Deserialize;

use crate::network::rotary::{Rotary, Scaling, yarn_magnitude};

/// `rope_parameters`, or `rope_scaling` in older files.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RopeSettings {
    rope_type: Option<String>,
    /// What `rope_type` was called before.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    /// Of the layers that see everything, where layers differ.
    pub(super) full_attention: Option<Box<RopeSettings>>,
    /// Of the layers with a window, where layers differ.
    pub(super) sliding_attention: Option<Box<RopeSettings>>,
}

/// What stands beside the rotary settings, or is used where they say nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    pub(super) theta: f64,
    pub(super) partial: f64,
    pub(super) head_dim: usize,
    pub(super) context_length: usize,
    pub(super) original: Option<f64>,
}

/// A setting that is wrong: its key, what is found and what is wanted.
pub(super) type Wrong = (&'static str, String, &'static str);

impl RopeSettings {
    /// Unchanged frequencies.
    pub(super) fn plain(theta: f64) -> Self {
        Self { rope_theta: Some(theta), ..Self::default() }
    }

    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }

    fn original(&self, around: Surroundings) -> f64 {
        let original = self.original_max_position_embeddings.or(around.original);
        original.unwrap_or(around.context_length as f64)
    }

    /// The context that these settings are meant for, where they say so.
    pub(super) fn context_length(&self, around: Surroundings) -> Option<usize> {
        let factor = self.factor.filter(|_| self.kind() == "yarn")?;
        Some((self.original(around) * factor) as usize)
    }

    pub(super) fn rotary(&self, around: Surroundings) -> Result<Rotary, Wrong> {
        let base = self.rope_theta.unwrap_or(around.theta);
        let share = self.partial_rotary_factor.unwrap_or(around.partial);
        let dim = (around.head_dim as f64 * share) as usize;
        let original = self.original(around);
        let stretch = around.context_length as f64 / original;
        let needed = |value: Option<f64>, key| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            found => Err((key, format!("{found:?}"), "a number above 0")),
        };
        let scaling = match self.kind() {
            "default" | "none" => Scaling::None,
            "linear" => Scaling::Linear { factor: needed(self.factor, "rope_parameters.factor")? },
            "llama3" => Scaling::Llama3 {
                factor: needed(self.factor, "rope_parameters.factor")?,
                low: needed(self.low_freq_factor, "rope_parameters.low_freq_factor")?,
                high: needed(self.high_freq_factor, "rope_parameters.high_freq_factor")?,
                original,
            },
            "yarn" => {
                let factor = self.factor.unwrap_or(stretch);
                Scaling::Yarn {
                    factor,
                    fast: self.beta_fast.unwrap_or(32.0),
                    slow: self.beta_slow.unwrap_or(1.0),
                    original,
                    truncate: self.truncate.unwrap_or(true),
                    magnitude: self.attention_factor.unwrap_or_else(|| self.yarn_magnitude(factor)),
                }
            }
            "longrope" | "su" => {
                let factors = |key, found: &'_ Option<Vec<f64>>| match found.as_deref().unwrap_or_default() {
                    found if found.len() == dim / 2 => Ok(()),
                    found => Err((key, format!("{} numbers", found.len()), "one for each rotated pair")),
                };
                factors("rope_parameters.short_factor", &self.short_factor)?;
                factors("rope_parameters.long_factor", &self.long_factor)?;
                let factor = self.factor.unwrap_or(stretch);
                let louder = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                Scaling::Long {
                    short: self.short_factor.as_deref().unwrap_or_default(),
                    long: self.long_factor.as_deref().unwrap_or_default(),
                    beyond: original as usize,
                    magnitude: self.attention_factor.unwrap_or(louder),
                }
            }
            other => {
                let wanted = "default, linear, llama3, yarn or longrope";
                return Err(("rope_parameters.rope_type", format!("{other:?}"), wanted));
            }
        };
        Ok(Rotary::new(base, dim, scaling))
    }

    fn yarn_magnitude(&self, factor: f64) -> f64 {
        match (self.mscale, self.mscale_all_dim) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                yarn_magnitude(factor, one) / yarn_magnitude(factor, all)
            }
            _ => yarn_magnitude(factor, 1.0),
        }
    }
}
