//! Draws a token from adjusted logits: `min_p`, `top_k`, `top_p` and the draw itself.
//!
//! A vocabulary has some 100,000 tokens, and every token of every sequence is one draw. So each pass over
//! the vocabulary is plain arithmetic that the compiler vectorises, and only the few candidates at the
//! threshold are sorted. The order of every sum is fixed: all machines draw the same token from the same
//! logits.

/// Candidates whose weights are summed together.
const GROUP: usize = 256;
/// Bins per nat of distance from the most probable token...
const BINS_PER_NAT: f32 = 8.0;
/// ...up to where weights are 0.
const BINS: usize = 720;
/// e to the minus this is the smallest normal number.
const LARGEST_GAP: f32 = 87.0;

/// The largest logit and its id; of equal ones the lowest id.
pub(super) fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let (groups, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for group in groups {
        for (lane, &logit) in lanes.iter_mut().zip(group) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let larger = |max: f32, &logit: &f32| if logit > max { logit } else { max };
    let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, larger);
    if max == f32::NEG_INFINITY {
        return None;
    }
    (0..).zip(logits).find(|(_, logit)| **logit == max).map(|(id, _)| (id, max))
}

/// The tokens that may be drawn, by id.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Distance of each from the most probable one, in nats; not negative, may be infinite.
    gaps: Vec<f32>,
    /// Probability relative to the most probable token's; 0 for dropped ones.
    weights: Vec<f32>,
}

impl Candidates {
    /// `max` is the largest of `logits`; `temperature` is above 0.
    pub(super) fn new(logits: &[f32], max: f32, temperature: f32) -> Self {
        let gap = |&logit: &f32| {
            let gap = (max - logit) / temperature;
            // NaN: the logit is NaN, or both are infinite.
            if gap >= 0.0 { gap } else { f32::INFINITY }
        };
        let mut gaps: Vec<f32> = logits.iter().map(gap).collect();
        if max.is_infinite() || temperature.is_infinite() {
            let infinitely = |logit: f32| {
                let stays = if max.is_infinite() { logit == max } else { logit > f32::NEG_INFINITY };
                if stays { 0.0 } else { f32::INFINITY }
            };
            gaps.iter_mut().zip(logits).for_each(|(gap, logit)| *gap = infinitely(*logit));
        }
        let weights = gaps.iter().map(|gap| exp_minus(*gap)).collect();
        Self { gaps, weights }
    }

    /// Drops tokens with less than `min_p` of the most probable token's probability.
    pub(super) fn min_p(&mut self, min_p: f32) {
        if min_p > 0.0 {
            let keep = |weight: f32| if weight < min_p { 0.0 } else { weight };
            self.weights.iter_mut().for_each(|weight| *weight = keep(*weight));
        }
    }

    /// Keeps the `top_k` most probable tokens; all for 0.
    pub(super) fn top_k(&mut self, top_k: usize) {
        if top_k > 0 && top_k < self.weights.len() {
            self.keep_until(|count, _| count >= top_k);
        }
    }

    /// Keeps the smallest set of the most probable tokens whose share of the probability is at least `top_p`.
    pub(super) fn top_p(&mut self, top_p: f64) {
        if top_p >= 1.0 {
            return;
        }
        let wanted = top_p * self.groups().sum::<f64>();
        self.keep_until(|_, mass| mass >= wanted);
    }

    /// Keeps the fewest of the most probable tokens for which `enough(count, mass)` holds.
    fn keep_until(&mut self, enough: impl Fn(usize, f64) -> bool) {
        let mut bins = [(0_usize, 0_f64); BINS];
        for (gap, weight) in self.gaps.iter().zip(&self.weights) {
            let bin = &mut bins[bin_of(*gap)];
            bin.0 += usize::from(*weight > 0.0);
            bin.1 += f64::from(*weight);
        }
        let (mut count, mut mass) = (0, 0.0);
        for (last, bin) in bins.into_iter().enumerate() {
            if bin.0 > 0 && enough(count + bin.0, mass + bin.1) {
                return self.cut(last, count, mass, enough);
            }
            count += bin.0;
            mass += bin.1;
        }
    }

    /// Keeps everything before bin `last`, which is `count` candidates with `mass`, and as much of that bin
    /// as it takes.
    fn cut(&mut self, last: usize, count: usize, mass: f64, enough: impl Fn(usize, f64) -> bool) {
        let (mut count, mut mass) = (count, mass);
        let mut between: Vec<(f32, usize)> = Vec::new();
        for (id, (gap, weight)) in self.gaps.iter().zip(&mut self.weights).enumerate() {
            let bin = bin_of(*gap);
            if bin == last && *weight > 0.0 {
                between.push((*gap, id));
            } else if bin > last {
                *weight = 0.0;
            }
        }
        between.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut full = false;
        for (_, id) in between {
            let Some(weight) = self.weights.get_mut(id) else { continue };
            if full {
                *weight = 0.0;
            } else {
                (count, mass) = (count + 1, mass + f64::from(*weight));
                full = enough(count, mass);
            }
        }
    }

    /// Draws a candidate with `random` in [0, 1); `None` if rounding puts it behind the last.
    pub(super) fn draw(&self, random: f64) -> Option<u32> {
        let target = random * self.groups().sum::<f64>();
        let mut mass = 0.0;
        let mut first = 0;
        for group in self.groups() {
            if target < mass + group {
                break;
            }
            mass += group;
            first += GROUP;
        }
        let rest = self.weights.get(first..)?;
        let reached = rest.iter().position(|weight| {
            mass += f64::from(*weight);
            target < mass
        })?;
        u32::try_from(first + reached).ok()
    }

    /// The sum of each [`GROUP`] of weights.
    fn groups(&self) -> impl Iterator<Item = f64> {
        self.weights.chunks(GROUP).map(|group| {
            let mut lanes = [0.0; 16];
            let (chunks, rest) = group.as_chunks::<16>();
            for chunk in chunks {
                for (lane, weight) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(*weight);
                }
            }
            lanes.into_iter().chain(rest.iter().map(|weight| f64::from(*weight))).sum()
        })
    }
}

/// Smaller gaps are in earlier bins.
fn bin_of(gap: f32) -> usize {
    // A cast saturates.
    ((gap * BINS_PER_NAT) as usize).min(BINS - 1)
}

/// e to the minus `gap`, which is not negative; with a relative error below 2e-7.
///
/// Without branches and calls, so that it is vectorised: 2^n · e^r for the whole number n next to
/// gap / -ln 2.
fn exp_minus(gap: f32) -> f32 {
    // Adding it rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: products of the first with small whole numbers are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = -gap.min(LARGEST_GAP);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's series to the seventh power: exact enough for |r| up to ln 2 / 2.
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let scaled = f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23));
    if gap < LARGEST_GAP { scaled } else { 0.0 }
}

#[cfg(test)]
#[path = "distribution_tests.rs"]
mod tests;
