//! Serves the runbooks of the alerts, so that a person who is paged needs no other site.
//!
//! Promises: every file of `docs/runbooks` has a page; what stands in a file as HTML is shown and not passed on; a link
//! leads to another runbook, to a place on a page or out into the web, or it is none.
//!
//! Leaves to others: which files there are (`build.rs`).

use std::collections::HashMap;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, PreEscaped, html};
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};

use super::html::page;

/// Names and texts of the runbooks, by name.
const RUNBOOKS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/runbooks.rs"));

/// The page about all of them.
const INDEX: &str = "README";

/// All alerts about what happened while a source was behind end like this, and share a page.
const IN_BACKLOG: &str = "InBacklog";
const OF_BACKLOGS: &str = "AuditBacklogUnusual";

/// How alike a name must be that may have been meant, from 0 to 1, and how many are shown.
const NEAR: f64 = 0.8;
const NEAR_MAX: usize = 5;

const STYLE: &str = "
body { max-width: 56rem; line-height: 1.5; overflow-wrap: normal; } h2 { font-size: 1.1rem; margin-top: 1.8rem; }
code { background: var(--back); border-radius: 3px; padding: .1em .3em; font-size: .92em; overflow-wrap: anywhere; }
pre { background: var(--back); border-radius: 4px; padding: .7rem; overflow-x: auto; } pre code { background: none; padding: 0; overflow-wrap: normal; }
table { border-collapse: collapse; display: block; overflow-x: auto; } th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-size: .85rem; } li { margin: .3rem 0; }
";

/// `/runbooks/NAME`
pub(super) async fn one(Path(name): Path<String>) -> Response {
    match find(&name) {
        Some(text) => answer(StatusCode::OK, &name, &html! { (rendered(text)) }),
        None => unknown(&name),
    }
}

/// `/runbooks/`
pub(super) async fn index() -> Response {
    let text = RUNBOOKS.iter().find(|(name, _)| *name == INDEX).map(|(_, text)| rendered(text));
    let body = html! {
        @if let Some(text) = text { (text) }
        h2 { "All runbooks" }
        (links(names()))
    };
    answer(StatusCode::OK, "Runbooks", &body)
}

/// `/runbooks`: from there, links of the index would lead elsewhere.
pub(super) async fn to_index() -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "runbooks/")]).into_response()
}

fn unknown(name: &str) -> Response {
    let shown: String = name.chars().take(100).collect();
    let near = near(name);
    let body = html! {
        h1 { "There is no runbook " (shown) }
        @if !near.is_empty() {
            p { "Did you mean:" }
            (links(near.into_iter()))
        }
        p { a href="./" { "All runbooks" } }
    };
    answer(StatusCode::NOT_FOUND, "No such runbook", &body)
}

fn names() -> impl Iterator<Item = &'static str> {
    RUNBOOKS.iter().map(|(name, _)| *name).filter(|name| *name != INDEX)
}

/// The runbook of an alert or of that name.
fn find(name: &str) -> Option<&'static str> {
    let name = if name.starts_with("Audit") && name.ends_with(IN_BACKLOG) { OF_BACKLOGS } else { name };
    RUNBOOKS.iter().find(|(known, _)| *known == name && *known != INDEX).map(|(_, text)| *text)
}

/// The names that may have been meant, the nearest first.
fn near(name: &str) -> Vec<&'static str> {
    let wanted: String = name.trim_end_matches(".md").to_lowercase().chars().take(100).collect();
    let alike = |known: &str| {
        let known = known.to_lowercase();
        // the name without the word that they all begin with
        let rest = known.strip_prefix("audit").unwrap_or(&known);
        strsim::jaro_winkler(&wanted, &known).max(strsim::jaro_winkler(&wanted, rest))
    };
    let mut near: Vec<(f64, &str)> =
        names().map(|known| (alike(known), known)).filter(|(how, _)| *how >= NEAR).collect();
    near.sort_by(|one, other| other.0.total_cmp(&one.0));
    near.into_iter().take(NEAR_MAX).map(|(_, name)| name).collect()
}

fn links(names: impl Iterator<Item = &'static str>) -> Markup {
    html! { ul { @for name in names { li { a href=(name) { (name) } } } } }
}

fn answer(status: StatusCode, title: &str, body: &Markup) -> Response {
    let body = html! {
        nav { a href="./" { "all runbooks" } a href="../" { "status" } }
        (body)
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ];
    (status, headers, page(&format!("{title} – audit-exporter"), STYLE, None, &body)).into_response()
}

/// A text as HTML.
fn rendered(text: &str) -> PreEscaped<String> {
    let mut events: Vec<Event<'_>> = Parser::new_ext(text, Options::ENABLE_TABLES).collect();
    name_headings(&mut events);
    let mut is_link = Vec::new();
    let events = events.into_iter().filter_map(|event| match event {
        // shown as it stands there
        Event::Html(html) | Event::InlineHtml(html) => Some(Event::Text(html)),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let target = target(&dest_url);
            is_link.push(target.is_some());
            target.map(|dest_url| Event::Start(Tag::Link { link_type, dest_url: dest_url.into(), title, id }))
        }
        Event::End(TagEnd::Link) => is_link.pop().unwrap_or(false).then_some(event),
        // there is nothing to fetch one from; its text stays
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => None,
        event => Some(event),
    });
    let mut page = String::with_capacity(text.len() * 2);
    pulldown_cmark::html::push_html(&mut page, events);
    PreEscaped(page)
}

