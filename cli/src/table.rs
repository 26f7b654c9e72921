//! Tables for the terminal: columns without borders, two spaces apart.

use comfy_table::{Table, presets};

/// Lays out `head` and `rows` as one table. Columns are aligned at the left by the width that the terminal
/// gives to characters, so that wide ones (Chinese, say) keep the columns in line.
pub(crate) fn table<R: AsRef<[String]>>(head: &R, rows: impl Iterator<Item = R>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.as_ref());
    rows.for_each(|row| _ = table.add_row(row.as_ref()));
    table.column_iter_mut().for_each(|column| _ = column.set_padding((0, 2)));
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_on_the_terminal() {
        let head = ["model", "jobs", "reason"].map(String::from);
        let rows = [["m", "12", "late"], ["\u{65e5}\u{672c}", "3", ""]].map(|row| row.map(String::from));
        let lines = ["model  jobs  reason", "m      12    late", "\u{65e5}\u{672c}   3"];
        assert_eq!(table(&head, rows.into_iter()), lines.join("\n"));
    }
}
