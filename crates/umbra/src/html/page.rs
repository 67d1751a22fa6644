//! The page.

use maud::{Markup, PreEscaped, html};
use umbra_telemetry::ExitCause;

use super::chart::{self, Colour, Form, HEAT, SERIES, short};
use super::document::{Fact, document, facts};
use super::groups::{ByGroup, GROUPS, group_of};
use super::history::{HOST_FAULTS, History};
use super::panels::{self, EXITS, INSTRUCTIONS, Measure, Panel, letter};
use crate::compare::{describe, differences, differences_of_trace};
use crate::report::{Exits, Named, Statistics};
use crate::untrusted::Untrusted;

/// The whole page.
pub fn page(results: &[Named], history: Option<&History>) -> String {
    let body = html! {
        (overview(results, history))
        (operations(results))
        (instructions(results))
        (boot(history))
        (heat(history))
        (figures(results))
        (causes(results))
        (runs(results, history))
    };
    document("Umbra: exits by cause", "Exits by cause", &body)
}

/// The first screen: what was measured, and the whole runs.
fn overview(results: &[Named], history: Option<&History>) -> Markup {
    let seen = seen(results.iter().filter_map(|result| result.statistics.groups()));
    let (several, panel) = (results.len() > 1, EXITS.whole_run(results));
    html! {
        section {
            @match panel {
                Some(panel) => {
                    (bars("whole", &panel, results.len()))
                    (legend(&seen))
                }
                None => p { "No run has counted its exits." }
            }
            @if several {
                ul.legend {
                    @for (index, label) in labels(results).into_iter().enumerate() { li { b { (letter(index)) } ": " (label) } }
                }
            } @else { p.quiet { (label(&results[0])) } }
            (absent(EXITS, results))
        }
        (unequal(results, history))
    }
}

/// Which runs have no bars, said once.
fn absent(measure: Measure, results: &[Named]) -> Markup {
    let absent: Vec<String> =
        measure.absent(results).map(|index| letter(index).to_string()).collect();
    html! {
        @if !absent.is_empty() && absent.len() < results.len() {
            p.quiet { (absent.join(", ")) " counted no " (measure.unit) "." }
        }
    }
}

/// What groups of causes there are in a picture.
pub(super) fn seen(all: impl Iterator<Item = ByGroup>) -> ByGroup {
    let mut seen = ByGroup::default();
    all.for_each(|groups| add(&mut seen, &groups));
    seen
}

/// What keeps the runs from being compared as they stand.
fn unequal(results: &[Named], history: Option<&History>) -> Markup {
    let mut sentences = differences(results, |index| letter(index).to_string());
    if let (Some(history), Some(first)) = (history, results.first()) {
        let name = if results.len() > 1 { letter(0).to_string() } else { "the result".into() };
        sentences.extend(differences_of_trace(&history.head, &first.statistics, &name));
    }
    html! {
        @if !sentences.is_empty() {
            section.unequal {
                h2 { "These runs are not equal" }
                ul { @for sentence in sentences { li { (sentence) } } }
            }
        }
    }
}

fn runs(results: &[Named], history: Option<&History>) -> Markup {
    let runs: Vec<Vec<Fact>> = results.iter().map(of_result).collect();
    let is_common = |(name, value): &Fact| {
        runs.iter().all(|run| run.iter().any(|(other, theirs)| other == name && theirs == value))
    };
    let common: Vec<Fact> = runs[0].iter().filter(|fact| is_common(fact)).cloned().collect();
    html! {
        section {
            h2 { "Machine and versions" }
            @if results.len() > 1 && !common.is_empty() {
                h3 { "In all runs" }
                (facts(&common))
            }
            div.runs {
                @for (index, (result, run)) in results.iter().zip(&runs).enumerate() {
                    @let own: Vec<Fact> = run.iter().filter(|fact| results.len() == 1 || !is_common(fact)).cloned().collect();
                    div {
                        h3 { @if results.len() > 1 { (letter(index)) ": " } (label(result)) }
                        (facts(&own))
                    }
                }
                @if let Some(history) = history {
                    div { h3 { "Trace" } (facts(&of_trace(history))) }
                }
            }
        }
    }
}

