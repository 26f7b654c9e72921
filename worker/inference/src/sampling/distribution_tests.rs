use proptest::prelude::*;

use super::*;

#[test]
fn the_largest_is_found_wherever_it_is() {
    for length in [1, 15, 16, 17, 40] {
        for place in 0..length {
            let mut logits = vec![-2.0; length];
            logits[place] = -1.0;
            assert_eq!(argmax(&logits), Some((place as u32, -1.0)), "{place} of {length}");
        }
    }
    assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
    assert_eq!(argmax(&[f32::NAN, 2.0, 2.0]), Some((1, 2.0)));
}

#[test]
fn the_exponential_is_right_to_the_last_bits() {
    for step in 0..900_000 {
        let gap = step as f32 * 1e-4;
        let (got, exact) = (f64::from(exp_minus(gap)), f64::from(-gap).exp());
        if gap < LARGEST_GAP {
            assert!((got / exact - 1.0).abs() < 2e-7, "{gap}: {got} is not {exact}");
        } else {
            assert_eq!(got, 0.0, "{gap}");
        }
    }
    assert_eq!((exp_minus(0.0), exp_minus(f32::INFINITY)), (1.0, 0.0));
}

fn kept(candidates: &Candidates) -> Vec<usize> {
    (0..candidates.weights.len()).filter(|id| candidates.weights[*id] > 0.0).collect()
}

/// 5,000 candidates, the odd ones twice as probable as the even ones.
fn two_kinds() -> Candidates {
    let logits: Vec<f32> = (0..5000).map(|id| if id % 2 == 0 { 0.0 } else { 2_f32.ln() }).collect();
    Candidates::new(&logits, 2_f32.ln(), 1.0)
}

#[test]
fn of_many_equals_the_lowest_ids_stay() {
    let odd = (0..2500).map(|n| 2 * n + 1);
    let mut candidates = two_kinds();
    // 5,000 + 2,500 shares, of which 0.9 are 6,750 and the last is there for rounding.
    candidates.top_p(0.9);
    let even = (0..1751).map(|n| 2 * n);
    let mut expected: Vec<usize> = odd.clone().chain(even.clone()).collect();
    expected.sort_unstable();
    let found = kept(&candidates);
    assert!(found == expected || found.len() + 1 == expected.len(), "{}", found.len());
    assert!(found.iter().all(|id| expected.contains(id)));

    let mut candidates = two_kinds();
    candidates.top_k(1700);
    assert_eq!(kept(&candidates), odd.take(1700).collect::<Vec<_>>());
}

#[test]
fn a_draw_walks_through_all_groups() {
    let candidates = two_kinds();
    for id in [0, 1, 254, 255, 256, 257, 511, 512, 4998, 4999] {
        // The middle of its part.
        let before: f64 = candidates.weights[..id].iter().map(|weight| f64::from(*weight)).sum();
        let middle = before + f64::from(candidates.weights[id]) / 2.0;
        assert_eq!(candidates.draw(middle / 3750.0), Some(id as u32));
    }
}

#[test]
fn the_last_number_draws_the_last_candidate() {
    let mut candidates = two_kinds();
    candidates.weights[4000..].fill(0.0);
    let last = candidates.draw(1.0 - f64::EPSILON / 2.0);
    assert!(matches!(last, Some(3999) | None), "{last:?}");
    candidates.weights.fill(0.0);
    assert_eq!(candidates.draw(0.3), None);
}

proptest! {
    /// What is kept is what sorting everything keeps.
    #[test]
    fn filters_equal_a_full_sort(
        logits in prop::collection::vec(prop_oneof![-30_f32..0.0, (-40..0_i32).prop_map(|n| n as f32 / 4.0)], 1..900),
        temperature in 0.05_f32..3.0,
        top_k in 0..900_usize,
        top_p in 0.0..1.1_f64,
    ) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut candidates = Candidates::new(&logits, max, temperature);
        let mut order: Vec<usize> = kept(&candidates);
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if top_k > 0 {
            order.truncate(top_k);
        }
        let weight = |id: &usize| f64::from(candidates.weights[*id]);
        let wanted = top_p * order.iter().map(weight).sum::<f64>();
        let mut mass = 0.0;
        // Where rounding may decide, either is right.
        let (mut surely, mut perhaps) = (0, order.len());
        for (index, id) in order.iter().enumerate() {
            if mass > wanted * (1.0 + 1e-9) && top_p < 1.0 {
                perhaps = index;
                break;
            }
            surely += usize::from(mass < wanted * (1.0 - 1e-9) || index == 0);
            mass += weight(id);
        }
        candidates.top_k(top_k);
        candidates.top_p(top_p);
        let kept = kept(&candidates);
        prop_assert!((surely..=perhaps).contains(&kept.len()), "{} of {}..={}", kept.len(), surely, perhaps);
        let mut expected = order[..kept.len()].to_vec();
        expected.sort_unstable();
        prop_assert_eq!(kept, expected);
    }
}
