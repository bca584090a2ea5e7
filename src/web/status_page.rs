//! The status page: what an engineer looks at first at three in the morning.
//!
//! Promises: one row per source, and on a phone one block; what is wrong with a source stands right below its name, whole
//! and as large as everything else; on a phone the sources that cannot be read come first.
//!
//! Leaves to others: whether an error still stands (`stats.rs`), the frame and the escaping (`html.rs`).

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::html::{Moment, ago, page, span};
use crate::exporter::{SourceStatus, Status};

/// Below this width a table with nine columns cannot be read: each row becomes a block of two columns. The boxes of its
/// rows are dissolved (`contents`), so that the trouble can be put before the numbers.
const STYLE: &str = "
body { max-width: 76rem; } h1 { margin: 0; } p { max-width: 60rem; } .soft, th { color: var(--soft); }
header { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: baseline; margin-bottom: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .9rem .45rem 0; vertical-align: top; overflow-wrap: normal; }
tbody { border-bottom: 1px solid var(--line); } th { font-weight: 600; font-size: .85rem; }
th.number, td.number { text-align: right; padding-right: 1.6rem; } td.state { white-space: nowrap; }
.state { font-weight: 600; } .ok { color: var(--ok); } .starting, .catching_up, .throttled { color: var(--warn); } .error { color: var(--bad); }
td.notes { padding-top: 0; overflow-wrap: anywhere; } td.notes p { margin: 0 0 .35rem; }
.trouble { border-left: 3px solid var(--bad); padding-left: .6rem; }
@media (max-width: 699px) {
  body { margin: 1rem auto; } table { display: flex; flex-direction: column; } thead { display: none; }
  tbody { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem 1rem; padding: .8rem 0; } tbody.failing { order: -1; }
  tr, td.notes { display: contents; } td { padding: 0; overflow-wrap: anywhere; } td.number { text-align: left; padding: 0; }
  td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .8rem; }
  td.name, td.state { font-size: 1.1rem; order: -2; } td.state { text-align: right; }
  td.name::before, td.state::before, td.notes::before { content: none; }
  td.notes p { grid-column: 1 / -1; margin: 0; } td.notes .trouble { order: -1; }
}
";

/// The whole page.
pub(super) fn render(status: &Status) -> String {
    let failing: Vec<&SourceStatus> = status.sources.iter().filter(|source| fails(source)).collect();
    let title = match failing.len() {
        0 => "audit-exporter".to_owned(),
        number => format!("{number} failing – audit-exporter"),
    };
    let body = html! {
        (head(status.version, crate::metrics::revision()))
        @if !failing.is_empty() {
            p {
                b.error { (failing.len()) " of " (count(status.sources.len(), "source")) " cannot be read:" }
                @for source in failing { " " a href={ "#" (source.name) } { (source.name) } }
            }
        }
        @if let Some(held) = &status.held { p { (held.told(status.now)) "." } }
        @if let Some(behind) = behind(&status.sources) { p { (behind) } }
        table {
            thead {
                tr {
                    th { "Source" } th { "System" } th { "State" } th.number { "Events" } th { "Last success" }
                    th { "Last event" } th { "Counted up to" } th { "Rate budget" } th { "Next poll" }
                }
            }
            @for source in &status.sources { (row(source, status.now)) }
        }
        p.soft {
            "Audit events of " (count(status.sources.len(), "source")) ", each counted exactly once. Sources are polled on \
             the exporter's own timer; what is shown has been committed. Now " (Moment(status.now)) "."
        }
    };
    page(&title, STYLE, Some(15), &body)
}

/// Links without a `/` at their beginning: they also work behind a proxy that adds a path.
fn head(version: &str, revision: &str) -> Markup {
    html! {
        header {
            h1 { "audit-exporter" }
            span.soft title=(revision) { "version " (version) ", revision " (short(revision)) }
            nav {
                a href="metrics" { "metrics" }
                a href="api/v1/status" { "status as JSON" }
                a href="runbooks/" { "runbooks" }
                a href="-/healthy" { "healthy" }
                a href="-/ready" { "ready" }
            }
        }
    }
}

fn fails(source: &SourceStatus) -> bool {
    matches!(source.state, "error" | "throttled")
}

