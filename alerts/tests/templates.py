#!/usr/bin/env python3
"""Renders alerts/templates/*.tmpl with amtool: one alert, fifty, ended ones, no title, hostile labels.

Usage: templates.py AMTOOL WORK_FOLDER
"""

import html.parser
import json
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import yaml

ALERTS = Path(__file__).resolve().parent.parent
TEMPLATES = ALERTS / "templates"
AMTOOL, WORK = sys.argv[1], Path(sys.argv[2]).resolve() / "templates"
URL = "https://alertmanager.example.com/am"
HOSTILE = 'a "b" <script>alert(1)</script> & \\ c\nd|e) [f](g) *h* `i` + ü %22}'
SETTING = "https://audit-exporter.example.com"
PATHS = {"runbook_url": "/runbooks/AuditBacklogUnusual#deletions", "status_url": "/#campus"}
LINKS = ["Grafana", "Runbook", "Status page", "Prometheus graph", "Silence"]

problems = []


def problem(what):
    problems.append(what)
    print(f"templates: {what}")


def render(template, data, kind="text", folder=TEMPLATES):
    path = WORK / "data.json"
    path.write_text(json.dumps(data))
    done = subprocess.run(
        [AMTOOL, "template", "render", f"--template.glob={folder}/*.tmpl", f"--template.data={path}", f"--template.type={kind}",
         f'--template.text={{{{ template "{template}" . }}}}'], capture_output=True, text=True)
    if done.returncode or "<no value>" in done.stdout:
        problem(f"{template} cannot be rendered: {done.stdout}{done.stderr}")
    return done.stdout


def alert(number=0, status="firing", title=True, **labels):
    labels = {"alertname": "AuditFailedLogins", "severity": "critical", "job": "audit", "source": f"source{number}", **labels}
    notes = {
        "summary": "Very many logins are failing.", "description": f"{800 + number} logins failed within 15 minutes.",
        "runbook_url": "https://audit.test/runbooks/AuditFailedLogins", "status_url": f"https://audit.test/#{number}",
        "dashboard_url": f"/d/audit-source?var-source={labels['source'] or 'All'}",
    }
    if title:
        notes["title"] = f"{labels['source']}: {800 + number} failed logins in 15 minutes (usual: 4)"
    return {
        "status": status, "labels": {k: v for k, v in labels.items() if v is not None}, "annotations": notes,
        "startsAt": "2026-01-02T03:04:05+01:00", "endsAt": "2026-01-02T05:00:00Z" if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "https://prometheus.example.com/graph?g0.expr=a+%3E+1&g0.tab=1",
    }


def notification(*alerts):
    status = "firing" if any(one["status"] == "firing" for one in alerts) else "resolved"
    common = dict(set.intersection(*(set(one["labels"].items()) for one in alerts)))
    return {
        "receiver": "page", "status": status, "alerts": list(alerts), "externalURL": URL, "groupLabels": {}, "commonLabels": common,
        "commonAnnotations": {},
    }


def unquoted(filter_):
    """The labels that the filter of a silence names."""
    found = {}
    for name, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', filter_):
        found[name] = re.sub(r"\\(.)", lambda escaped: {"n": "\n"}.get(escaped[1], escaped[1]), value)
    rebuilt = "{" + ", ".join(f'{name}="' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"' for name, value in found.items()) + "}"
    if rebuilt != filter_:
        problem(f"the filter {filter_!r} is not one of labels only")
    return found


def check_links(where, links, one):
    """name → address, for one alert."""
    if sorted(links) != sorted(LINKS):
        problem(f"{where}: its links are {sorted(links)}")
        return
    for name, url in links.items():
        if not re.fullmatch(r"https://[^\s<>\"|\\)]+", url):
            problem(f"{where}: the link {name} is {url!r}")
    source = one["labels"].get("source", "All")
    if not links["Grafana"].startswith("https://grafana.example.com/d/audit-source?var-source="):
        problem(f"{where}: the link to Grafana is {links['Grafana']}")
    if re.fullmatch(r"[\w-]+", source) and not links["Grafana"].endswith(f"var-source={source}"):
        problem(f"{where}: Grafana is asked for {links['Grafana']}")
    # without an address in the alert both are those of the settings
    own = {name: one["annotations"][name] for name in ("runbook_url", "status_url")}
    told = own["runbook_url"].startswith("https://")
    wanted = list(own.values()) if told else [SETTING + own["runbook_url"], SETTING + "/"]
    if [links["Runbook"], links["Status page"]] != wanted:
        problem(f"{where}: runbook and status page are {links['Runbook']} and {links['Status page']}")
    if links["Prometheus graph"] != one["generatorURL"]:
        problem(f"{where}: the graph is {links['Prometheus graph']}")
    before, _, filter_ = links["Silence"].partition("?filter=")
    if before != f"{URL}/#/silences/new" or "+" in filter_ or unquoted(urllib.parse.unquote(filter_)) != one["labels"]:
        problem(f"{where}: the silence is {links['Silence']}")