/// Where a link of a runbook leads from its page; `None` where there is nothing: the rest of the repository is not in
/// the program.
fn target(link: &str) -> Option<String> {
    if link.starts_with('#') || link.starts_with("https://") || link.starts_with("http://") {
        return Some(link.to_owned());
    }
    let (file, place) = link.split_once('#').map_or((link, ""), |(file, place)| (file, place));
    let name = file.strip_suffix(".md")?;
    RUNBOOKS.iter().find(|(known, _)| *known == name)?;
    let page = if name == INDEX { "./" } else { name };
    Some(if place.is_empty() { page.to_owned() } else { format!("{page}#{place}") })
}

/// Gives each heading the name by which links lead to it, as where the files are read elsewhere: its words in lower
/// case, joined by `-`.
fn name_headings(events: &mut [Event<'_>]) {
    let mut names: HashMap<usize, String> = HashMap::new();
    let mut open = None;
    for (n, event) in events.iter().enumerate() {
        match event {
            Event::Start(Tag::Heading { .. }) => open = Some(n),
            Event::End(TagEnd::Heading(_)) => open = None,
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = open {
                    names.entry(heading).or_default().push_str(text);
                }
            }
            _ => {}
        }
    }
    for (n, event) in events.iter_mut().enumerate() {
        if let (Event::Start(Tag::Heading { id, .. }), Some(words)) = (event, names.get(&n)) {
            let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let name: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
            *id = Some(CowStr::from(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of an attribute in a page.
    fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
        let start = format!("{attribute}=\"");
        html.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
    }

    #[test]
    fn every_runbook_is_there_and_every_link_within_them_leads_to_a_place_that_is() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks")).unwrap();
        let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> = files.filter_map(|name| Some(name.strip_suffix(".md")?.to_owned())).collect();
        files.sort();
        assert_eq!(RUNBOOKS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), files);
        assert!(files.len() > 30, "{files:?}");
        let places = |text: &str| values(&rendered(text).0, "id").into_iter().map(str::to_owned).collect::<Vec<_>>();
        let mut followed = 0;
        for (name, text) in RUNBOOKS {
            let html = rendered(text).0;
            assert!(html.starts_with("<h1 id=\"") && html.contains("</h2>"), "{name}: {html}");
            for link in values(&html, "href") {
                if link.starts_with("https://") || link.starts_with("http://") {
                    continue;
                }
                let (page, place) = link.split_once('#').unwrap_or((link, ""));
                let there = match page {
                    "" => *text,
                    "./" => RUNBOOKS.iter().find(|(name, _)| *name == INDEX).unwrap().1,
                    page => find(page).unwrap_or_else(|| panic!("{name} leads to {link}")),
                };
                assert!(place.is_empty() || places(there).iter().any(|id| id == place), "{name} leads to {link}");
                followed += 1;
            }
        }
        assert!(followed > 20, "{followed} links");
    }

    #[test]
    fn markup_is_rendered_and_html_is_shown_and_not_passed_on() {
        let PreEscaped(html) = rendered(
            "# A `b` & C\n\n<script>alert(1)</script>\n\nText <b onclick=\"x\">bold</b> **strong**\n\n\
             | a | b |\n| --- | --- |\n| 1 < 2 | `<i>` |\n\n```promql\nx{a=\"b\"} < 1\n```\n",
        );
        for part in [
            "<h1 id=\"a-b--c\">A <code>b</code> &amp; C</h1>",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
            "&lt;b onclick=",
            "<strong>strong</strong>",
            "<td>1 &lt; 2</td>",
            "<code>&lt;i&gt;</code>",
            "<pre><code class=\"language-promql\">x{a=\"b\"} &lt; 1\n</code></pre>",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        assert!(!html.contains("<script") && !html.contains("<b onclick"), "{html}");
    }

    #[test]
    fn a_link_leads_to_a_runbook_or_into_the_web_or_is_none() {
        for (link, leads_to) in [
            ("AuditSourceDown.md", Some("AuditSourceDown")),
            ("AuditSourceDown.md#diagnosis", Some("AuditSourceDown#diagnosis")),
            ("README.md#who-did-it", Some("./#who-did-it")),
            ("#impact", Some("#impact")),
            ("https://prometheus.io/docs/", Some("https://prometheus.io/docs/")),
            ("../verify.md", None),
            ("../../alerts/README.md", None),
            ("NoSuchAlert.md", None),
            ("javascript:alert(1)", None),
            ("data:text/html,x", None),
            ("/etc/passwd", None),
        ] {
            assert_eq!(target(link).as_deref(), leads_to, "{link}");
        }
        let html =
            rendered("See [one](../verify.md), [two](AuditSourceDown.md) and [`three`](javascript:x), ![four](x.png).");
        assert_eq!(html.0, "<p>See one, <a href=\"AuditSourceDown\">two</a> and <code>three</code>, four.</p>\n");
    }

    /// As in the rules: names of alerts, and where their `runbook_url` leads.
    #[test]
    fn every_alert_has_a_runbook_under_its_name() {
        let mut seen = 0;
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/alerts")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yml") {
                for line in std::fs::read_to_string(&path).unwrap().lines() {
                    let Some(alert) = line.trim().strip_prefix("- alert: ") else { continue };
                    assert!(find(alert).is_some(), "{alert}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 30, "{seen} alerts");
        assert_eq!(find("AuditBulkDeletionsInBacklog"), find("AuditBacklogUnusual"));
        assert_eq!(find("InBacklog"), None);
    }

    #[test]
    fn a_name_that_is_nearly_right_is_told_what_may_have_been_meant() {
        for wrong in ["AuditSourceDwon", "auditsourcedown", "AuditSourceDown.md", "SourceDown"] {
            assert!(near(wrong).contains(&"AuditSourceDown"), "{wrong}: {:?}", near(wrong));
        }
        assert_eq!(near("AuditSourceDown.md")[0], "AuditSourceDown");
        assert_eq!(near("zzz"), [""; 0]);
        assert!(near("Audit").len() <= NEAR_MAX);
    }
}
