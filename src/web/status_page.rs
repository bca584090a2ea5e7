//! The status page: one row per source, plain HTML, no script, readable in dark and light.

use std::fmt::Write;

use chrono::{DateTime, TimeDelta, Utc};

use crate::exporter::{SourceStatus, Status};

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="15"><title>audit-exporter</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #666; --ok: #1a7f37; --warn: #9a6700; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --soft: #9aa; --ok: #3fb950; --warn: #d29922; --bad: #ff6b63; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } header { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: baseline; margin-bottom: 1rem; }
nav a { margin-right: 1rem; } p { max-width: 60rem; } .soft, th, small { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; } td.number, th.number { text-align: right; padding-right: 1.6rem; }
.state { font-weight: 600; } .ok { color: var(--ok); } .starting, .catching_up, .throttled { color: var(--warn); } .error { color: var(--bad); }
tr.note td { white-space: normal; border-bottom: 1px solid var(--line); padding-top: 0; overflow-wrap: anywhere; } tr.noted td { border-bottom: 0; }
</style></head><body>
"#;

/// The whole page.
pub(super) fn render(status: &Status) -> String {
    let mut page = String::from(HEAD);
    let _ = write!(
        page,
        "<header><h1>audit-exporter</h1><span class=soft>{}</span><nav><a href=\"/metrics\">metrics</a>\
         <a href=\"/api/v1/status\">status as JSON</a><a href=\"/runbooks/\">runbooks</a><a href=\"/-/healthy\">healthy</a><a href=\"/-/ready\">ready</a></nav></header>\n\
         <p class=soft>Audit events of {} sources, each counted exactly once. Sources are polled on the exporter's own timer; \
         what is shown has been committed. Now {}.</p>\n",
        escape(status.version),
        status.sources.len(),
        moment(status.now),
    );
    if let Some(held) = &status.held {
        let _ = writeln!(page, "<p>{held}.</p>");
    }
    page.push_str(
        "<div class=wide><table><thead><tr><th>Source<th>System<th>State<th class=number>Events<th>Last success\
         <th>Last event<th>Counted up to<th>Rate budget<th>Next poll</thead><tbody>\n",
    );
    for source in &status.sources {
        row(&mut page, source, status.now);
    }
    page.push_str("</tbody></table></div>\n</body></html>\n");
    page
}

fn row(page: &mut String, source: &SourceStatus, now: DateTime<Utc>) {
    let mut notes = Vec::new();
    if source.tainted == Some(true) {
        notes.push("<b class=error>The last verified read reported tainted records.</b>".to_owned());
    }
    if let Some(error) = &source.last_error {
        notes.push(format!("Last error {}: {}", ago(source.last_error_at, now), escape(error)));
    }
    if !source.cannot_report.is_empty() {
        let signals: Vec<String> = source.cannot_report.iter().map(|signal| signal.replace('_', " ")).collect();
        notes.push(format!("This system cannot report: {}.", signals.join(", ")));
    }
    if let Some(skew) = source.clock_skew_seconds.filter(|skew| *skew != 0) {
        let way = if skew > 0 { "ahead of" } else { "behind" };
        notes.push(format!("The service's clock is {} {way} ours.", span(TimeDelta::seconds(skew.abs()))));
    }
    let row_class = if notes.is_empty() { "" } else { " class=noted" };
    let _ = writeln!(
        page,
        "<tr{row_class}><td><b>{}</b><td>{}<td class=\"state {}\">{}<td class=number>{}<td>{}<td>{}<td>{}<td>{:.0} left <small>{}{}</small><td>{}",
        escape(&source.name),
        source.system,
        source.state,
        source.state.replace('_', " "),
        grouped(source.events),
        ago(source.last_success, now),
        if source.last_event.is_none() && source.events > 0 {
            "<span class=soft>unknown</span>".to_owned()
        } else {
            ago(source.last_event, now)
        },
        ago(source.watermark, now),
        source.rate_limit_remaining,
        if source.rate_limit_told { "by the service; ours is " } else { "of " },
        escape(&source.rate_limit),
        source
            .next_poll
            .map_or_else(|| "now".to_owned(), |at| format!("in {}", span((at - now).max(TimeDelta::zero())))),
    );
    if !notes.is_empty() {
        let _ = writeln!(page, "<tr class=note><td colspan=9><small>{}</small>", notes.join("<br>"));
    }
}

fn moment(at: DateTime<Utc>) -> String {
    format!("<time datetime=\"{}\">{}</time>", at.to_rfc3339(), at.format("%Y-%m-%d %H:%M:%S UTC"))
}

fn ago(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let Some(at) = at else { return "<span class=soft>never</span>".into() };
    let text = if at > now { format!("in {}", span(at - now)) } else { format!("{} ago", span(now - at)) };
    format!("<time datetime=\"{0}\" title=\"{0}\">{text}</time>", at.to_rfc3339())
}

fn span(time: TimeDelta) -> String {
    let seconds = time.num_seconds();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// As text of a page, or a value in quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::System;
    use crate::ledger::Held;

    #[test]
    fn what_a_service_said_cannot_become_markup() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let source = SourceStatus {
            name: "iot".into(),
            system: System::named("losant"),
            state: "error",
            last_success: None,
            last_event: Some(now),
            watermark: None,
            catching_up: false,
            last_error: Some("<script>alert(1)</script>".into()),
            last_error_at: Some(now),
            next_poll: None,
            events: 1_234_567,
            rate_limit_remaining: 1.0,
            rate_limit_told: false,
            tainted: Some(true),
            rate_limit: "60 per 1m".into(),
            clock_skew_seconds: Some(-90),
            cannot_report: vec!["login_failure"],
        };
        let held = Held { series: 12, until: now, waiting_for_scrapers: 2, at_the_latest: Some(now) };
        let page = render(&Status { version: "0", now, held: Some(held), sources: vec![source] });
        assert!(page.contains(
            "<p>12 new series are shown as 0 on /metrics until 2027-01-15T08:00:00Z and until 2 more scrapers have read \
             that 0, at the latest until 2027-01-15T08:00:00Z: a first look shows zeros.</p>"
        ));
        assert!(!page.contains("<script"));
        assert!(page.contains("&lt;script&gt;"));
        assert!(page.contains("1\u{202f}234\u{202f}567"));
        assert!(page.contains("1 min behind ours"));
        assert!(page.contains("tainted"));
        assert!(page.contains("cannot report: login failure"));
    }
}