class Page(html.parser.HTMLParser):
    """Tags, links and text of an e-mail."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.link = set(), [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "a":
            self.link = dict(attributes)["href"]

    def handle_endtag(self, tag):
        if tag == "a":
            self.link = None

    def handle_data(self, data):
        self.text += data
        if self.link:
            self.links.append((data, self.link))


def links_of(receiver, data):
    """The links per alert, as the receiver would show them, and the whole text."""
    if receiver == "email.html":
        page = Page(render("audit.email.html", data, "html"))
        if page.tags - {"html", "head", "meta", "title", "body", "h2", "p", "b", "a", "code"}:
            problem(f"the mail has the tags {sorted(page.tags)}")
        return page.links, page.text
    text = render(f"audit.{receiver}", data)
    if receiver == "slack.text":
        links = [(name, url.replace("&amp;", "&")) for url, name in re.findall(r"<([^|<>]+)\|([^<>]+)>", text)]
        left = re.sub(r"<[^|<>]+\|[^<>]+>", "", text)
        if re.search(r"[<>]|&(?!amp;|lt;|gt;)", left):
            problem(f"Slack is sent unescaped {left!r}")
    elif receiver == "msteams.text":
        links = re.findall(r"(?<!\\)\[([^\[\]\\]+)\]\(([^()\s]+)\)", text)
        if re.search(r"<|>|(?<!\\)`", text):
            problem(f"Teams is sent unescaped {text!r}")
    else:
        links = re.findall(r"^([A-Z][\w ]+): (https://\S+)$", text, re.M)
    return [("Prometheus graph" if name == "Graph" else name, url) for name, url in links], text


TEXTS = ["slack.text", "msteams.text", "email.html", "email.text", "webhook.text", "pagerduty.details"]
TITLES = ["slack.title", "msteams.title", "email.subject", "webhook.title", "pagerduty.description"]


def plain(text):
    """What is read, without the escapes of Slack and Teams."""
    return re.sub(r"\\([\\`*_~|#\[\]()!])", r"\1", text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def check_one():
    for name, one in [("one alert", alert()), ("hostile labels", alert(source=HOSTILE, category=HOSTILE)), ("no source", alert(source=None, title=False)), ("no address", alert())]:
        if name == "no address":
            one["annotations"] |= PATHS
        if name == "hostile labels":
            one["annotations"]["description"] += " " + HOSTILE
        for receiver in TEXTS:
            links, text = links_of(receiver, notification(one))
            where = f"{receiver}, {name}"
            check_links(where, dict(links), one)
            if len(links) != len(LINKS):
                problem(f"{where}: {len(links)} links")
            for part in ["critical", "2026-01-02 02:04:05 UTC", "800 logins failed within 15 minutes."]:
                if part not in plain(text):
                    problem(f"{where}: {part!r} is not in it: {text}")
        for receiver in TITLES:
            title = plain(render(f"audit.{receiver}", notification(one)))
            wanted = one["annotations"].get("title") or "Very many logins are failing."
            if " ".join(title.split()) != " ".join(wanted.split()) or "\n" in title:
                problem(f"{receiver}, {name}: {title!r}")
        pager = {link: render(f"audit.pagerduty.{link.lower().split()[-1] if link != 'Status page' else 'status'}", notification(one)) for link in LINKS}
        check_links(f"PagerDuty's links, {name}", pager, one)
    for receiver in TITLES:
        title = plain(render(f"audit.{receiver}", notification(alert(title=False))))
        if title != "source0: Very many logins are failing.":
            problem(f"{receiver}, without a title: {title!r}")


def check_many():
    many = notification(*(alert(number) for number in range(50)))
    for receiver in TEXTS:
        links, text = links_of(receiver, many)
        if len(links) - len(LINKS) * 5 not in (0, 1) or "source4:" not in plain(text) or "source5:" in plain(text) or "And 45 more" not in text:
            problem(f"{receiver}, fifty alerts: {text}")
        if len(text) > 20_000:
            problem(f"{receiver}: fifty alerts are {len(text)} characters")
    for receiver in TITLES:
        title = plain(render(f"audit.{receiver}", many))
        if title != "source0: 800 failed logins in 15 minutes (usual: 4) (and 49 more)":
            problem(f"{receiver}, fifty alerts: {title!r}")


def check_ended():
    ended = notification(*(alert(number, "resolved") for number in range(7)))
    some = notification(alert(0, "resolved"), alert(1))
    for receiver in TEXTS:
        links, text = links_of(receiver, ended)
        text = plain(text)
        if "source4:" not in text or "source5:" in text or "And 2 more that ended." not in text or "until 2026-01-02 05:00:00 UTC" not in text:
            problem(f"{receiver}, ended: {text}")
        if [name for name, _ in links if name in LINKS]:
            problem(f"{receiver}, ended: it asks for deeds")
        check_links(f"{receiver}, one of two ended", dict(links_of(receiver, some)[0]), some["alerts"][1])
    for receiver in TITLES:
        if not render(f"audit.{receiver}", ended).startswith("Resolved: source0") or not render(f"audit.{receiver}", some).startswith("source1"):
            problem(f"{receiver}: the title does not say what ended")


def check_settings():
    """Each setting in one place: editing it changes what it is for, everywhere."""
    folder = WORK / "edited"
    folder.mkdir()
    # the line that the file gives as an example
    example = re.search(r"^  (\.Annotations\.runbook_url \|.*)$", (TEMPLATES / "audit-settings.tmpl").read_text(), re.M)[1]
    for path in TEMPLATES.glob("*.tmpl"):
        text = path.read_text()
        if path.name == "audit-settings.tmpl":
            for name, value in [("grafana", "https://g.test/x"), ("exporter", "https://s.test"), ("runbook", "{{ " + example.replace("wiki.example.com/audit", "wiki.test") + " }}")]:
                text, count = re.subn(rf'({{{{ define "audit.settings.{name}" }}}}).*({{{{ end }}}})', lambda found: found[1] + value + found[2], text)
                if count != 1:
                    problem(f"audit-settings.tmpl: audit.settings.{name} is there {count} times")
        elif "example.com" in text:
            problem(f"{path.name} holds an address")
        (folder / path.name).write_text(text)
    one, without = alert(), alert()
    without["annotations"] |= PATHS
    for edited, page in [(one, "https://wiki.test/AuditFailedLogins"), (without, "https://wiki.test/AuditBacklogUnusual#deletions")]:
        for receiver in TEXTS:
            text = render(f"audit.{receiver}", notification(edited), "html" if receiver == "email.html" else "text", folder)
            status = "https://audit.test/#0" if edited is one else "https://s.test/"
            for wanted in ["https://g.test/x/d/audit-source?var-source=source0", status, page]:
                if wanted not in text:
                    problem(f"{receiver}: {wanted} is not in it after the settings were edited")
    # what the mixin writes into the alerts wins
    one["annotations"] |= {"dashboard_url": "https://g.mixin.test/d/x", "status_url": "https://s.mixin.test/"}
    for receiver in TEXTS:
        text = render(f"audit.{receiver}", notification(one), "html" if receiver == "email.html" else "text")
        if "https://g.mixin.test/d/x" not in text or "https://s.mixin.test/" not in text or "grafana.example.com" in text:
            problem(f"{receiver}: complete addresses in the annotations are not kept")


def check_used():
    """The example asks for templates that are there, and each is asked for."""
    text = (ALERTS / "alertmanager.example.yml").read_text()
    everything = text + "".join(path.read_text() for path in TEMPLATES.glob("*.tmpl"))
    defined = set(re.findall(r'define "([^"]+)"', everything))
    for name in set(re.findall(r'template "([^"]+)"', everything)) ^ defined:
        problem(f"{name} is {'never used' if name in defined else 'not defined'}")
    for receiver in yaml.safe_load(text)["receivers"]:
        for kind in ("pagerduty_configs", "slack_configs", "email_configs"):
            for one in receiver.get(kind, []):
                if "audit." not in json.dumps(one):
                    problem(f"{receiver['name']}: {kind} uses no template")


def main():
    WORK.mkdir()
    for check in (check_used, check_one, check_many, check_ended, check_settings):
        check()
    if problems:
        sys.exit(1)
    print(f"templates: {len(TEXTS) + len(TITLES)} texts and titles for one, many, ended and hostile alerts")


if __name__ == "__main__":
    main()
