//! Stacked horizontal bars, those of several results under each other.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::canvas::{self, Form, TEXT, draw, fill, text_style, write};
use super::colour::{AXIS, CARD, Colour, GRID, INK, QUIET};
use super::short;

/// A bar: what was counted, in parts, per operation.
#[derive(Debug)]
pub struct Bar {
    /// Which result.
    pub letter: char,
    /// Its parts, each with its colour.
    pub parts: Vec<(u64, Colour)>,
    /// Operations; not 0.
    pub ops: u64,
}

impl Bar {
    fn per_operation(&self, count: u64) -> f64 {
        count as f64 / self.ops as f64
    }

    /// Its length.
    pub fn total(&self) -> f64 {
        self.per_operation(
            self.parts.iter().fold(0, |sum: u64, (count, _)| sum.saturating_add(*count)),
        )
    }
}

/// The bars of one phase: of each result that has counted.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// In the order of the results.
    pub bars: Vec<Bar>,
}

const BAR: i32 = 14;
const BETWEEN_BARS: i32 = 3;
const BETWEEN_ROWS: i32 = 12;
/// The name of a row, where it stands above its bars.
const NAME: i32 = 17;
/// For the numbers behind the bars.
const RIGHT: i32 = 58;
/// For the axis below.
const BOTTOM: i32 = 42;

/// Draws rows with a common axis; `several`: of more results than one.
pub fn bars(form: Form, rows: &[Row], unit: &str, several: bool) -> (String, i32) {
    let name = if form == Form::Narrow { NAME } else { 0 };
    let left = if form == Form::Narrow { 5 } else { 136 } + if several { 18 } else { 0 };
    let row_height = |row: &Row| name + BETWEEN_ROWS + row.bars.len() as i32 * (BAR + BETWEEN_BARS);
    let plot_height: i32 = rows.iter().map(row_height).sum();
    let longest = rows.iter().flat_map(|row| &row.bars).map(Bar::total).fold(0.0, f64::max);
    let longest = if longest > 0.0 { longest } else { 1.0 };
    let (start, end) = (left, form.width() - RIGHT);
    let place = |value: f64| start + (value / longest * f64::from(end - start)).round() as i32;
    draw(form, plot_height + BOTTOM, |area| {
        axis(area, form, left, longest, unit);
        let mut top = 0;
        for row in rows {
            let first = top + name + BETWEEN_ROWS / 2;
            let bottom = top + row_height(row);
            match form {
                Form::Narrow => {
                    // No line of the grid goes through the name.
                    fill(area, (0, top), (form.width(), top + NAME + 4), CARD);
                    write(area, &row.name, (2, top + NAME - 4), INK, HPos::Left, false);
                }
                Form::Wide | Form::Medium => {
                    write(area, &row.name, (4, (top + bottom) / 2), INK, HPos::Left, false)
                }
            }
            for (bar, n) in row.bars.iter().zip(0..) {
                let upper = first + n * (BAR + BETWEEN_BARS);
                let middle = upper + BAR / 2;
                if several {
                    write(area, bar.letter, (left - 6, middle), QUIET, HPos::Right, false);
                }
                let mut sum = 0_u64;
                for &(count, colour) in &bar.parts {
                    let from = place(bar.per_operation(sum));
                    sum = sum.saturating_add(count);
                    // The background shows between two parts, unless that is all there is.
                    let to = place(bar.per_operation(sum));
                    let gap = i32::from(to - from > 2);
                    fill(area, (from, upper), (to - gap, upper + BAR), colour);
                }
                let label = short(bar.total());
                let at = place(bar.total()) + 5;
                // No line of the grid goes through the number: a digit is less than 8 units wide.
                let width = label.chars().count() as i32 * 8;
                fill(area, (at - 2, upper), ((at + width).min(form.width()), upper + BAR), CARD);
                write(area, label, (at, middle), INK, HPos::Left, false);
            }
            top = bottom;
        }
    })
}

fn axis(area: &canvas::Area, form: Form, left: i32, longest: f64, unit: &str) {
    let mut chart = ChartBuilder::on(area)
        .margin_left(left)
        .margin_right(RIGHT)
        .x_label_area_size(BOTTOM)
        .build_cartesian_2d(0.0..longest, 0.0..1.0)
        .expect(TEXT);
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(form.labels())
        .x_label_formatter(&|value| short(*value))
        .x_desc(unit)
        .label_style(text_style(QUIET, false))
        .axis_desc_style(text_style(QUIET, false))
        .axis_style(AXIS.rgb())
        .bold_line_style(GRID.rgb())
        .light_line_style(TRANSPARENT)
        .draw()
        .expect(TEXT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::chart::SERIES;

    fn row(values: &[u64]) -> Row {
        let bar = |(n, &exits): (u8, &u64)| {
            let parts = vec![(exits / 4, SERIES[0]), (exits - exits / 4, SERIES[7])];
            Bar { letter: char::from(b'A' + n), parts, ops: 2 }
        };
        Row { name: "demand".into(), bars: (0..).zip(values).map(bar).collect() }
    }

    /// The widths of what is filled with a colour.
    fn widths(drawing: &str, colour: &str) -> Vec<i32> {
        let of = drawing.lines().filter(|line| line.starts_with("<rect") && line.contains(colour));
        of.map(|line| {
            line.split_once("width=\"").unwrap().1.split('"').next().unwrap().parse().unwrap()
        })
        .collect()
    }

    #[test]
    fn lengths_are_in_proportion() {
        for form in Form::ALL {
            let (drawing, _) =
                bars(form, &[row(&[32, 16]), row(&[8, 0])], "exits per operation", true);
            let (first, last) = (widths(&drawing, "#2A78D6"), widths(&drawing, "#8F8E87"));
            assert_eq!((first.len(), last.len()), (3, 3), "{drawing}");
            // The gap behind a part belongs to it, and places are rounded.
            let near = |a: i32, b: i32| (a - b).abs() <= 6;
            assert!(near(first[0], 2 * first[1]) && near(first[0], 4 * first[2]), "{first:?}");
            assert!(near(last[0], 3 * first[0]), "{first:?} {last:?}");
            assert!(near(
                first[0] + last[0],
                form.width() - RIGHT - if form == Form::Narrow { 20 } else { 154 }
            ));
        }
    }

    #[test]
    fn a_result_that_has_not_counted_has_no_bar_and_no_place() {
        let mut one = row(&[8, 4]);
        let (with_both, height_of_both) = bars(Form::Wide, &[row(&[8, 4])], "exits", true);
        one.bars.remove(0);
        let (with_one, height) = bars(Form::Wide, &[one], "exits", true);
        assert!(
            height < height_of_both
                && with_both.contains(">\nA\n<")
                && !with_one.contains(">\nA\n<")
        );
        assert!(with_one.contains(">\nB\n<"));
    }
}
