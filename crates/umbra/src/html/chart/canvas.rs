//! What all drawings share.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::colour::Colour;

/// For which screens a drawing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Desktops.
    Wide,
    /// Tablets.
    Medium,
    /// Phones.
    Narrow,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 3] = [Form::Wide, Form::Medium, Form::Narrow];

    /// Units of the drawing from left to right; on its smallest screen one is about a CSS pixel.
    pub fn width(self) -> i32 {
        match self {
            Form::Wide => 940,
            Form::Medium => 660,
            Form::Narrow => 340,
        }
    }

    /// The class of the drawing.
    pub fn class(self) -> &'static str {
        match self {
            Form::Wide => "wide",
            Form::Medium => "medium",
            Form::Narrow => "narrow",
        }
    }

    /// Labels at an axis from left to right, about.
    pub fn labels(self) -> usize {
        match self {
            Form::Wide => 10,
            Form::Medium => 8,
            Form::Narrow => 5,
        }
    }
}

/// Why drawing into a text cannot fail.
pub const TEXT: &str = "a text takes everything";

/// The size of text, in units of the drawing.
pub const FONT: i32 = 12;

/// What is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The elements of a drawing of this size, without the `svg` around them, and its height.
pub fn draw(form: Form, height: i32, on: impl FnOnce(&Area)) -> (String, i32) {
    let mut text = String::new();
    {
        let size = (form.width().unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        on(&area);
        area.present().expect(TEXT);
    }
    // The page gives the element a title, and HTML needs no name space.
    let inner = text.split_once('>').map_or("", |(_, inner)| inner);
    (inner.trim_end().trim_end_matches("</svg>").into(), height)
}

/// The style of text; `mono` for addresses.
pub fn text_style(colour: Colour, mono: bool) -> TextStyle<'static> {
    let family = if mono { FontFamily::Monospace } else { FontFamily::SansSerif };
    // The backend divides by this.
    let size = f64::from(FONT) * 1.24;
    let color = colour.rgb().to_backend_color();
    TextStyle { color, ..TextStyle::from((family, size).into_font()) }
}

/// Writes text beside or at a place, its middle at the place's height.
pub fn write(
    area: &Area,
    text: impl Display,
    place: (i32, i32),
    colour: Colour,
    side: HPos,
    mono: bool,
) {
    let style = text_style(colour, mono).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_string(), place, style)).expect(TEXT);
}

/// Fills a rectangle, unless it is empty.
pub fn fill(area: &Area, (left, top): (i32, i32), (right, bottom): (i32, i32), colour: Colour) {
    if right > left && bottom > top {
        area.draw(&Rectangle::new([(left, top), (right, bottom)], colour.rgb().filled()))
            .expect(TEXT);
    }
}

/// A line.
pub fn line(area: &Area, from: (i32, i32), to: (i32, i32), colour: Colour) {
    area.draw(&PathElement::new([from, to], colour.rgb())).expect(TEXT);
}
