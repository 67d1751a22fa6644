//! Colours: in a drawing the light one stands for the name of a CSS variable, which has a value for light and for dark.

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

/// One for each group of causes, in their order; neighbours can be told apart by those who see fewer colours.
pub const SERIES: [Colour; 8] = [
    colour("s0", 0x2a78d6, 0x3987e5),
    colour("s1", 0xeb6834, 0xd95926),
    colour("s2", 0x1baf7a, 0x199e70),
    colour("s3", 0xeda100, 0xc98500),
    colour("s4", 0xe87ba4, 0xd55181),
    colour("s5", 0x008300, 0x008301),
    colour("s6", 0x4a3aa7, 0x9085e9),
    colour("s7", 0x8f8e87, 0x77766f),
];

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
    [CARD, INK, QUIET, GRID, AXIS].into_iter().chain(SERIES).chain(HEAT)
}

/// The variables with their values, and the rules that put them into drawings.
pub fn css() -> String {
    let mut css = String::new();
    let mut variables = |open: &str, value: fn(Colour) -> u32, close: &str| {
        css += open;
        for colour in all() {
            write!(css, "--{}:#{:06x};", colour.name, value(colour)).expect("a text takes everything");
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

    #[test]
    fn a_light_colour_stands_for_one_variable() {
        let values: BTreeSet<u32> = all().map(|colour| colour.light).collect();
        let names: BTreeSet<&str> = all().map(|colour| colour.name).collect();
        assert_eq!((values.len(), names.len()), (all().count(), all().count()));
        assert_eq!(SERIES.len(), GROUPS.len());
    }
}
