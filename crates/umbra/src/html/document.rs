//! The frame of a page: one file that needs nothing else. `cargo xtask trial` writes such pages,
//! too.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart;

const STYLE: &str = include_str!("style.css");

/// A page with this title, for a reader who has many of them, and this heading.
pub fn document(title: &str, heading: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(chart::css())) (PreEscaped(STYLE)) }
            }
            body { main { h1 { (heading) } (body) } }
        }
    };
    page.into_string()
}

/// A fact: its name, and what it is.
pub type Fact = (&'static str, String);

/// A list of facts.
pub fn facts(facts: &[Fact]) -> Markup {
    html! { dl { @for (name, value) in facts { dt { (name) } dd { (value) } } } }
}
