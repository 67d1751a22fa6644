//! The report as one HTML file that needs nothing else.

use maud::{Markup, html};
use umbra::html::document::{document, facts};
use umbra::untrusted::escape;
use umbra_trial::judge::Tally;

use super::campaign::State;
use super::finding::LIMITS;

/// The page. `texts` has what is written about each finding.
pub fn page(state: &State, texts: &[String]) -> String {
    let heading = format!("{} on trial", state.suspect);
    let body = html! {
        (overview(state))
        @for (number, text) in (1..).zip(texts) {
            section {
                h2 { "Finding " (number) }
                pre.scroll tabindex="0" { (escape(text)) }
            }
        }
        section { h2 { "What cannot be seen" } p { (LIMITS) } }
    };
    document(&heading, &heading, &body)
}

fn overview(state: &State) -> Markup {
    let State { programs, tally, seconds, .. } = state;
    let Tally { steps, judged, excused, faults, defects } = tally;
    let mut list = vec![
        ("CPU", state.cpu.clone()),
        ("programs", format!("{programs}, {}", state.numbers())),
        ("steps", format!("{steps}, in {seconds:.0} seconds")),
        ("accesses judged", format!("{judged}, {faults} of them page faults")),
        ("not judged", excused.to_string()),
    ];
    if *defects > 0 {
        list.push(("known defects of the emulator", format!("met {defects} times")));
    }
    if let Some(coverage) = &state.coverage {
        list.push(("code", coverage.clone()));
    }
    list.push(("repeat", format!("cargo xtask trial {} --seed {}", state.options, state.seed)));
    html! {
        section {
            @if state.findings.is_empty() { p { "Nothing was found." } } @else { (table(state)) }
            (facts(&list))
        }
    }
}

fn table(state: &State) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        th { "Finding" }
                        th.name { "symptom" }
                        @for name in ["program", "programs before", "after", "steps", "seen"] {
                            th { (name) }
                        }
                    }
                }
                tbody {
                    @for (number, finding) in (1..).zip(&state.findings) {
                        tr {
                            th { (number) }
                            td.name { (escape(&finding.symptom)) }
                            td { (finding.seed) }
                            td { (finding.after_programs) }
                            td { (format!("{:.0} s", finding.after_seconds)) }
                            td { (finding.length) }
                            td { (finding.times) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use scraper::{Html, Selector};

    use super::super::campaign::tests::state;
    use super::*;

    fn parsed(state: &State, texts: &[String]) -> Html {
        let html = Html::parse_document(&page(state, texts));
        assert_eq!(html.errors, Vec::<String>::new());
        for outside in ["[src]", "[href]", "script", "link"] {
            assert_eq!(all(&html, outside).len(), 0, "{outside}");
        }
        html
    }

    fn all(html: &Html, selector: &str) -> Vec<String> {
        let selector = Selector::parse(selector).unwrap();
        html.select(&selector).map(|element| element.text().collect()).collect()
    }

    #[test]
    fn a_page_tells_whether_something_was_found() {
        let clean = parsed(&state(1, 9, &[]), &[]);
        assert!(all(&clean, "section p").contains(&"Nothing was found.".into()));
        assert!(all(&clean, "table").is_empty());
        assert!(all(&clean, "dd").contains(&"2000, 900 of them page faults".into()));
    }

    #[test]
    fn what_a_kernel_prints_stays_text() {
        let text = String::from("Finding 1\nlog: <b>\u{1b}[2J & all\n");
        let html = parsed(&state(1, 9, &[("host: BUG <x>", 4)]), &[text]);
        assert_eq!(all(&html, "td.name"), ["host: BUG <x>"]);
        assert_eq!(all(&html, "pre"), ["Finding 1\nlog: <b>\\u{1b}[2J & all\n"]);
        assert!(all(&html, "b").is_empty());
    }
}
