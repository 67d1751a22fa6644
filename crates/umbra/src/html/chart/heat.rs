//! A heat map: regions of the address space from top to bottom, time from left to right.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::canvas::{FONT, Form, TEXT, draw, fill, line, text_style, write};
use super::colour::{AXIS, HEAT, INK, QUIET};
use super::short;
use crate::html::history::Heat;

/// A row; on narrow screens its name stands above.
const ROW: i32 = 18;
const NAME: i32 = 16;
const BOTTOM: i32 = 42;
const TOP: i32 = 18;
const RIGHT: i32 = 24;

/// The least count of each colour: powers of the smallest number that suffices for all counts.
pub fn steps(most: u64) -> [u64; HEAT.len()] {
    let power = |base: u64, n: usize| (0..n).fold(1_u64, |power, _| power.saturating_mul(base));
    let base =
        (2..).find(|&base| power(base, HEAT.len()) > most || power(base, HEAT.len()) == u64::MAX);
    std::array::from_fn(|n| power(base.expect("some number is large enough"), n))
}

/// Draws host faults; `boot_end` gets a line.
pub fn heat(form: Form, heat: &Heat, boot_end: Option<u64>) -> (String, i32) {
    let (left, name) = if form == Form::Narrow { (4, NAME) } else { (210, 0) };
    let rows = heat.regions.len() as i32;
    let plot = rows * (ROW + name);
    let steps = steps(heat.over_time.slices.iter().flatten().copied().max().unwrap_or(0));
    let last = heat.over_time.end.max(1) as f64;
    draw(form, TOP + plot + BOTTOM, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(TOP)
            .margin_left(left)
            .margin_right(RIGHT)
            .x_label_area_size(BOTTOM)
            .build_cartesian_2d(0.0..last, 0.0..f64::from(rows.max(1)))
            .expect(TEXT);
        chart
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .x_labels(form.labels())
            .x_label_formatter(&|ticks| short(*ticks))
            .x_desc("ticks since guest entry")
            .label_style(text_style(QUIET, false))
            .axis_desc_style(text_style(QUIET, false))
            .axis_style(AXIS.rgb())
            .draw()
            .expect(TEXT);
        let place = |ticks: u64| chart.backend_coord(&(ticks as f64, 0.0)).0;
        for (row, region) in (0..).zip(&heat.regions) {
            let top = TOP + row * (ROW + name);
            let text = format!("{:016x} {}", region.start, region.size());
            let place = if name > 0 { (left, top + FONT - 2) } else { (4, top + ROW / 2) };
            write(area, text, place, INK, HPos::Left, true);
        }
        for (n, counts) in heat.over_time.slices.iter().enumerate() {
            let (start, end) = heat.over_time.times(n);
            let (start, end) = (place(start), place(end));
            for (row, count) in (0..).zip(counts) {
                let Some(step) = steps.iter().rposition(|least| count >= least) else { continue };
                let top = TOP + row * (ROW + name) + name;
                let right = (end - i32::from(end - start > 3)).max(start + 1);
                fill(area, (start, top), (right, top + ROW - 2), HEAT[step]);
            }
        }
        if let Some(boot_end) = boot_end {
            let at = place(boot_end);
            line(area, (at, 12), (at, TOP + plot), QUIET);
            let side = if at > form.width() / 2 { HPos::Right } else { HPos::Left };
            write(area, "boot ends", (at, 6), QUIET, side, false);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_suffice() {
        assert_eq!(steps(0), [1, 2, 4, 8, 16, 32]);
        assert_eq!(steps(63), [1, 2, 4, 8, 16, 32]);
        assert_eq!(steps(64), [1, 3, 9, 27, 81, 243]);
        assert!(steps(u64::MAX)[5] > 1 << 50);
    }
}