fn row(source: &SourceStatus, now: DateTime<Utc>) -> Markup {
    let notes = notes(source, now);
    html! {
        tbody id=(source.name) class=[fails(source).then_some("failing")] {
            tr {
                td.name { b { (source.name) } }
                td data-label="System" { (source.system) }
                td.state.(source.state) { (source.state.replace('_', " ")) }
                td.number data-label="Events" { (grouped(source.events)) }
                td data-label="Last success" { (ago(source.last_success, now)) }
                td data-label="Last event" {
                    @if source.last_event.is_none() && source.events > 0 { span.soft { "unknown" } }
                    @else { (ago(source.last_event, now)) }
                }
                td data-label="Counted up to" { (ago(source.watermark, now)) }
                td data-label="Rate budget" { (budget(source)) }
                td data-label="Next poll" {
                    @match source.next_poll.map(|at| at - now).filter(|wait| *wait > TimeDelta::zero()) {
                        Some(wait) => { "in " (span(wait)) }
                        None => { "now" }
                    }
                }
            }
            @if !notes.is_empty() {
                tr { td.notes colspan="9" { @for note in notes { (note) } } }
            }
        }
    }
}

/// What is to know of a source beside its numbers, the worst first.
fn notes(source: &SourceStatus, now: DateTime<Utc>) -> Vec<Markup> {
    let mut notes = Vec::new();
    if source.tainted == Some(true) {
        notes.push(html! { p.trouble { b.error { "The last verified read reported tainted records." } } });
    }
    if let Some(error) = &source.last_error {
        notes.push(html! { p.trouble { (error) " (" (ago(source.last_error_at, now)) ")" } });
    }
    if let Some(skew) = source.clock_skew_seconds.filter(|skew| *skew != 0) {
        let way = if skew > 0 { "ahead of" } else { "behind" };
        notes.push(html! { p { "The service's clock is " (span(TimeDelta::seconds(skew.abs()))) " " (way) " ours." } });
    }
    if !source.cannot_report.is_empty() {
        let signals: Vec<String> = source.cannot_report.iter().map(|signal| signal.replace('_', " ")).collect();
        notes.push(html! { p.soft { "This system cannot report: " (signals.join(", ")) "." } });
    }
    notes
}

/// What the shipped rules do meanwhile (alerts/README.md, "While a source is catching up").
fn behind(sources: &[SourceStatus]) -> Option<String> {
    let names: Vec<&str> = sources.iter().filter(|source| source.catching_up).map(|source| &*source.name).collect();
    (!names.is_empty()).then(|| {
        format!("Alerts on the activity of {} are held off while older events are still being read.", names.join(", "))
    })
}

/// The remainder of our own budget says little: with a burst of 1 it is 1 whenever nothing is being asked.
fn budget(source: &SourceStatus) -> Markup {
    html! {
        @if source.rate_limit_told {
            (format!("{:.0}", source.rate_limit_remaining)) " left by the service; ours is " (source.rate_limit)
        } @else if source.rate_limit_remaining >= 1.0 {
            "idle, " (source.rate_limit)
        } @else {
            "in use, " (source.rate_limit)
        }
    }
}

