//! The `Link` header (RFC 8288), as far as paging needs it.
//!
//! Promises: finds the target of the first `rel="next"`, whatever else the header holds; tells where there is none from
//! where the header was lost on the way; text that is no link is passed over. Leaves to others: whether the target may
//! be followed.

use http::{HeaderMap, header};

/// The target of the first link whose relation is `next`, as it was written. The relation's case
/// does not matter, and it may be one of several.
pub(super) fn next(headers: &HeaderMap) -> Option<String> {
    find(headers, &["next"])
}

/// Whether the header says that there is no next page: it is there, it is about pages (it has one of the `relations` that
/// the service gives every page; something on the way may have added links of other kinds), and it has no `next`, not
/// even a garbled one.
pub(super) fn says_end(headers: &HeaderMap, relations: &[&str]) -> bool {
    let garbled = headers.get_all(header::LINK).iter().any(|value| {
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        text.replace([' ', '"', '\''], "").contains("rel=next")
    });
    !garbled && find(headers, relations).is_some()
}

fn find(headers: &HeaderMap, wanted: &[&str]) -> Option<String> {
    headers.get_all(header::LINK).iter().find_map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes());
        let mut rest = text.as_ref();
        while let Some((target, relations, after)) = link(rest) {
            let is_wanted = |relation: &str| wanted.iter().any(|wanted| relation.eq_ignore_ascii_case(wanted));
            if relations.split_ascii_whitespace().any(is_wanted) {
                return Some(target.to_owned());
            }
            rest = after;
        }
        None
    })
}

/// The first link of `text`: its target, its relations, and what follows it.
fn link(text: &str) -> Option<(&str, String, &str)> {
    let (_, text) = text.split_once('<')?;
    let (target, mut rest) = text.split_once('>')?;
    let mut relations = None;
    while let Some(parameter) = rest.trim_start().strip_prefix(';') {
        let end = parameter.find(['=', ';', ',']).unwrap_or(parameter.len());
        let (name, after) = parameter.split_at(end);
        let value;
        (value, rest) = after.strip_prefix('=').map_or((String::new(), after), parameter_value);
        if name.trim().eq_ignore_ascii_case("rel") {
            relations.get_or_insert(value); // only the first counts (RFC 8288 section 3.3)
        }
    }
    Some((target.trim(), relations.unwrap_or_default(), rest))
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        // single quotes are none, but they are written
        return (text[..end].trim().trim_matches('\'').to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::LINK, value.parse().unwrap());
        }
        next(&headers)
    }

    #[test]
    fn only_a_header_about_pages_says_that_there_is_no_next_one() {
        for (value, says_end) in [
            (r#"<a>; rel="current",<b>; rel="first""#, true),
            ("<a>; rel=LAST", true),
            (r#"<a>; rel="preload"; as="style", <b>; rel=preconnect"#, false),
            (r#"<a>; rel="current", <b>; rel="next""#, false),
            (r#"<a>; rel="current", <b; rel="next""#, false),
            (r#"<a>; rel="current", b; rel = "next""#, false),
            (r#"<a>; rel="current", <b?page=next>; rel="first""#, true),
            (r#"rel="current""#, false),
            ("<a", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::LINK, value.parse().unwrap())]);
            assert_eq!(super::says_end(&headers, &["current", "first", "last"]), says_end, "{value}");
        }
        assert!(!super::says_end(&HeaderMap::new(), &["current"]));
    }

    #[test]
    fn next_is_found_however_the_header_is_written() {
        for (values, expected) in [
            (&[r#"<https://c.example/a?page=2>; rel="next""#][..], Some("https://c.example/a?page=2")),
            (&["<a>;rel=next"], Some("a")),
            (&["<a>; rel='next'"], Some("a")),
            (&["<a> ; REL = Next ; title=x"], Some("a")),
            (&[r#"<a>; rel="prev next""#], Some("a")),
            (&[r#"<a>; rel="current",<b>; rel="next",<c>; rel="first""#], Some("b")),
            (&[r#"<a?x=1,2;y=3>; rel="first", <b?x=1,2;y=3>; rel="next""#], Some("b?x=1,2;y=3")),
            (&[r#"<a>; title="x, <z>; rel=next \" "; rel="prev", <b>; rel="next""#], Some("b")),
            (&[r#"<a>; rel="first""#, r#"<b>; rel="next""#], Some("b")),
            (&[r#"<a>; rel="prev"; rel="next""#], None),
            (&[r#"<a>; rel="nextish""#], None),
            (&[r#"<a>; title="next""#], None),
            (&["<a>; rel"], None),
            (&["garbage, <b>; rel=next"], Some("b")),
            (&[r#"<a>garbage, <b>; rel="next""#], Some("b")),
            (&["<a"], None),
            (&[r#"<a>; rel="next"#], Some("a")),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(next_of(values).as_deref(), expected, "{values:?}");
        }
    }
}
