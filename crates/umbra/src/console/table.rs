//! Tables for a terminal.

use std::fmt;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, presets};

/// Rows of cells without rules: names to the left, figures to the right, each column as wide as
/// what it holds.
#[derive(Debug)]
pub struct Table {
    inner: comfy_table::Table,
    /// Columns from the left that hold names.
    names: usize,
    /// Another one that does.
    left: Option<usize>,
}

impl Table {
    /// A table with these heads, of which the first `names` are over names.
    pub fn new<C: ToString>(names: usize, heads: impl IntoIterator<Item = C>) -> Table {
        let mut table = Table { inner: comfy_table::Table::new(), names, left: None };
        table
            .inner
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.row(heads);
        table
    }

    /// Puts this column to the left, too.
    pub fn left(mut self, column: usize) -> Table {
        self.left = Some(column);
        self
    }

    /// Adds a row.
    pub fn row<C: ToString>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.inner.add_row(cells.into_iter().map(|cell| cell.to_string()));
    }

    /// Makes the first column at least this wide, so that tables below each other have theirs
    /// alike.
    pub fn indent(mut self, width: u16) -> Table {
        let constraint = ColumnConstraint::LowerBoundary(comfy_table::Width::Fixed(width));
        if let Some(column) = self.inner.column_mut(0) {
            column.set_constraint(constraint);
        }
        self
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = self.inner.clone();
        for (index, column) in table.column_iter_mut().enumerate() {
            let is_left = index < self.names || self.left == Some(index);
            let side = if is_left { CellAlignment::Left } else { CellAlignment::Right };
            column.set_cell_alignment(side);
            column.set_padding((if index == 0 { 0 } else { 2 }, 0));
        }
        writeln!(f, "{}", table.trim_fmt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_left_and_figures_right() {
        let mut table = Table::new(1, ["cause", "exits", "%"]);
        table.row(["io", "12345", "9.0"]);
        table.row(["host_fault_link", "1", "100.0"]);
        assert_eq!(
            table.to_string(),
            "cause            exits      %\n\
             io               12345    9.0\n\
             host_fault_link      1  100.0\n"
        );
        assert!(table.indent(20).to_string().starts_with("cause                 exits"));
    }

    #[test]
    fn no_cell_is_broken_and_wide_characters_count() {
        let mut table = Table::new(1, ["a", "b"]);
        table.row(["日本 x y".repeat(40), "1".into()]);
        table.row(["é".to_string(), "22".into()]);
        let text = table.to_string();
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(1).unwrap().ends_with("   1"), "{text}");
    }
}