/// A commit as git shows it in short; what is no commit as it is.
fn short(revision: &str) -> String {
    let (commit, rest) = revision.split_once('-').unwrap_or((revision, ""));
    if commit.len() <= 12 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return revision.to_owned();
    }
    format!("{}{}{rest}", &commit[..12], if rest.is_empty() { "" } else { "-" })
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::System;
    use crate::ledger::Held;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn source(state: &'static str) -> SourceStatus {
        SourceStatus {
            name: "iot".into(),
            system: System::named("losant"),
            state,
            last_success: None,
            last_event: Some(now()),
            watermark: None,
            catching_up: false,
            last_error: None,
            last_error_at: None,
            next_poll: Some(now()),
            events: 1_234_567,
            rate_limit_remaining: 1.0,
            rate_limit_told: false,
            tainted: None,
            rate_limit: "60 per minute".into(),
            clock_skew_seconds: None,
            cannot_report: Vec::new(),
        }
    }

    fn page_of(sources: &[SourceStatus]) -> String {
        render(&Status { version: "0.1.0", now: now(), held: None, sources: sources.to_vec() })
    }

    #[test]
    fn what_a_service_said_cannot_become_markup() {
        let said = "<script>alert(1)</script> & \"x\"";
        let page = page_of(&[SourceStatus {
            name: "\"><script>".into(),
            last_error: Some(said.into()),
            last_error_at: Some(now()),
            rate_limit: "<script>".into(),
            ..source("error")
        }]);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;x&quot; ("), "{page}");
        assert!(page.contains("<tbody id=\"&quot;&gt;&lt;script&gt;\" class=\"failing\">"), "{page}");
    }

    #[test]
    fn a_source_that_cannot_be_read_is_named_first_and_its_whole_error_stands_below_its_name() {
        let error = "HTTP 503 from https://iot.example.com: ".to_owned() + &"long ".repeat(200) + "end";
        let bad = SourceStatus { last_error: Some(error.clone()), last_error_at: Some(now()), ..source("error") };
        let slow = SourceStatus { name: "ads".into(), ..source("throttled") };
        let fine = SourceStatus { name: "campus".into(), ..source("ok") };
        let page = page_of(&[fine.clone(), bad, slow]);
        for part in [
            "<title>2 failing – audit-exporter</title>",
            "<b class=\"error\">2 of 3 sources cannot be read:</b> <a href=\"#iot\">iot</a> <a href=\"#ads\">ads</a>",
            "<tbody id=\"iot\" class=\"failing\">",
            &format!("<p class=\"trouble\">{error} (<time"),
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(page.contains("<tbody id=\"campus\"><tr>"), "{page}");
        let page = page_of(&[fine]);
        assert!(
            !page.contains("failing\"") && !page.contains("cannot be read") && !page.contains("<p class=\"trouble")
        );
        assert!(
            page.contains("<title>audit-exporter</title>") && page.contains("Audit events of 1 source, "),
            "{page}"
        );
    }

    #[test]
    fn what_is_held_at_zero_and_held_off_and_what_is_particular_is_said() {
        let soon = now() + TimeDelta::seconds(30);
        let held = Held { series: 12, until: soon, waiting_for_scrapers: 2, at_the_latest: Some(soon) };
        let particular = SourceStatus {
            tainted: Some(true),
            clock_skew_seconds: Some(-90),
            cannot_report: vec!["login_failure"],
            catching_up: true,
            ..source("catching_up")
        };
        let other = SourceStatus { name: "ads".into(), catching_up: true, ..source("error") };
        let sources = vec![particular, other];
        let over = Held { series: 1, until: now(), waiting_for_scrapers: 0, at_the_latest: None };
        let page = render(&Status { version: "0.1.0", now: now(), held: Some(over), sources: vec![] });
        let read =
            "<p>1 new series is shown as 0 on /metrics until that 0 has been scraped: a first look shows zeros.</p>";
        assert!(page.contains(read), "{page}");
        let page = render(&Status { version: "0.1.0", now: now(), held: Some(held), sources });
        for part in [
            "<p>12 new series are shown as 0 on /metrics until 2027-01-15T08:00:30Z and until 2 more scrapers have read \
             that 0, at the latest until 2027-01-15T08:00:30Z: a first look shows zeros.</p>",
            "<p>Alerts on the activity of iot, ads are held off while older events are still being read.</p>",
            "1\u{202f}234\u{202f}567",
            "The service's clock is 1 min behind ours.",
            "The last verified read reported tainted records.",
            "This system cannot report: login failure.",
            "version 0.1.0, revision ",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        let page = page_of(&[source("ok")]);
        assert!(
            !page.contains("held off") && !page.contains("shown as 0") && !page.contains("td class=\"notes"),
            "{page}"
        );
    }

    #[test]
    fn the_budget_is_told_as_idle_or_in_use_or_as_the_service_tells_it() {
        for (remaining, told, says) in [
            (1.0, false, "<td data-label=\"Rate budget\">idle, 60 per minute</td>"),
            (0.4, false, "<td data-label=\"Rate budget\">in use, 60 per minute</td>"),
            (699.6, true, "<td data-label=\"Rate budget\">700 left by the service; ours is 60 per minute</td>"),
        ] {
            let page =
                page_of(&[SourceStatus { rate_limit_remaining: remaining, rate_limit_told: told, ..source("ok") }]);
            assert!(page.contains(says), "{says} in {page}");
        }
    }

    #[test]
    fn a_revision_is_as_short_as_git_shows_it() {
        for (revision, shown) in [
            ("55da1810123456789012345678901234567890ab", "55da18101234"),
            ("55da1810123456789012345678901234567890ab-dirty", "55da18101234-dirty"),
            ("unknown", "unknown"),
            ("v1.2.3-17-made-by-hand", "v1.2.3-17-made-by-hand"),
            ("55da181", "55da181"),
        ] {
            assert_eq!(short(revision), shown);
        }
    }
}
