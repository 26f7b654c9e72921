//! What the rows of a step cost.

/// Weight of what was seen before, in each step of about as many rows.
const KEPT: f64 = 0.9;
/// The same in each step of another size.
const AGED: f64 = 0.995;
/// A size of less weight is not known any more.
const LEAST: f64 = 0.2;
/// Until it is known, a step is taken to cost as much as this many rows, besides its rows.
const ASSUMED_FIXED: f64 = 1.5;
/// A step that took this many times as long as others of its size was interrupted.
const INTERRUPTED: f64 = 4.0;
/// Weight with which that can be told.
const SURE: f64 = 4.0;
/// After so many steps with drafts one goes without, if its cost is not known.
const DRAFTED_STEPS: u32 = 2;
/// After so many without one has drafts, if their cost is not known and they are right by this chance.
const PLAIN_STEPS: u32 = 64;
const LIKELY: f64 = 0.5;
/// Number of sizes, see [`size`].
const SIZES: usize = 24;

/// The cost of a step by its rows: a line from each size of which steps were seen lately to the next. It
/// decides whether one more row pays in the step that is being planned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepCost {
    sizes: [Size; SIZES],
    /// The rows of the step without drafts, once the first draft is asked for.
    plain_rows: Option<usize>,
    /// Whether the step has drafts.
    is_drafted: bool,
    /// How many of its drafted rows are expected to be in vain.
    in_vain: f64,
    /// Steps with drafts since the last one without, and steps without since the last one with.
    drafted_steps: u32,
    plain_steps: u32,
}

/// Means over steps of about as many rows, of which the latest count most.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    weight: f64,
    rows: f64,
    time: f64,
}

/// The time of a step near some number of rows, in any unit.
#[derive(Debug, Clone, Copy)]
struct Line {
    rows: f64,
    /// The time with so many rows.
    time: f64,
    /// What one more adds to it.
    row: f64,
}

impl Line {
    fn at(&self, rows: f64) -> f64 {
        (self.time + self.row * (rows - self.rows)).max(0.0)
    }
}

impl StepCost {
    /// The next step begins without drafts.
    pub(super) fn begin_step(&mut self) {
        (self.drafted_steps, self.plain_steps) =
            if self.is_drafted { (self.drafted_steps + 1, 0) } else { (0, self.plain_steps + 1) };
        self.plain_rows = None;
        self.is_drafted = false;
        self.in_vain = 0.0;
    }

    /// Takes note of a step's time.
    pub(super) fn observe(&mut self, rows: usize, seconds: f64) {
        let own = size(rows);
        for (size, seen) in self.sizes.iter_mut().enumerate() {
            if size != own {
                seen.weight *= AGED;
                continue;
            }
            let most = if seen.weight < SURE { f64::INFINITY } else { INTERRUPTED * seen.time };
            seen.weight = seen.weight * KEPT + 1.0;
            seen.rows += (rows as f64 - seen.rows) / seen.weight;
            seen.time += (seconds.min(most) - seen.time) / seen.weight;
        }
    }

    /// Whether the step, which has `rows` rows, gives more tokens a second with one more that is of use by
    /// this chance; then the row counts as one of the step.
    pub(super) fn try_row(&mut self, rows: usize, chance: f64) -> bool {
        let plain_rows = *self.plain_rows.get_or_insert(rows);
        let line = self.line(rows as f64);
        // (useful + chance) / (time + row) > useful / time
        let useful = (rows as f64 - self.in_vain).max(0.0);
        let mut pays = chance * line.at(rows as f64) > useful * line.row;
        // Larger steps than any before are tried in small steps.
        let largest = self.known().last().map_or(0.0, |seen| seen.rows);
        if rows as f64 >= largest {
            pays |= self.plain_steps >= PLAIN_STEPS && chance >= LIKELY;
            pays &= (rows as f64) < 2.0 * largest.max(plain_rows as f64);
        }
        let smallest = self.known().next().map_or(f64::INFINITY, |seen| seen.rows);
        if self.drafted_steps >= DRAFTED_STEPS && size(smallest as usize) > size(plain_rows) {
            pays = false;
        }
        if pays {
            self.is_drafted = true;
            self.in_vain += 1.0 - chance;
        }
        pays
    }

    fn line(&self, rows: f64) -> Line {
        let mut known = self.known();
        let Some(mut from) = known.next() else { return Line { rows: 0.0, time: ASSUMED_FIXED, row: 1.0 } };
        let Some(mut to) = known.next() else {
            let row = from.time / (ASSUMED_FIXED + from.rows);
            return Line { rows: from.rows, time: from.time, row };
        };
        for next in known {
            if to.rows <= rows {
                (from, to) = (to, next);
            }
        }
        let row = ((to.time - from.time) / (to.rows - from.rows)).max(0.0);
        Line { rows: from.rows, time: from.time, row }
    }

    /// The sizes that are known, in ascending order.
    fn known(&self) -> impl Iterator<Item = &Size> {
        self.sizes.iter().filter(|seen| seen.weight >= LEAST)
    }
}