/// What was measured, in few words.
fn label(result: &Named) -> String {
    let Statistics { hypervisor, guest_faults, without, machine, .. } = &result.statistics;
    match hypervisor.as_str() {
        "none" => format!("no hypervisor, {machine}"),
        _ => describe(hypervisor, guest_faults, without, machine),
    }
}

/// The labels of all runs, with the names of their files where labels alone are not distinct.
pub(super) fn labels(results: &[Named]) -> Vec<String> {
    let labels: Vec<String> = results.iter().map(label).collect();
    let is_distinct = |label: &String| labels.iter().filter(|other| *other == label).count() == 1;
    let named = |(label, result): (&String, &Named)| {
        if is_distinct(label) { label.clone() } else { format!("{label} ({})", result.name) }
    };
    labels.iter().zip(results).map(named).collect()
}

/// The exits of the run by one cause, if they were counted.
fn of_cause(result: &Named, cause: ExitCause) -> Option<u64> {
    result.statistics.exits.as_ref()?.get(cause)
}

/// All exits of the run, if they were counted.
fn total(result: &Statistics) -> Option<u64> {
    result.exits.as_ref().map(Exits::total)
}

fn of_result(result: &Named) -> Vec<Fact> {
    let Named { name, statistics: result } = result;
    let mut facts = vec![
        ("File", name.to_string()),
        ("Hypervisor", result.hypervisor.to_string()),
        ("Machine", result.machine.to_string()),
        ("Memory", format!("{} MiB", result.memory)),
        ("Kernel", result.kernel.to_string()),
        ("Command line", result.cmdline.to_string()),
        ("Guest faults", result.guest_faults.to_string()),
        (
            "Switched off",
            if result.without.is_empty() { "nothing".into() } else { joined(&result.without) },
        ),
        (
            "Page-fault filter",
            result.filter.as_ref().map_or_else(|| "not known".into(), Untrusted::to_string),
        ),
        ("Umbra", result.version.to_string()),
        ("Guest's end", result.guest_exit.to_string()),
        ("Exits", whole(total(result))),
        ("Instructions", whole(result.instructions)),
    ];
    if let Some((detached, attached)) =
        result.mmu.and_then(|mmu| Some((mmu.detached?, mmu.attached?)))
    {
        let [detached, attached] = [detached, attached].map(|count| whole(Some(count)));
        facts.push(("Page tables", format!("detached {detached}, attached {attached}")));
    }
    if let Some((pages, bytes)) =
        result.mmu.and_then(|mmu| Some((mmu.live_pages?, mmu.metadata_bytes?)))
    {
        let [pages, kib] = [pages, bytes >> 10].map(|count| whole(Some(count)));
        facts.push(("Shadow MMU", format!("{pages} pages at the end, {kib} KiB of metadata")));
    }
    if let Some(emulator) = result.emulator {
        let of_emulator = format!(
            "{:.0} s on the host, {:.0} MiB at most",
            emulator.seconds, emulator.peak_memory
        );
        facts.push(("Emulator", of_emulator));
    }
    facts
}

fn of_trace(history: &History) -> Vec<Fact> {
    let head = &history.head;
    vec![
        ("File", history.file.to_string()),
        ("Machine", head.machine.to_string()),
        ("Memory", format!("{} MiB", head.memory)),
        ("Kernel", head.kernel.to_string()),
        ("Command line", head.cmdline.to_string()),
        ("Guest faults", format!("{} (asked for)", head.guest_faults)),
        (
            "Switched off",
            if head.without.is_empty() { "nothing".into() } else { joined(&head.without) },
        ),
        ("Umbra", head.version.to_string()),
        ("Guest's end", history.tail.guest_exit.to_string()),
        ("Exits", whole(Some(history.exits))),
        ("Records lost", whole(Some(history.lost))),
    ]
}

