//! What the rows of a step cost.

/// Weight of what was seen before, in each step.
const KEPT: f64 = 0.98;
/// Least variance of the number of rows from which the cost of one can be told.
const LEAST_VARIANCE: f64 = 0.1;
/// Steps after which it can be told.
const LEAST_STEPS: f64 = 8.0;
/// Until then, a step is taken to cost as much as this many rows, besides its rows.
const ASSUMED_FIXED: f64 = 3.0;
/// A step that took this many times as long as others of its size was interrupted.
const INTERRUPTED: f64 = 4.0;

/// The cost of a step as a fixed part and a part for each row: a weighted least-squares line through the
/// latest steps' times. It decides whether one more row pays in the step that is being planned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepCost {
    /// Sums over the steps, each with its weight: 1, rows, rows², time, and rows × time.
    steps: f64,
    rows: f64,
    squares: f64,
    time: f64,
    products: f64,
    /// How many of the drafted rows of the step are expected to be in vain.
    in_vain: f64,
}

impl StepCost {
    /// The next step begins without drafts.
    pub(super) fn begin_step(&mut self) {
        self.in_vain = 0.0;
    }

    /// Takes note of a step's time.
    pub(super) fn observe(&mut self, rows: usize, seconds: f64) {
        let rows = rows as f64;
        let usual = if self.steps < LEAST_STEPS { f64::INFINITY } else { self.usual(rows) };
        let seconds = seconds.min(INTERRUPTED * usual);
        for (sum, value) in [
            (&mut self.steps, 1.0),
            (&mut self.rows, rows),
            (&mut self.squares, rows * rows),
            (&mut self.time, seconds),
            (&mut self.products, rows * seconds),
        ] {
            *sum = *sum * KEPT + value;
        }
    }

    /// Whether the step, which has `rows` rows, gives more tokens a second with one more that is of use by
    /// this chance; then the row counts as one of the step.
    pub(super) fn try_row(&mut self, rows: usize, chance: f64) -> bool {
        let (fixed, row) = self.line();
        let rows = rows as f64;
        // (useful + chance) / (time + row) > useful / time
        let useful = (rows - self.in_vain).max(0.0);
        let pays = chance * (fixed + row * rows) > useful * row;
        if pays {
            self.in_vain += 1.0 - chance;
        }
        pays
    }

    /// The fixed part of a step's time and that of each row, in any unit.
    fn line(&self) -> (f64, f64) {
        if self.steps < LEAST_STEPS {
            return (ASSUMED_FIXED, 1.0);
        }
        let (mean, time) = (self.rows / self.steps, self.time / self.steps);
        let variance = self.squares / self.steps - mean * mean;
        if variance < LEAST_VARIANCE || time <= 0.0 {
            return (ASSUMED_FIXED, 1.0);
        }
        let row = (self.products / self.steps - mean * time) / variance;
        let row = row.clamp(0.0, time / mean);
        (time - row * mean, row)
    }

    /// The usual time of a step of this many rows.
    fn usual(&self, rows: f64) -> f64 {
        let (fixed, row) = self.line();
        let mean = self.rows / self.steps;
        let scale = self.time / self.steps / (fixed + row * mean);
        scale * (fixed + row * rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After steps of these rows, with a fixed cost of 5 and a cost of 1 for each row.
    fn after(rows: &[usize]) -> StepCost {
        let mut cost = StepCost::default();
        rows.iter().for_each(|rows| cost.observe(*rows, 5.0 + *rows as f64));
        cost
    }

    #[test]
    fn the_line_is_that_of_the_steps_once_they_differ() {
        assert_eq!(after(&[1; 7]).line(), (ASSUMED_FIXED, 1.0));
        assert_eq!(after(&[4; 100]).line(), (ASSUMED_FIXED, 1.0));
        let (fixed, row) = after(&[1, 4, 2, 8, 5, 7, 1, 3, 9, 2]).line();
        assert!((fixed - 5.0).abs() < 1e-6 && (row - 1.0).abs() < 1e-6, "{fixed} {row}");
    }

    #[test]
    fn a_row_pays_if_its_chance_is_above_the_share_of_the_rows_in_the_time() {
        let mut cost = after(&[1, 4, 2, 8, 5, 7, 1, 3, 9, 2]);
        // Of six units a row takes one; of 13, eight.
        assert!(!cost.try_row(1, 0.15) && cost.try_row(1, 0.18));
        assert!(!cost.try_row(8, 0.5));
        let mut cost = after(&[1, 4, 2, 8, 5, 7, 1, 3, 9, 2]);
        assert!(!cost.try_row(8, 0.6) && cost.try_row(8, 0.63));
        // The more rows are in vain, the less is lost with one more.
        assert!(!cost.try_row(9, 0.58) && cost.try_row(9, 0.63));
    }

    #[test]
    fn where_rows_are_all_that_costs_no_draft_pays() {
        let mut cost = StepCost::default();
        (1..20).for_each(|rows| cost.observe(rows, rows as f64));
        assert!(!cost.try_row(1, 0.999) && !cost.try_row(20, 0.999));
    }

    #[test]
    fn where_rows_cost_nothing_every_draft_pays() {
        let mut cost = StepCost::default();
        (1..20).for_each(|rows| cost.observe(rows, 1.0));
        assert!(cost.try_row(1, 0.01) && cost.try_row(20, 0.01));
    }

    #[test]
    fn an_interrupted_step_says_little() {
        let mut cost = after(&[1, 4, 2, 8, 5, 7, 1, 3, 9, 2]);
        cost.observe(9, 1e6);
        let (fixed, row) = cost.line();
        assert!(fixed >= 0.0 && row < 7.0, "{fixed} {row}");
    }
}
