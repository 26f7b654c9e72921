//! Tables for the terminal.

/// Columns as wide as their widest cell.
pub(crate) fn table<R: AsRef<[String]> + Clone>(head: &R, rows: impl Iterator<Item = R>) -> String {
    let rows: Vec<R> = std::iter::once(head.clone()).chain(rows).collect();
    let cell_width = |row: &R, column: usize| row.as_ref().get(column).map_or(0, |cell| cell.chars().count());
    let width = |column: usize| rows.iter().map(|row| cell_width(row, column)).max();
    let widths: Vec<usize> = (0..head.as_ref().len()).map(|column| width(column).unwrap_or(0)).collect();
    let lines = rows.iter().map(|row| {
        let cells: Vec<String> =
            row.as_ref().iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