/// Names behind each other.
fn joined(names: &[Untrusted]) -> String {
    names.iter().map(Untrusted::to_string).collect::<Vec<_>>().join(", ")
}

fn operations(results: &[Named]) -> Markup {
    let phases = results.iter().flat_map(|result| &result.statistics.phases);
    let seen = seen(phases.filter_map(|phase| phase.groups()));
    let panels = EXITS.panels(results);
    html! {
        section {
            h2 { "Exits per operation, by cause" }
            @if panels.is_empty() { p { "No phase has counted its exits." } } @else {
                p.quiet { "A bar for each phase of the workload" @if results.len() > 1 { " and each run" }
                    "; phases of like size share an axis." }
                (legend(&seen))
                @for (index, panel) in panels.iter().enumerate() { (bars(&format!("exits{index}"), panel, results.len())) }
            }
            details {
                summary { "What the causes are" }
                dl { @for group in GROUPS { dt { (group.name) } dd { (group.about) } } }
            }
        }
    }
}

/// What exits alone do not say: what all of it costs.
fn instructions(results: &[Named]) -> Markup {
    let panels: Vec<Panel> =
        INSTRUCTIONS.panels(results).into_iter().chain(INSTRUCTIONS.whole_run(results)).collect();
    html! {
        section {
            h2 { "Instructions per operation" }
            @if panels.is_empty() { p { "No run has counted its instructions." } } @else {
                p.quiet { "Instructions of guest and hypervisor together: they also show what exits cost, and what it costs to avoid them." }
                (absent(INSTRUCTIONS, results))
                @for (index, panel) in panels.iter().enumerate() {
                    (bars(&format!("instructions{index}"), panel, results.len()))
                }
            }
        }
    }
}

fn bars(id: &str, panel: &Panel, results: usize) -> Markup {
    let names: Vec<&str> = panel.rows.iter().map(|row| row.name.as_str()).collect();
    let about = format!(
        "Bars of {} for {}{}. The figures are in the tables below.",
        panel.unit,
        names.join(", "),
        if results > 1 { ", one for each run that has counted them" } else { "" }
    );
    html! {
        h3 { (panel.title) }
        figure { (drawings(id, &panel.title, &about, |form| {
            chart::bars(form, &panel.rows, &panel.unit, results > 1)
        })) }
    }
}

/// A drawing in all forms, of which the style sheet shows one.
fn drawings(id: &str, title: &str, about: &str, draw: impl Fn(Form) -> (String, i32)) -> Markup {
    html! {
        @for form in Form::ALL {
            @let (inner, height) = draw(form);
            @let id = format!("{id}-{}", form.class());
            svg class=(form.class()) viewBox=(format!("0 0 {} {height}", form.width())) role="img"
                aria-labelledby=(format!("{id}-title {id}-about")) {
                title id=(format!("{id}-title")) { (title) }
                desc id=(format!("{id}-about")) { (about) }
                (PreEscaped(inner))
            }
        }
    }
}

fn legend(seen: &ByGroup) -> Markup {
    html! {
        ul.legend {
            @for ((group, colour), count) in GROUPS.iter().zip(SERIES).zip(seen) {
                @if *count > 0 { li { (swatch(colour)) (group.name) } }
            }
        }
    }
}

fn swatch(colour: Colour) -> Markup {
    html! { i style=(format!("background:var(--{})", colour.name)) {} }
}

