//! Which format a scraper wants, from the request header `Accept` (RFC 9110, section 12.5.1).

use super::Format;

/// How many ranges of a header are looked at. Each is compared with every other; browsers send ten.
const RANGES_MAX: usize = 64;

/// How closely a media range names a format. The closest range decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    AnyType,
    AnySubtype,
    Type,
    TypeAndVersion,
}

/// One format as the header speaks of it.
#[derive(Clone, Copy, Debug)]
struct Wish {
    format: Format,
    closeness: Closeness,
    /// 0 (not acceptable) to 1.
    quality: f64,
}

/// The format for a request whose `Accept` headers, joined by `, `, are `accept`.
///
/// The highest quality wins, among equals the one listed first. `*/*` and `text/*` mean text
/// 0.0.4, which everyone reads; `application/*` means `OpenMetrics`. Who asks for nothing that
/// exists here gets text too: scrapers live better with that than with a 406. `OpenMetrics`
/// 0.0.1 is not written here: it counts only if nothing else that is asked for is, and 1.0.0 is
/// then the closest to it. A range that cannot be understood is passed over; of an `escaping`
/// parameter every value will do, because all names here are legacy names.
pub fn negotiate(accept: Option<&str>) -> Format {
    let ranges = split_unquoted(accept.unwrap_or_default(), ',').filter_map(Range::parse);
    let ranges: Vec<Range> = ranges.take(RANGES_MAX).collect();
    let mut chosen: Option<Wish> = None;
    for wish in ranges.iter().filter_map(Range::wish) {
        let overruled = ranges.iter().filter_map(Range::wish).any(|other| {
            let closer = (other.closeness, other.quality) > (wish.closeness, wish.quality);
            other.format == wish.format && closer
        });
        let better = chosen.is_none_or(|best| wish.quality > best.quality);
        if wish.quality > 0.0 && !overruled && better {
            chosen = Some(wish);
        }
    }
    match chosen {
        Some(wish) => wish.format,
        None if ranges.iter().any(|range| range.is_old_openmetrics() && range.quality > 0.0) => Format::OpenMetrics,
        None => Format::Text,
    }
}

/// One element of the header.
struct Range<'a> {
    /// `type/subtype`, in whatever case it came.
    media: &'a str,
    parameters: Vec<(&'a str, String)>,
    quality: f64,
}

impl<'a> Range<'a> {
    /// `None` if it is no media range, or its quality is no number from 0 to 1.
    fn parse(element: &'a str) -> Option<Self> {
        let mut parts = split_unquoted(element, ';').map(str::trim);
        let media = parts.next().filter(|media| media.contains('/'))?;
        let mut range = Range { media, parameters: Vec::new(), quality: 1.0 };
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            let (name, value) = (name.trim_end(), unquote(value.trim_start()));
            if name.eq_ignore_ascii_case("q") {
                range.quality = quality(&value)?;
            } else {
                range.parameters.push((name, value));
            }
        }
        Some(range)
    }

    fn is(&self, media: &str) -> bool {
        self.media.eq_ignore_ascii_case(media)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let (_, value) = self.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    fn wish(&self) -> Option<Wish> {
        let (format, closeness) = if self.is("*/*") {
            (Format::Text, Closeness::AnyType)
        } else if self.is("text/*") {
            (Format::Text, Closeness::AnySubtype)
        } else if self.is("application/*") {
            (Format::OpenMetrics, Closeness::AnySubtype)
        } else if self.is("text/plain") {
            (Format::Text, self.version_matches("0.0.4")?)
        } else if self.is("application/openmetrics-text") {
            (Format::OpenMetrics, self.version_matches("1.0.0")?)
        } else if self.is("application/vnd.google.protobuf")
            && self.parameter("proto")? == "io.prometheus.client.MetricFamily"
            && self.parameter("encoding")?.eq_ignore_ascii_case("delimited")
        {
            (Format::Protobuf, Closeness::TypeAndVersion)
        } else {
            return None;
        };
        Some(Wish { format, closeness, quality: self.quality })
    }

    fn version_matches(&self, ours: &str) -> Option<Closeness> {
        match self.parameter("version") {
            None => Some(Closeness::Type),
            Some(version) => (version == ours).then_some(Closeness::TypeAndVersion),
        }
    }

    fn is_old_openmetrics(&self) -> bool {
        self.is("application/openmetrics-text") && self.parameter("version") == Some("0.0.1")
    }
}

/// Digits with at most one point, from 0 to 1. More than the three decimals of the RFC are taken.
fn quality(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|quality| plain && (0.0..=1.0).contains(quality))
}

/// The pieces between `separator`, except where it stands in a quoted string.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && !escaped && c == '\\';
        c == separator && !quoted
    })
}

