//! What all pages for people share: the frame, the colours, how a time is shown.
//!
//! Promises: plain HTML without scripts, readable in dark and light and on a phone; what a service or a configuration
//! said cannot become markup, because maud escapes it.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #666; --back: #8882; --ok: #1a7f37; --warn: #9a6700; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --soft: #9aa; --ok: #3fb950; --warn: #d29922; --bad: #ff6b63; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } nav a { display: inline-block; margin-right: 1rem; }
";

/// A whole page. `style` is what this page needs more than the others. `refresh`: the browser asks again after so many
/// seconds.
pub(super) fn page(title: &str, style: &str, refresh: Option<u32>, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if let Some(seconds) = refresh { meta http-equiv="refresh" content=(seconds); }
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(style)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

/// A moment, as it is.
pub(super) struct Moment(pub(super) DateTime<Utc>);

impl Render for Moment {
    fn render(&self) -> Markup {
        html! { time datetime=(self.0.to_rfc3339()) { (self.0.format("%Y-%m-%d %H:%M:%S UTC").to_string()) } }
    }
}

/// How long ago a moment was, or will be.
pub(super) fn ago(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Markup {
    let Some(at) = at else { return html! { span.soft { "never" } } };
    let exact = at.to_rfc3339();
    html! {
        time datetime=(exact) title=(exact) {
            @if at > now { "in " (span(at - now)) } @else { (span(now - at)) " ago" }
        }
    }
}

/// A time span, to the two units that matter.
pub(super) fn span(time: TimeDelta) -> String {
    let seconds = time.num_seconds();
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