fn boot(history: Option<&History>) -> Markup {
    let title = "Exits through the boot";
    let Some(history) = history else {
        return without_trace(title);
    };
    let slices = &history.boot;
    let mut seen: ByGroup = [0; GROUPS.len()];
    slices.slices.iter().for_each(|groups| add(&mut seen, groups));
    let exits: u64 = seen.iter().sum();
    let about = format!(
        "Stacked columns of exits per million ticks by cause, from guest entry to tick {}. The figures are in the table below.",
        slices.end
    );
    html! {
        section {
            h2 { (title) }
            p.quiet {
                @if history.boot_end.is_some() { "From guest entry to the guest's first mark: " }
                @else { "The guest made no mark where its boot ends, so this is the whole trace: " }
                (whole(Some(exits))) " exits in " (short(slices.end as f64))
                " ticks (in Bochs a tick is an instruction). A column is " (short(slices.width as f64)) " ticks."
            }
            (lost(history))
            @if slices.slices.is_empty() { p { "There is no exit in it." } } @else {
                (legend(&seen))
                figure { (drawings("boot", title, &about, |form| chart::timeline(form, slices))) }
                details {
                    summary { "The figures of each column" }
                    (scroll(title, &html! { table {
                        thead { tr { th { "from tick" } th { "to tick" } th { "exits" }
                            @for group in GROUPS { th { (group.name) } } } }
                        tbody { @for (n, groups) in slices.slices.iter().enumerate() {
                            @let (start, end) = slices.times(n);
                            tr { th scope="row" { (whole(Some(start))) } td { (whole(Some(end))) }
                                td { (whole(Some(groups.iter().sum()))) }
                                @for count in groups { td { (whole(Some(*count))) } } }
                        } }
                    } }))
                }
            }
        }
    }
}

fn heat(history: Option<&History>) -> Markup {
    let title = "Host faults by region of guest-virtual memory";
    let Some(history) = history else {
        return without_trace(title);
    };
    let heat = &history.heat;
    let faults: u64 = heat.by_cause.iter().flatten().sum();
    let most = heat.over_time.slices.iter().flatten().copied().max().unwrap_or(0);
    let about = format!(
        "Heat map of {} regions over time, from guest entry to tick {}. The figures are in the table below.",
        heat.regions.len(),
        heat.over_time.end
    );
    let steps = chart::steps(most);
    html! {
        section {
            h2 { (title) }
            p.quiet {
                (whole(Some(faults))) " faults that are the hypervisor's, over the whole run. A row is a region, smaller where there is more; \
                a cell is " (short(heat.over_time.width as f64)) " ticks. Below 0000800000000000 is the user half."
            }
            (lost(history))
            @if heat.regions.is_empty() { p { "There is no host fault in the trace." } } @else {
                ul.legend {
                    li { "host faults in a cell:" }
                    @for (n, colour) in HEAT.into_iter().enumerate().filter(|&(n, _)| steps[n] <= most) {
                        li { (swatch(colour)) (step(&steps, n, most)) }
                    }
                }
                figure { (drawings("heat", title, &about, |form| chart::heat(form, heat, history.boot_end))) }
                details {
                    summary { "The figures of each region" }
                    (scroll(title, &html! { table {
                        thead { tr { th { "region" } th { "size" } th { "host faults" }
                            @for cause in HOST_FAULTS { th { (breakable(cause.name())) } } } }
                        tbody { @for (region, counts) in heat.regions.iter().zip(&heat.by_cause) {
                            tr { th.mono scope="row" { (format!("{:016x}", region.start)) } td { (region.size()) }
                                td { (whole(Some(counts.iter().sum()))) }
                                @for count in counts { td { (whole(Some(*count))) } } }
                        } }
                    } }))
                }
            }
        }
    }
}

/// The counts that have a colour.
pub(super) fn step(steps: &[u64], n: usize, most: u64) -> String {
    let last = steps.get(n + 1).map_or(most, |next| (next - 1).min(most));
    if steps[n] == last {
        whole(Some(last))
    } else {
        format!("{} to {}", whole(Some(steps[n])), whole(Some(last)))
    }
}

fn without_trace(title: &str) -> Markup {
    html! {
        section {
            h2 { (title) }
            p { "This needs a trace, and none was given: run the guest with " code { "umbra run --trace FILE" }
                " and make the report with " code { "--trace FILE" } "." }
        }
    }
}

fn lost(history: &History) -> Markup {
    html! {
        @if history.lost > 0 {
            p { (whole(Some(history.lost))) " records of the trace were lost or dropped, so the figures are too small." }
        }
    }
}

