//! The page's drawings as files of their own, for papers and slides: wide, light, and with their
//! legends.

use maud::{Markup, PreEscaped, html};

use super::chart::{self, Colour, Form, HEAT, SERIES};
use super::groups::{ByGroup, GROUPS};
use super::history::History;
use super::page::{labels, seen, step};
use super::panels::{EXITS, INSTRUCTIONS, Panel, letter};
use crate::report::Named;

/// A drawing.
#[derive(Debug)]
pub struct Drawing {
    /// Its file.
    pub name: String,
    /// What is in it.
    pub svg: String,
}

/// An entry of a legend.
type Entry = (Option<Colour>, String);

/// All drawings that the page would have.
pub fn drawings(results: &[Named], history: Option<&History>) -> Vec<Drawing> {
    let (mut all, several) = (Vec::new(), results.len() > 1);
    let runs: Vec<Entry> = labels(results)
        .into_iter()
        .enumerate()
        .filter(|_| several)
        .map(|(index, label)| (None, format!("{}: {label}", letter(index))))
        .collect();
    let mut add = |name: String, title: &str, drawing: (String, i32), legend: &[Entry]| {
        let legend: Vec<Entry> = legend.iter().chain(&runs).cloned().collect();
        all.push(Drawing {
            name: format!("{name}.svg"),
            svg: file(title, drawing, &legend).into_string(),
        });
    };
    let bars = |panel: &Panel| chart::bars(Form::Wide, &panel.rows, &panel.unit, several);
    let of_runs = causes(seen(results.iter().filter_map(|result| result.statistics.groups())));
    let phases = results.iter().flat_map(|result| &result.statistics.phases);
    let of_phases = causes(seen(phases.filter_map(|phase| phase.groups())));
    if let Some(panel) = EXITS.whole_run(results) {
        add("exits-whole-run".into(), &panel.title, bars(&panel), &of_runs);
    }
    for (index, panel) in EXITS.panels(results).iter().enumerate() {
        add(format!("exits-{index}"), &panel.title, bars(panel), &of_phases);
    }
    for (index, panel) in INSTRUCTIONS.panels(results).iter().enumerate() {
        add(format!("instructions-{index}"), &panel.title, bars(panel), &[]);
    }
    if let Some(panel) = INSTRUCTIONS.whole_run(results) {
        add("instructions-whole-run".into(), &panel.title, bars(&panel), &[]);
    }
    if let Some(history) = history.filter(|history| !history.boot.slices.is_empty()) {
        let legend = causes(seen(history.boot.slices.iter().copied()));
        add(
            "boot".into(),
            "Exits through the boot",
            chart::timeline(Form::Wide, &history.boot),
            &legend,
        );
    }
    if let Some(history) = history.filter(|history| !history.heat.regions.is_empty()) {
        let heat = &history.heat;
        let most = heat.over_time.slices.iter().flatten().copied().max().unwrap_or(0);
        let steps = chart::steps(most);
        let legend = HEAT.into_iter().enumerate().filter(|&(n, _)| steps[n] <= most);
        let legend = legend.map(|(n, colour)| (Some(colour), step(&steps, n, most)));
        let legend: Vec<Entry> =
            std::iter::once((None, "host faults in a cell:".into())).chain(legend).collect();
        let title = "Host faults by region of guest-virtual memory";
        add("regions".into(), title, chart::heat(Form::Wide, heat, history.boot_end), &legend);
    }
    all
}

/// The legend of the groups of causes that are seen.
fn causes(seen: ByGroup) -> Vec<Entry> {
    let groups = GROUPS.iter().zip(SERIES).zip(seen).filter(|(_, count)| *count > 0);
    groups.map(|((group, colour), _)| (Some(colour), group.name.into())).collect()
}

/// Above the drawing, and a line of the legend.
const TITLE: i32 = 30;
const LINE: i32 = 20;
/// Around everything.
const MARGIN: i32 = 12;
/// About as wide as a character.
const CHARACTER: i32 = 7;
const SWATCH: i32 = 12;

