//! Stacked columns over time.

use plotters::prelude::*;

use super::canvas::{Form, TEXT, draw, fill, text_style};
use super::colour::{AXIS, GRID, QUIET, SERIES};
use super::short;
use crate::html::groups::ByGroup;
use crate::html::history::Slices;

const HEIGHT: i32 = 300;
/// Left of the plot, and below it.
const LEFT: i32 = 62;
const BOTTOM: i32 = 42;
const TOP: i32 = 8;
const RIGHT: i32 = 24;

/// Draws exits per million ticks.
pub fn timeline(form: Form, slices: &Slices<ByGroup>) -> (String, i32) {
    let rate = |n: usize, count: u64| {
        let (start, end) = slices.times(n);
        count as f64 * 1e6 / (end - start).max(1) as f64
    };
    let totals = slices.slices.iter().enumerate().map(|(n, groups)| rate(n, groups.iter().sum()));
    let highest = totals.fold(1.0, f64::max);
    let last = slices.end.max(1) as f64;
    draw(form, HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(TOP)
            .margin_right(RIGHT)
            .x_label_area_size(BOTTOM)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(0.0..last, 0.0..highest)
            .expect(TEXT);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(form.labels())
            .y_labels(6)
            .x_label_formatter(&|ticks| short(*ticks))
            .y_label_formatter(&|rate| short(*rate))
            .x_desc("ticks since guest entry")
            .y_desc("exits per million ticks")
            .label_style(text_style(QUIET, false))
            .axis_desc_style(text_style(QUIET, false))
            .axis_style(AXIS.rgb())
            .bold_line_style(GRID.rgb())
            .light_line_style(TRANSPARENT)
            .draw()
            .expect(TEXT);
        for (n, groups) in slices.slices.iter().enumerate() {
            let (start, end) = slices.times(n);
            let mut sum = 0;
            for (count, colour) in groups.iter().zip(SERIES) {
                let (left, bottom) = chart.backend_coord(&(start as f64, rate(n, sum)));
                sum += count;
                let (right, top) = chart.backend_coord(&(end as f64, rate(n, sum)));
                // The background shows between columns that are wide enough.
                fill(area, (left, top), (right - i32::from(right - left > 3), bottom), colour);
            }
        }
    })
}