fn figures(results: &[Named]) -> Markup {
    let names = panels::names(results);
    let title = "Figures by phase";
    html! {
        section {
            h2 { (title) }
            @if names.is_empty() { p { "The guest marked no phases." } } @else {
                p.quiet { "Exits and instructions per operation; where no operations are counted, their sums. " (UNKNOWN) }
                (scroll(title, &html! { table {
                    thead { tr {
                        th { "phase" }
                        @if results.len() > 1 { th.name { "run" } }
                        th { "operations" } th { "exits" }
                        @for group in GROUPS { th { (group.name) } }
                        th { "instructions" }
                    } }
                    tbody { @for name in names { @for (index, result) in results.iter().enumerate() {
                        @let phase = result.statistics.phase(name);
                        @let ops = phase.map_or(1, |phase| phase.ops.max(1)) as f64;
                        @let groups = phase.and_then(|phase| phase.groups());
                        @let sums = phase.is_some_and(|phase| phase.ops == 0);
                        @let per = |count: Option<u64>| if sums { whole(count) } else {
                            count.map_or("–".into(), |count| per_operation(count as f64 / ops))
                        };
                        tr {
                            th scope="row" { (name) }
                            @if results.len() > 1 { td.name { (letter(index)) } }
                            td { @match phase { Some(phase) if phase.ops > 0 => (whole(Some(phase.ops))), _ => "–" } }
                            td { (per(groups.map(|groups| groups.iter().sum()))) }
                            @for n in 0..GROUPS.len() { td { (per(phase.and_then(|phase| phase.group(n)))) } }
                            td { (phase.and_then(|phase| phase.instructions).map_or("–".into(), |count| short(count as f64 / ops))) }
                        }
                    } } }
                } }))
            }
        }
    }
}

const UNKNOWN: &str = "A dash is what was not counted.";

fn causes(results: &[Named]) -> Markup {
    let title = "Figures of the whole run";
    let any = |cause: ExitCause| {
        results.iter().any(|result| of_cause(result, cause).is_some_and(|count| count > 0))
    };
    html! {
        section {
            h2 { (title) }
            p.quiet { "Exits of the whole run by cause; causes that no run had are left out. " (UNKNOWN) }
            (scroll(title, &html! { table {
                thead { tr { th { "cause" }
                    @for index in 0..results.len() {
                        th { @if results.len() > 1 { (letter(index)) } @else { "exits" } }
                    }
                    th.name { "shown as" } } }
                tbody {
                    @for &cause in ExitCause::ALL.iter().filter(|&&cause| any(cause)) {
                        tr { th scope="row" { (cause.name()) }
                            @for result in results { td { (whole(of_cause(result, cause))) } }
                            td.name { (GROUPS[group_of(cause)].name) } }
                    }
                    tr { th scope="row" { b { "total" } }
                        @for result in results { td { b { (whole(total(&result.statistics))) } } }
                        td {} }
                }
            } }))
        }
    }
}

/// A name that may go on in the next line after each of its parts.
fn breakable(name: &str) -> Markup {
    html! { @for part in name.split_inclusive('_') { (part) wbr; } }
}

/// A box in which what is too wide scrolls, also by keyboard.
fn scroll(label: &str, inner: &Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(label) { (inner) } }
}

fn add(sum: &mut ByGroup, groups: &ByGroup) {
    sum.iter_mut().zip(groups).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
}

/// Two digits behind the point where they say something.
fn per_operation(value: f64) -> String {
    if value >= 1000.0 || value == 0.0 {
        whole(Some(value.round() as u64))
    } else {
        format!("{value:.2}")
    }
}