/// Title, drawing and legend on a background.
fn file(title: &str, (inner, height): (String, i32), legend: &[Entry]) -> Markup {
    let width = Form::Wide.width();
    // Entries side by side, as many as fit into a line.
    let (mut placed, mut left, mut line) = (Vec::new(), MARGIN, 0);
    for (colour, text) in legend {
        let swatch = if colour.is_some() { SWATCH + 6 } else { 0 };
        let taken = swatch + text.chars().count() as i32 * CHARACTER + 16;
        if left > MARGIN && left + taken > width {
            (left, line) = (MARGIN, line + 1);
        }
        placed.push((colour, text, left, TITLE + height + LINE + line * LINE));
        left += taken;
    }
    let lines = if legend.is_empty() { 0 } else { line + 1 };
    let total = TITLE + height + lines * LINE + MARGIN;
    html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(total) viewBox=(format!("0 0 {width} {total}"))
            font-family="sans-serif" {
            title { (title) }
            rect width=(width) height=(total) fill=(hex(chart::CARD)) {}
            text x=(MARGIN) y="20" font-size="15" font-weight="bold" fill=(hex(chart::INK)) { (title) }
            g transform=(format!("translate(0 {TITLE})")) { (PreEscaped(inner)) }
            @for (colour, text, left, y) in placed {
                @let start = match colour {
                    Some(_) => left + SWATCH + 6,
                    None => left,
                };
                @if let Some(colour) = colour {
                    rect x=(left) y=(y - SWATCH + 2) width=(SWATCH) height=(SWATCH) fill=(hex(*colour)) {}
                }
                text x=(start) y=(y) font-size="12" fill=(hex(chart::INK)) { (text) }
            }
        }
    }
}

fn hex(colour: Colour) -> String {
    let plotters::style::RGBColor(red, green, blue) = colour.rgb();
    format!("#{red:02X}{green:02X}{blue:02X}")
}

#[cfg(test)]
mod tests {
    use scraper::{Html, Selector};

    use super::super::groups::tests::{kvm, umbra};
    use super::super::history::tests::history;
    use super::*;

    #[test]
    fn every_drawing_is_a_file_with_a_title_and_a_legend() {
        let all = drawings(&[umbra(), kvm()], Some(&history()));
        let names: Vec<&str> = all.iter().map(|drawing| drawing.name.as_str()).collect();
        for expected in ["exits-whole-run.svg", "exits-0.svg", "boot.svg", "regions.svg"] {
            assert!(names.contains(&expected), "{names:?}");
        }
        let distinct: std::collections::BTreeSet<&&str> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        for Drawing { name, svg } in &all {
            assert!(
                svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"940\""),
                "{name}"
            );
            assert!(!svg.contains("var(--") && svg.matches("<svg").count() == 1, "{name}");
            let html = Html::parse_fragment(svg);
            assert_eq!(html.errors, Vec::<String>::new(), "{name}");
            let count = |selector: &str| html.select(&Selector::parse(selector).unwrap()).count();
            assert_eq!((count("svg > title"), count("svg > g")), (1, 1), "{name}");
            // Both runs are named.
            assert!(svg.contains("B: kvm, penryn"), "{name}");
        }
        let exits = &all[0].svg;
        assert!(exits.contains(GROUPS[1].name) && exits.contains("Exits in the whole run"));
    }

    #[test]
    fn a_single_run_needs_no_letter_and_what_was_not_counted_no_drawing() {
        let all = drawings(&[umbra()], None);
        assert!(all.iter().all(|drawing| !drawing.svg.contains("A: ")));
        assert!(all.iter().all(|drawing| !drawing.name.starts_with("boot")));
    }

    #[test]
    fn a_legend_stays_within_the_drawing() {
        let long: Vec<Entry> =
            (0..9).map(|n| (Some(SERIES[0]), format!("{n}").repeat(40))).collect();
        let text = file("title", (String::new(), 100), &long).into_string();
        let html = Html::parse_fragment(&text);
        for element in html.select(&Selector::parse("svg > text[font-size='12']").unwrap()) {
            let left: i32 = element.attr("x").unwrap().parse().unwrap();
            assert!(left + 40 * CHARACTER <= Form::Wide.width());
        }
    }
}
