//! Drawings, made by plotters' SVG backend: each in a form for desktops, tablets and phones.

mod bars;
mod canvas;
mod colour;
mod heat;
mod timeline;

pub use bars::{Bar, Row, bars};
pub use canvas::Form;
pub use colour::{CARD, Colour, HEAT, INK, SERIES, WORK, css};
pub use heat::{heat, steps};
pub use timeline::timeline;

/// A number in few digits, for axes and cells.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e15 => return format!("{value:.1e}"),
        v if v >= 1e12 => (value / 1e12, "T"),
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    // No line ends before the unit.
    if unit.is_empty() { text.into() } else { format!("{text}\u{a0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn few_digits() {
        let all = [0.0, 0.01, 5.5, 100.0, 1234.0, 65_432.0, 1.76e9, 2e9, 1.8e19];
        let all = all.map(|value| short(value).replace('\u{a0}', " "));
        assert_eq!(all, ["0", "0.01", "5.5", "100", "1234", "65.4 k", "1.76 G", "2 G", "1.8e19"]);
    }
}