/// A count with its digits in threes.
fn whole(count: Option<u64>) -> String {
    let Some(count) = count else { return "–".into() };
    let digits = count.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use scraper::{Html, Selector};

    use super::super::groups::tests::{kvm, umbra};
    use super::super::history::tests::history;
    use super::*;

    fn parsed(results: &[Named], history: Option<&History>) -> (String, Html) {
        let text = page(results, history);
        let html = Html::parse_document(&text);
        assert_eq!(html.errors, Vec::<String>::new());
        (text, html)
    }

    fn count(html: &Html, selector: &str) -> usize {
        html.select(&Selector::parse(selector).unwrap()).count()
    }

    fn all_pages() -> Vec<(String, Html)> {
        let history = history();
        let mut without_phases = umbra();
        without_phases.statistics.phases.clear();
        vec![
            parsed(&[umbra()], None),
            parsed(&[umbra(), kvm()], Some(&history)),
            parsed(&[without_phases], Some(&history)),
        ]
    }

    #[test]
    fn it_is_well_formed_and_needs_nothing_from_outside() {
        assert!(
            !Html::parse_document("<!DOCTYPE html><p></b>").errors.is_empty(),
            "the parser names no errors"
        );
        for (text, html) in all_pages() {
            for outside in ["http:", "https:", "url(", "@import", "//"] {
                assert!(!text.contains(outside), "{outside}");
            }
            for selector in
                ["[src]", "[href]", "script", "link", "iframe", "image", "[xlink\\:href]"]
            {
                assert_eq!(count(&html, selector), 0, "{selector}");
            }
        }
    }

    #[test]
    fn every_drawing_has_words_and_every_id_is_one() {
        for (_, html) in all_pages() {
            let drawings = count(&html, "svg");
            assert!(drawings >= 2);
            assert_eq!(count(&html, "svg[role=img][aria-labelledby] > title"), drawings);
            assert_eq!(count(&html, "svg > desc"), drawings);
            for form in Form::ALL {
                let of_form = count(&html, &format!("svg.{}", form.class()));
                assert_eq!(of_form * Form::ALL.len(), drawings);
            }
            let with_id = Selector::parse("[id]").unwrap();
            let ids: Vec<&str> =
                html.select(&with_id).filter_map(|element| element.attr("id")).collect();
            let distinct: std::collections::BTreeSet<&&str> = ids.iter().collect();
            assert_eq!(ids.len(), distinct.len());
            for svg in html.select(&Selector::parse("svg").unwrap()) {
                let named: Vec<&str> = svg.attr("aria-labelledby").unwrap().split(' ').collect();
                assert!(named.iter().all(|name| ids.contains(name)), "{named:?}");
            }
        }
    }

    #[test]
    fn the_first_thing_is_a_picture_and_nothing_is_said_for_each_row() {
        let mut bare = umbra();
        bare.statistics.hypervisor = "none".into();
        bare.statistics.exits = None;
        bare.statistics.phases.iter_mut().for_each(|phase| phase.exits = None);
        let (text, html) = parsed(&[umbra(), bare], None);
        let body = text.split_once("<main>").unwrap().1;
        assert!(body.find("<svg") < body.find("<h2"), "a heading stands before the first picture");
        // Where the tables begin, one sentence says what their dashes are.
        assert!(!text.split_once("Figures by phase").unwrap().0.contains("not counted"));
        assert_eq!(text.matches("B counted no exits.").count(), 1);
        let sections = Selector::parse("section > h2").unwrap();
        let heads: Vec<String> = html.select(&sections).map(|head| head.text().collect()).collect();
        assert!(heads.contains(&"Instructions per operation".into()), "{heads:?}");
        assert_eq!(heads.last().unwrap(), "Machine and versions");
    }

    #[test]
    fn runs_of_one_kind_are_told_apart_by_their_files() {
        let mut second = umbra();
        second.name = "second.json".into();
        let both = labels(&[umbra(), second, kvm()]);
        assert!(both[0].ends_with(" (a.json)") && both[1].ends_with(" (second.json)"), "{both:?}");
        assert!(!both[2].contains(".json"));
    }

    #[test]
    fn what_all_runs_have_in_common_is_said_once() {
        let (text, _) = parsed(&[umbra(), umbra()], None);
        assert_eq!(text.matches("6.1 &lt;x&gt;").count(), 1);
        let mut other = umbra();
        other.statistics.memory = 64;
        let (text, _) = parsed(&[umbra(), other], None);
        let facts = text.split_once("In all runs").unwrap().1;
        assert_eq!((facts.matches("192 MiB").count(), facts.matches("64 MiB").count()), (1, 1));
        let (text, _) = parsed(&[umbra()], None);
        assert!(!text.contains("In all runs") && text.contains("6.1 &lt;x&gt;"));
    }

    #[test]
    fn every_colour_of_a_drawing_has_a_rule() {
        let css = chart::css();
        for (_, html) in all_pages() {
            for attribute in ["fill", "stroke"] {
                let with = Selector::parse(&format!("svg [{attribute}]")).unwrap();
                for colour in html.select(&with).filter_map(|element| element.attr(attribute)) {
                    let rule = format!("svg [{attribute}=\"{colour}\"]");
                    assert!(colour == "none" || css.contains(&rule), "{rule}");
                }
            }
        }
    }

    #[test]
    fn without_a_trace_it_says_so() {
        let (text, _) = parsed(&[umbra()], None);
        assert_eq!(text.matches("This needs a trace").count(), 2);
        let (text, html) = parsed(&[umbra()], Some(&history()));
        assert!(!text.contains("This needs a trace"));
        assert!(text.contains("3 records of the trace were lost"));
        assert_eq!(count(&html, "svg[aria-labelledby^=heat]"), Form::ALL.len());
    }

    #[test]
    fn the_tables_have_the_figures() {
        let (text, html) = parsed(&[umbra(), kvm()], None);
        let cells = Selector::parse("table tr").unwrap();
        let rows: Vec<Vec<String>> = html
            .select(&cells)
            .map(|row| {
                let cell = Selector::parse("th, td").unwrap();
                row.select(&cell).map(|cell| cell.text().collect()).collect()
            })
            .collect();
        let of = |first: &str| rows.iter().filter(|row| row[0] == first).collect::<Vec<_>>();
        assert_eq!(of("demand")[0][..4], ["demand", "A", "100", "1.01"]);
        assert_eq!(of("demand")[1][..4], ["demand", "B", "100", "–"]);
        assert_eq!(of("cpuid")[0][1..3], ["700", "–"]);
        assert_eq!(of("total")[0][1..3], ["1,101", "100"]);
        // What comes from a file is text.
        assert!(text.contains("6.1 &lt;x&gt;") && text.contains("&quot;a&amp;b&quot;"));
    }

    #[test]
    fn runs_that_are_not_equal_are_named_before_the_figures() {
        let mut other = kvm();
        other.statistics.cmdline = "console=ttyS0 quiet".into();
        let (text, html) = parsed(&[umbra(), other], None);
        // Kernel and command line.
        assert_eq!(count(&html, "section.unequal li"), 2);
        assert!(text.find("These runs are not equal") < text.find("Exits per operation"));
        let (_, html) = parsed(&[umbra(), umbra()], None);
        assert_eq!(count(&html, "section.unequal"), 0);
    }

    #[test]
    fn what_a_file_says_is_escaped_and_cut() {
        let mut result = umbra();
        result.statistics.machine = "\u{1b}[31m<b>".into();
        result.statistics.kernel = "x".repeat(5000).into();
        let (text, _) = parsed(&[result], None);
        assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[31m&lt;b&gt;"));
        assert!(text.contains("x... (4800 characters more)") && !text.contains(&"x".repeat(300)));
    }

    #[test]
    fn digits_in_threes() {
        let all = [Some(0), Some(999), Some(1000), Some(1_234_567), None].map(whole);
        assert_eq!(all, ["0", "999", "1,000", "1,234,567", "–"]);
        assert_eq!([0.0, 0.5, 999.0, 1281.1].map(per_operation), ["0", "0.50", "999.00", "1,281"]);
    }
}