/// The text of a quoted string; any other text as it is.
fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut escaped = false;
    inner
        .chars()
        .filter(|c| {
            escaped = !escaped && *c == '\\';
            !escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTO: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

    #[test]
    fn every_scraper_gets_the_format_it_likes_best() {
        use Format::{OpenMetrics, Protobuf, Text};
        let v2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                     text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let v2_53 = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                     text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let v3_5 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                    application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                    text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let proto = |q: &str, rest: &str| format!("{PROTO}{q},{rest}");
        for (accept, format) in [
            // Prometheus by default, and with native histograms or creation times switched on.
            (v2_42, OpenMetrics),
            (v2_53, OpenMetrics),
            (v3_5, OpenMetrics),
            (&proto("", v2_42), Protobuf),
            (&proto(";q=0.6", v2_53), Protobuf),
            (&proto(";escaping=allow-utf-8;q=0.7", v3_5), Protobuf),
            // Prometheus with scrape_protocols of one element.
            ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.5", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1;q=0.6,*/*;q=0.5", Text),
            ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.5", Text),
            ("text/plain;version=0.0.4;q=0.6,*/*;q=0.5", Text),
            // Other agents: VictoriaMetrics, Telegraf.
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Text),
            (&proto(";q=0.7", "text/plain;version=0.0.4;q=0.3"), Protobuf),
            // Firefox, Chrome, curl, fetch(), nothing.
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,\
                 application/signed-exchange;v=b3;q=0.7",
                Text,
            ),
            ("*/*", Text),
            ("text/*", Text),
            ("text/plain", Text),
            ("application/*", OpenMetrics),
            ("application/openmetrics-text", OpenMetrics),
            ("application/json", Text),
            ("", Text),
        ] {
            assert_eq!(negotiate(Some(accept)), format, "{accept}");
        }
        assert_eq!(negotiate(None), Text);
    }

    #[test]
    fn quality_decides_then_order() {
        use Format::{OpenMetrics, Protobuf, Text};
        for (accept, format) in [
            ("text/plain;q=0.9, application/openmetrics-text;q=0.8", Text),
            ("text/plain;q=0.8, application/openmetrics-text;q=0.9", OpenMetrics),
            ("text/plain;q=0.10, application/openmetrics-text;q=0.9", OpenMetrics),
            ("text/plain, application/openmetrics-text", Text),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("application/openmetrics-text, */*", OpenMetrics),
            ("*/*, application/openmetrics-text", Text),
            (&format!("application/openmetrics-text, {PROTO}"), OpenMetrics),
            (&format!("{PROTO}, application/openmetrics-text"), Protobuf),
            (&format!("{PROTO};q=0.001, text/plain;q=0"), Protobuf),
            // 0 is a refusal, and the closest range is the one that counts.
            ("application/openmetrics-text;q=0, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=0.000, */*;q=0.1", Text),
            ("application/openmetrics-text;version=1.0.0;q=0, application/*, text/plain;q=0.1", Text),
            ("text/plain;q=0.1, */*;q=0.9, application/openmetrics-text;q=0.5", OpenMetrics),
            ("text/*;q=0, text/plain;q=0.2, application/openmetrics-text;q=0.1", Text),
            ("*/*;q=0", Text),
        ] {
            assert_eq!(negotiate(Some(accept)), format, "{accept}");
        }
    }

    #[test]
    fn versions_and_encodings_that_are_not_written_here_do_not_match() {
        use Format::{OpenMetrics, Text};
        for (accept, format) in [
            ("application/openmetrics-text;version=2.0.0, text/plain;q=0.1", Text),
            ("application/openmetrics-text;version=0.0.1, text/plain;q=0.1", Text),
            ("application/openmetrics-text;version=0.0.1", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1, application/json", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1;q=0", Text),
            ("text/plain;version=0.0.5, application/openmetrics-text;q=0.1", OpenMetrics),
            ("application/vnd.google.protobuf", Text),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily", Text),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Text),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=compact-text", Text),
            ("application/vnd.google.protobuf;proto=some.other.Message;encoding=delimited", Text),
        ] {
            assert_eq!(negotiate(Some(accept)), format, "{accept}");
        }
    }

    #[test]
    fn the_grammar_of_accept_is_read() {
        use Format::{OpenMetrics, Protobuf, Text};
        for (accept, format) in [
            ("  Application/OpenMetrics-Text ; VERSION=1.0.0 ;\tQ=0.9 ,\ttext/plain ; q=0.8", OpenMetrics),
            (r#"application/openmetrics-text; version="1.0.0""#, OpenMetrics),
            (r#"application/openmetrics-text; version="1\.0.0""#, OpenMetrics),
            (r#"text/html;note="a, application/openmetrics-text;q=1", text/plain;q=0.1"#, Text),
            (r#"text/html;note="a\", application/openmetrics-text", text/plain;q=0.1"#, Text),
            (r#"text/html;note="a\\", application/openmetrics-text"#, OpenMetrics),
            (
                r#"APPLICATION/vnd.google.protobuf; Encoding="delimited"; proto="io.prometheus.client.MetricFamily""#,
                Protobuf,
            ),
            ("application/openmetrics-text;;charset=utf-8;", OpenMetrics),
            (",,application/openmetrics-text,,", OpenMetrics),
            // What cannot be understood is passed over.
            ("application/openmetrics-text;q=high, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=1.5, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=-1, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=1e-1, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=inf", Text),
            ("openmetrics-text", Text),
            ("xapplication/openmetrics-text", Text),
            (r#"";,=\"#, Text),
            ("\u{1f980}/\u{1f980};q=\u{1f980}", Text),
        ] {
            assert_eq!(negotiate(Some(accept)), format, "{accept}");
        }
    }

    #[test]
    fn a_long_header_costs_no_more_than_its_first_ranges() {
        let many = "application/openmetrics-text;q=0.1,".repeat(200_000);
        assert_eq!(negotiate(Some(&many)), Format::OpenMetrics);
        let late = format!("{}application/openmetrics-text", "text/plain;q=0.1,".repeat(RANGES_MAX));
        assert_eq!(negotiate(Some(&late)), Format::Text);
    }

    proptest::proptest! {
        #[test]
        fn no_header_is_too_strange(accept in r#"([ -~]|[a-z/;,=" \\*]){0,60}"#) {
            negotiate(Some(&accept));
        }
    }
}
