//! Colours: in a drawing the light one stands for the name of a CSS variable, which has a value for
//! light and for dark.

use std::fmt::Write;

use plotters::style::RGBColor;

/// A colour of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    /// The CSS variable, without its dashes.
    pub name: &'static str,
    light: u32,
    dark: u32,
}

impl Colour {
    /// As the drawing has it.
    pub fn rgb(self) -> RGBColor {
        let [_, red, green, blue] = self.light.to_be_bytes();
        RGBColor(red, green, blue)
    }
}

const fn colour(name: &'static str, light: u32, dark: u32) -> Colour {
    Colour { name, light, dark }
}

/// What the drawings lie on.
pub const CARD: Colour = colour("card", 0xfcfcfb, 0x1a1a19);
/// Text.
pub const INK: Colour = colour("ink", 0x0b0b0b, 0xffffff);
/// Text that is less important, such as at axes.
pub const QUIET: Colour = colour("quiet", 0x52514e, 0xc3c2b7);
/// Lines behind the data.
pub const GRID: Colour = colour("grid", 0xe1e0d9, 0x2c2c2a);
/// Axes.
pub const AXIS: Colour = colour("axis", 0xc2c1b6, 0x4a4a46);

/// One for each group of causes, in their order. Any two can be told apart, also by those who see
/// fewer colours.
pub const SERIES: [Colour; 8] = [
    colour("s0", 0x2a78d6, 0x3987e5),
    colour("s1", 0xecaa0b, 0xe3cc36),
    colour("s2", 0x73cd9f, 0x6fe2cd),
    colour("s3", 0xe493f6, 0xa3a9f6),
    colour("s4", 0x382d93, 0x9043a1),
    colour("s5", 0x1c500e, 0x32ae9b),
    colour("s6", 0x755068, 0xbc9041),
    colour("s7", 0x8f8e87, 0x77766f),
];

/// Bars that are of one kind.
pub const WORK: Colour = colour("work", 0x4d6a86, 0x8aa4bd);

/// Few to many, from near the background away from it.
pub const HEAT: [Colour; 6] = [
    colour("h0", 0xcde2fb, 0x0d366b),
    colour("h1", 0x9ec5f4, 0x184f95),
    colour("h2", 0x6da7ec, 0x256abf),
    colour("h3", 0x3988e6, 0x5598e7),
    colour("h4", 0x1c5cab, 0x86b6ef),
    colour("h5", 0x0d366c, 0xcde2fc),
];

fn all() -> impl Iterator<Item = Colour> {
    [CARD, INK, QUIET, GRID, AXIS, WORK].into_iter().chain(SERIES).chain(HEAT)
}

/// The variables with their values, and the rules that put them into drawings.
pub fn css() -> String {
    let mut css = String::new();
    let mut variables = |open: &str, value: fn(Colour) -> u32, close: &str| {
        css += open;
        for colour in all() {
            write!(css, "--{}:#{:06x};", colour.name, value(colour))
                .expect("a text takes everything");
        }
        css += close;
    };
    variables(":root{", |colour| colour.light, "}\n");
    variables("@media (prefers-color-scheme:dark){:root{", |colour| colour.dark, "}}\n");
    for Colour { name, light, .. } in all() {
        for attribute in ["fill", "stroke"] {
            writeln!(css, "svg [{attribute}=\"#{light:06X}\"]{{{attribute}:var(--{name})}}")
                .expect("a text takes everything");
        }
    }
    css
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::html::groups::GROUPS;

    /// What a colour excites in an eye, with one kind of cones more or less absent: linear RGB,
    /// multiplied by Machado's matrices (2009, severity 1), in the perceptually uniform space
    /// OKLab.
    fn seen(colour: u32, eye: &[[f64; 3]; 3]) -> [f64; 3] {
        let times = |matrix: &[[f64; 3]; 3], of: [f64; 3]| {
            matrix.map(|row| (0..3).map(|n| row[n] * of[n]).sum())
        };
        let linear = |byte: u8| match f64::from(byte) / 255.0 {
            value if value <= 0.04045 => value / 12.92,
            value => ((value + 0.055) / 1.055).powf(2.4),
        };
        let [_, red, green, blue] = colour.to_be_bytes();
        let rgb: [f64; 3] = times(eye, [red, green, blue].map(linear));
        let cones: [f64; 3] = times(
            &[
                [0.412_221_47, 0.536_332_54, 0.051_445_99],
                [0.211_903_50, 0.680_699_55, 0.107_396_96],
                [0.088_302_46, 0.281_718_84, 0.629_978_70],
            ],
            rgb.map(|value| value.max(0.0)),
        );
        times(
            &[
                [0.210_454_26, 0.793_617_79, -0.004_072_05],
                [1.977_998_50, -2.428_592_21, 0.450_593_71],
                [0.025_904_04, 0.782_771_77, -0.808_675_77],
            ],
            cones.map(f64::cbrt),
        )
    }

    #[test]
    fn causes_can_be_told_apart_by_any_eye() {
        const EYES: [[[f64; 3]; 3]; 3] = [
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [
                [0.367_322, 0.860_646, -0.227_968],
                [0.280_085, 0.672_501, 0.047_413],
                [-0.011_820, 0.042_940, 0.968_881],
            ],
            [
                [0.152_286, 1.052_583, -0.204_868],
                [0.114_503, 0.786_281, 0.099_216],
                [-0.003_882, -0.048_116, 1.051_998],
            ],
        ];
        for of in [(|colour| colour.light) as fn(Colour) -> u32, |colour| colour.dark] {
            for eye in &EYES {
                for (n, one) in SERIES.iter().enumerate() {
                    for other in &SERIES[n + 1..] {
                        let [a, b] = [one, other].map(|&colour| seen(of(colour), eye));
                        let distance = (0..3).map(|n| (a[n] - b[n]).powi(2)).sum::<f64>().sqrt();
                        assert!(distance > 0.11, "{} and {}: {distance:.3}", one.name, other.name);
                    }
                }
            }
        }
    }

    #[test]
    fn a_light_colour_stands_for_one_variable() {
        let values: BTreeSet<u32> = all().map(|colour| colour.light).collect();
        let names: BTreeSet<&str> = all().map(|colour| colour.name).collect();
        assert_eq!((values.len(), names.len()), (all().count(), all().count()));
        assert_eq!(SERIES.len(), GROUPS.len());
    }
}