/// Two sizes for each power of two: 1, 2, 3, from 4, from 6, from 8, from 12, and so on.
fn size(rows: usize) -> usize {
    let power = rows.max(1).ilog2() as usize;
    let upper_half = (2 * rows.max(1)) >> power & 1;
    (2 * power + upper_half).min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// After steps of these rows, often enough to be believed.
    fn after(rows: &[usize], time: impl Fn(f64) -> f64) -> StepCost {
        let mut cost = StepCost::default();
        for rows in rows.iter().cycle().take(400) {
            cost.observe(*rows, time(*rows as f64));
        }
        cost
    }

    const MIXED: [usize; 10] = [1, 4, 2, 8, 5, 7, 1, 3, 9, 2];

    #[test]
    fn the_line_is_that_of_the_steps_once_they_differ() {
        let line = StepCost::default().line(7.0);
        assert_eq!((line.at(0.0), line.row), (ASSUMED_FIXED, 1.0));
        // Steps of one size tell nothing of a row.
        let line = after(&[4], |_| 11.0).line(4.0);
        assert!((line.at(0.0) - 3.0).abs() < 1e-6 && (line.row - 2.0).abs() < 1e-6, "{line:?}");
        let line = after(&MIXED, |rows| 5.0 + rows).line(4.0);
        assert!((line.at(0.0) - 5.0).abs() < 0.2 && (line.row - 1.0).abs() < 0.05, "{line:?}");
    }

    #[test]
    fn a_row_pays_if_its_chance_is_above_the_share_of_the_rows_in_the_time() {
        let mut cost = after(&MIXED, |rows| 5.0 + rows);
        // Of six units a row takes one; of 13, eight.
        assert!(!cost.try_row(1, 0.13) && cost.try_row(1, 0.2));
        assert!(!cost.try_row(8, 0.5));
        let mut cost = after(&MIXED, |rows| 5.0 + rows);
        assert!(!cost.try_row(8, 0.58) && cost.try_row(8, 0.65));
        // The more rows are in vain, the less is lost with one more.
        assert!(!cost.try_row(9, 0.57) && cost.try_row(9, 0.64));
    }

    #[test]
    fn where_rows_are_all_that_costs_no_draft_pays() {
        let mut cost = after(&MIXED, |rows| rows);
        assert!(!cost.try_row(1, 0.9) && !cost.try_row(20, 0.95));
    }

    #[test]
    fn where_rows_cost_nothing_even_unlikely_drafts_pay() {
        let mut cost = after(&[1, 2, 4, 8, 16, 24], |_| 1.0);
        assert!(cost.try_row(1, 0.05) && cost.try_row(20, 0.1));
    }

    #[test]
    fn what_a_row_costs_depends_on_how_many_there_are() {
        // Up to eight rows go through the weights together.
        let mut cost =
            after(&[1, 2, 4, 7, 8, 9, 12, 16, 24], |rows| 10.0 * (rows / 8.0).ceil() + rows / 10.0);
        assert!(cost.try_row(1, 0.3));
        assert!(!cost.try_row(16, 0.8));
    }

    #[test]
    fn an_interrupted_step_says_little() {
        let mut cost = after(&MIXED, |rows| 5.0 + rows);
        cost.observe(9, 1e6);
        let line = cost.line(9.0);
        assert!(line.row < 7.0 && line.time < 50.0, "{line:?}");
    }

    #[test]
    fn what_did_not_pay_stays_known_and_is_tried_again_much_later() {
        let mut cost = after(&[8, 12], |rows| rows);
        let mut without = 0;
        while !cost.try_row(8, 0.95) {
            cost.begin_step();
            cost.observe(8, 8.0);
            without += 1;
        }
        assert!((30..10_000).contains(&without), "{without}");
    }

    /// Tokens for each unit of time that `streams` sequences give, whose drafts are right by `chance`, without
    /// drafts and with them.
    fn rates(streams: usize, chance: f64, time: impl Fn(usize, usize) -> f64) -> [f64; 2] {
        const STEPS: usize = 400;
        let mut cost = StepCost::default();
        let (mut tokens, mut took, mut plain) = (0.0, 0.0, 0.0);
        for step in 0..STEPS {
            let mut rows = streams;
            for _ in 0..streams {
                let mut all_right = 1.0;
                tokens += 1.0;
                for _ in 0..8 {
                    all_right *= chance;
                    if !cost.try_row(rows, all_right) {
                        break;
                    }
                    rows += 1;
                    tokens += all_right;
                }
            }
            let seconds = time(step, rows);
            took += seconds;
            plain += time(step, streams);
            cost.observe(rows, seconds);
            cost.begin_step();
        }
        [(STEPS * streams) as f64 / plain, tokens / took]
    }

    /// Steps whose times vary by up to a twentieth.
    fn noisy(seed: u64, time: impl Fn(f64) -> f64) -> impl Fn(usize, usize) -> f64 {
        move |step, rows| {
            let mixed = (seed ^ step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            time(rows as f64) * (1.0 + 0.05 * (mixed as f64 / (1_u64 << 31) as f64 - 1.0))
        }
    }

    proptest! {
        /// Whatever a step and its rows cost, and however often drafts are right, they lose next to nothing.
        #[test]
        fn drafts_stop_where_they_do_not_pay(
            streams in 1..=16_usize,
            chance in 0.0..1.0_f64,
            fixed in 0.0..10.0_f64,
            crowded in 0.0..2.0_f64,
            seed: u64,
        ) {
            // Rows beyond eight cost more.
            let time = |rows: f64| fixed + rows + crowded * (rows - 8.0).max(0.0);
            let [plain, drafted] = rates(streams, chance, noisy(seed, time));
            prop_assert!(drafted > 0.97 * plain, "{drafted} instead of {plain}");
        }

        /// Where a step costs much more than its rows, they gain most of what can be gained.
        #[test]
        fn drafts_are_made_where_they_pay(streams in 1..=4_usize, chance in 0.7..1.0_f64, seed: u64) {
            let [plain, drafted] = rates(streams, chance, noisy(seed, |rows| 40.0 + rows));
            let tokens = (0..=8).map(|length| chance.powi(length)).sum::<f64>();
            let rows = (9 * streams) as f64;
            let always = streams as f64 * tokens / (40.0 + rows);
            prop_assert!(drafted > plain && drafted > 0.9 * always, "{drafted} of {plain} and {always}");
        }
    }
}
