//! How a token is sampled on the device.

/// How the token of one row of logits is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before the softmax. With 0 the token with the largest logit is taken
    /// (greedy decoding), the lowest id if several have it.
    pub temperature: f32,
    /// Number of most probable tokens to keep; 0 keeps all.
    pub top_k: u32,
    /// Cumulative probability that the most probable tokens must reach to be kept (nucleus
    /// sampling); 1 keeps all.
    pub top_p: f32,
    /// Tokens less probable than `min_p` times the most probable one are dropped; 0 keeps all.
    pub min_p: f32,
    /// The uniform random number in [0, 1) that the token is drawn with.
    pub random: f32,
}

/// What a step's samples need besides the largest logits.
#[cfg(feature = "gpu")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SamplingStages {
    /// Whether a token is drawn, and not the most probable one taken.
    pub(crate) draw: bool,
    pub(crate) top_k: bool,
    pub(crate) top_p: bool,
}

#[cfg(feature = "gpu")]
impl SamplingStages {
    /// The stages that at least one of `params` needs, with rows of `vocabulary` logits.
    pub(crate) fn of<'a>(params: impl IntoIterator<Item = &'a SamplingParams>, vocabulary: usize) -> Self {
        let drawn = params.into_iter().filter(|params| params.temperature > 0.0);
        drawn.fold(Self::default(), |stages, params| Self {
            draw: true,
            top_k: stages.top_k || (1..vocabulary).contains(&(params.top_k as usize)),
            top_p: stages.top_p || params.top_p < 1.0,
        })
    }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use super::*;

    #[test]
    fn a_step_needs_the_stages_of_its_samples() {
        let greedy = SamplingParams { temperature: 0.0, top_k: 5, top_p: 0.5, min_p: 0.1, random: 0.5 };
        let plain = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, ..greedy };
        let top_k = SamplingParams { top_k: 99, ..plain };
        let top_p = SamplingParams { top_p: 0.9, ..plain };
        let stages = |params: &[SamplingParams]| {
            let SamplingStages { draw, top_k, top_p } = SamplingStages::of(params, 100);
            [draw, top_k, top_p]
        };
        assert_eq!(stages(&[]), [false, false, false]);
        assert_eq!(stages(&[greedy, greedy]), [false, false, false]);
        assert_eq!(stages(&[greedy, plain]), [true, false, false]);
        assert_eq!(stages(&[top_k, greedy]), [true, true, false]);
        assert_eq!(stages(&[top_p, plain]), [true, false, true]);
        assert_eq!(stages(&[top_p, plain, top_k]), [true, true, true]);
        // All are kept.
        assert_eq!(stages(&[SamplingParams { top_k: 100, ..plain }]), [true, false, false]);
    }
}
