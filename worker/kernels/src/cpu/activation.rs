//! The activations of gated feed-forward layers.

use super::simd::{Kernel, LANES, Simd, exp};
use crate::types::Activation;

/// `activation(gate) * up`.
#[inline(always)]
pub(crate) fn gate<S: Simd>(s: S, activation: Activation, gate: S::Floats, up: S::Floats) -> S::Floats {
    let one = s.splat(1.0);
    let activated = match activation {
        Activation::Silu => s.div(gate, s.add(one, exp(s, s.sub(s.zero(), gate)))),
        // 0.5 (1 + tanh(u)) is the logistic function of 2u.
        Activation::GeluTanh => {
            let cubic = s.fma(s.mul(s.mul(gate, gate), gate), s.splat(0.044_715), gate);
            let twice = s.mul(cubic, s.splat(-2.0 * 0.797_884_6)); // 2 sqrt(2/π)
            s.div(gate, s.add(one, exp(s, twice)))
        }
    };
    s.mul(activated, up)
}

/// [`gate`] of slices; the result replaces `gate`.
pub(crate) struct Gate<'a> {
    pub(crate) activation: Activation,
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { activation, gate: gates, up: ups } = self;
        let (gates, last_gates) = gates.as_chunks_mut::<LANES>();
        let (ups, last_ups) = ups.as_chunks::<LANES>();
        for (g, u) in gates.iter_mut().zip(ups) {
            let product = gate(s, activation, s.load(g), s.load(u));
            s.store(g, product);
        }
        let (mut g, mut u) = ([0.0; LANES], [0.0; LANES]);
        g[..last_gates.len()].copy_from_slice(last_gates);
        u[..last_ups.len()].copy_from_slice(last_ups);
        let product = gate(s, activation, s.load(&g), s.load(&u));
        s.store(&mut g, product);
        last_gates.copy_from_slice(&g[..last_gates.len()]);
    }
}
