#!/usr/bin/env python3
"""Lint of the alert rules, their tests, their runbooks and the example for Alertmanager.

Checks what promtool and amtool cannot know: that every metric and label exists on /metrics, that no
counter is compared raw, that ranges hold enough scrapes, that every alert says what it must and is
tested. Prints each problem as FILE: what is wrong; exit status 1 if there is any.

Reads PromQL by its tokens, not by its grammar: promtool has parsed every expression before.
"""

import re
import sys
from pathlib import Path

try:
    import yaml
except ImportError:
    sys.exit("alerts/lint.py needs PyYAML: apt-get install -y --no-install-recommends python3-yaml")

ROOT = Path(__file__).resolve().parent.parent
ALERTS = ROOT / "alerts"
RUNBOOKS = ROOT / "docs" / "runbooks"
# Links to the exporter begin with the address that it tells (--web.external-url). Without one they are paths: a link that leads
# nowhere is worse than none.
ADDRESS = (
    r'\{\{ with (?:query|printf) "audit_exporter_external_url_info[^}]*(?:\}[^}]+)*\}\}'
    r'\{\{ \. \| sortByLabel "url" \| first \| label "url" \}\}\{\{ end \}\}'
)
RUNBOOK_URL = re.compile(ADDRESS + r"/runbooks/(?P<page>\w+)(?:#(?P<anchor>[\w-]+))?")
STATUS_URL = re.compile(ADDRESS + r"/(?P<source>#\{\{ \$labels\.source \}\})?")
RUNBOOK_HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "False positives"]
DASHBOARDS = {"audit-overview", "audit-source", "audit-exporter-health", "audit-feeds"}
SEVERITIES = {"critical", "warning", "info"}
# The longest scrape_interval the rules are made for, and how many scrapes a range must hold.
SCRAPE_SECONDS, SCRAPES = 60, 4
TARGET_LABELS = {"job", "namespace", "cluster", "instance"}
# What Prometheus itself writes.
BUILT_IN = {"ALERTS": {"alertname", "alertstate", "severity"}, "ALERTS_FOR_STATE": set(), "up": set()}

# Functions that understand a counter that begins again at 0.
COUNTER_FUNCTIONS = {"increase", "rate", "resets", "changes"}
# These alerts compare counters as they are, which is right for them only because these counters are
# durable; the comments above the rules say why.
COMPARES_DURABLE_COUNTERS = {
    "AuditFeedTainted",
    "AuditEventsLost",
    "AuditEventsRejected",
    "AuditLabelOverflow",
    "AuditNewAgentLogin",
    "AuditNewCategoryOrAction",
}
GUARD = re.compile(
    r"and on \(job, namespace, cluster, source, system\)\s+max_over_time\(source:audit_source_behind:max5m\[(\w+)\]\) == 0(?=\s*(?:$|\)))"
)
# Recorded over a time by themselves: no hour is recorded in which history was read, and the alert on a day looks at how far behind
# the source was.
RECORDED_WITHOUT_HISTORY = (":increase1h", ":increase1d")

KEYWORDS = set(
    "by without on ignoring group_left group_right and or unless bool offset inf nan start end atan2".split()
)
TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<duration>\b(?:\d+(?:ms|[smhdwy]))+\b)|(?P<number>\d+(?:\.\d+)?(?:e[-+]?\d+)?)"""
    r"""|(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)|(?P<op>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],:])|(?P<space>\s+|\#[^\n]*)|(?P<bad>.)"""
)
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}

problems = []


def problem(where, what):
    problems.append(f"{where}: {what}")


def seconds(duration):
    return sum(int(n) * UNITS[u] for n, u in re.findall(r"(\d+)(ms|[smhdwy])", duration))


class Selector:
    """A metric in an expression: its matchers, its range, the functions around it."""

    def __init__(self, name, functions):
        self.name, self.functions, self.matchers, self.range = name, functions, [], None


def parse(expr):
    """The selectors and the grouping labels of an expression."""
    tokens = [(m.lastgroup, m.group()) for m in TOKEN.finditer(expr) if m.lastgroup != "space"]
    selectors, grouping, stack, at = [], set(), [], 0
    last_word = ""
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "bad":
            raise ValueError(f"cannot read {text!r}")
        if text == "(":
            stack.append(last_word)
            last_word = ""
        elif text == ")":
            stack.pop()
            last_word = ""
        elif kind == "name" and text in ("by", "without", "on", "ignoring", "group_left", "group_right"):
            outer = last_word
            if following == "(":
                at += 2
                while tokens[at][1] != ")":
                    if tokens[at][0] == "name":
                        grouping.add(tokens[at][1])
                    at += 1
            # `sum by (x) (…)`: the parenthesis that follows belongs to sum
            last_word = outer if text in ("by", "without") else ""
        elif kind == "name" and text.lower() in KEYWORDS:
            last_word = ""
        elif kind == "name" and following == "(":
            last_word = text
        elif kind == "name" and following in ("by", "without"):
            last_word = text
        elif kind == "name":
            selector = Selector(text, [word for word in stack if word])
            if following == "{":
                at += 2
                while tokens[at][1] != "}":
                    if tokens[at][0] == "name":
                        selector.matchers.append((tokens[at][1], tokens[at + 1][1], tokens[at + 2][1][1:-1]))
                        at += 2
                    at += 1
            if at + 1 < len(tokens) and tokens[at + 1][1] == "[":
                selector.range = tokens[at + 2][1]
                at += 3
            selectors.append(selector)
            last_word = ""
        elif text == "[":
            # a subquery: its range is checked like any other
            selectors.append(Selector("", []))
            selectors[-1].range = tokens[at + 1][1]
            while tokens[at][1] != "]":
                at += 1
        at += 1
    return selectors, grouping


def read_exposed():
    """Sample names of /metrics: name → {label: values, or None where they are open}."""
    exposed = {}
    for line in (ALERTS / "tests" / "exposed.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, *labels = line.split()
            split = (label.partition("=") for label in labels)
            exposed[name.removesuffix("?")] = {label: set(values.split("|")) if values else None for label, _, values in split}
    return exposed


def recorded_labels(rule, known):
    """The labels of a recorded series: what its expression groups by, or has already."""
    selectors, _ = parse(rule["expr"])
    labels = {}
    for selector in selectors:
        labels.update(known.get(selector.name, {}))
    by = re.match(r"\s*\w+ by \(([^)]*)\) \((?:\"(\w+)\")?", rule["expr"])
    if by:
        labels = {label.strip(): labels.get(label.strip()) for label in by.group(1).split(",")}
        if by.group(2):  # count_values by (…) ("label", …)
            labels[by.group(2)] = None
    labels.update({label: None for label in rule.get("labels", {})})
    return {label: values for label, values in labels.items() if label not in ("instance",)}


def is_counter(name):
    return name.endswith(("_total", "_total:max", "_count", "_sum", "_bucket"))


def check_expr(where, rule, known):
    expr = rule["expr"]
    try:
        selectors, grouping = parse(expr)
    except (ValueError, IndexError) as error:
        problem(where, f"the lint cannot read the expression: {error}")
        return
    alert = rule.get("alert")
    available = set(TARGET_LABELS)
    for selector in selectors:
        if selector.name not in known:
            if selector.name:
                problem(where, f"{selector.name} is neither on /metrics nor recorded")
        else:
            labels = known[selector.name]
            available |= set(labels)
            for label, operator, value in selector.matchers:
                if label in TARGET_LABELS:
                    continue
                if label not in labels:
                    problem(where, f"{selector.name} has no label {label}")
                elif labels[label] is not None:
                    wanted = value.split("|") if operator in ("=~", "!~") else [value]
                    for unknown in set(wanted) - labels[label]:
                        problem(where, f'{selector.name}: label {label} is never "{unknown}"')
        if selector.range and seconds(selector.range) < SCRAPES * SCRAPE_SECONDS:
            problem(where, f"[{selector.range}] holds fewer than {SCRAPES} scrapes of {SCRAPE_SECONDS} s")
        if is_counter(selector.name) and alert and alert not in COMPARES_DURABLE_COUNTERS:
            if not (selector.range and COUNTER_FUNCTIONS & set(selector.functions)):
                problem(where, f"the counter {selector.name} is compared raw")
        if selector.range and not is_counter(selector.name) and COUNTER_FUNCTIONS & set(selector.functions[-1:]):
            problem(where, f"{selector.name} is no counter")
    for label in grouping - available:
        problem(where, f"groups by {label}, which no metric in it has")
    if alert:
        if "absent(" in expr and not seconds(rule.get("for", "0s")):
            problem(where, "absent() without `for` fires at every missed scrape")
        if not re.search(r"[<>]|==|absent|vector|unless", expr):
            problem(where, "has no condition")


def check_runbook_url(where, name, url):
    parts = RUNBOOK_URL.fullmatch(url)
    if not parts:
        problem(where, "runbook_url is not an address from audit_exporter_external_url_info and /runbooks/NAME")
        return
    page, anchor = parts["page"], parts["anchor"]
    path = RUNBOOKS / f"{page}.md"
    # what was counted while catching up has one page for all
    owner = "AuditBacklogUnusual" if name.endswith("InBacklog") else name
    if page != owner:
        problem(where, f"runbook_url leads to {page}")
    if not path.is_file():
        problem(where, f"{path.relative_to(ROOT)} does not exist")
    elif anchor:
        slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", path.read_text(), re.M)}
        if anchor not in slugs:
            problem(where, f"{path.relative_to(ROOT)} has no heading for #{anchor}")


def check_alert(where, rule):
    name, notes = rule["alert"], rule.get("annotations", {})
    if not re.fullmatch(r"Audit[A-Z]\w+|Watchdog", name):
        problem(where, "alert names are CamelCase and begin with Audit")
    if rule.get("labels", {}).get("severity") not in SEVERITIES:
        problem(where, f"severity is none of {', '.join(sorted(SEVERITIES))}")
    if "for" not in rule:
        problem(where, "`for` is a choice: say 0m where there is nothing to wait for")
    for note in ("summary", "title", "description", "runbook_url", "status_url", "dashboard_url"):
        if not notes.get(note):
            problem(where, f"has no {note}")
    if "\n" in notes.get("title", "").strip():
        problem(where, "title is one line: it is the subject of a page")
    check_template_queries(where, notes)
    if "{{" in notes.get("summary", "") or not notes.get("summary", "").endswith("."):
        problem(where, "summary is a sentence, without a template")
    if "$value" in str(rule.get("labels")):
        problem(where, "$value in a label makes a new alert of every evaluation")
    check_runbook_url(where, name, notes.get("runbook_url", ""))
    status = STATUS_URL.fullmatch(notes.get("status_url", ""))
    if not status or bool(status["source"]) != ("$labels.source" in notes.get("dashboard_url", "")):
        problem(where, "status_url is not an address from audit_exporter_external_url_info and /, with the source where there is one")
    url = re.fullmatch(r"/d/([\w-]+)(\?var-source=(\{\{ \$labels\.source \}\}|All))?", notes.get("dashboard_url", ""))
    if not url or url.group(1) not in DASHBOARDS:
        problem(where, f"dashboard_url is not one of {', '.join(sorted(DASHBOARDS))}")


def check_silencing(rules):
    """A severe alert silences the milder one of its name. If it ended first, the milder one would be told afterwards."""
    ranks = ["info", "warning", "critical"]
    for path, rule in rules:
        for _, other in rules:
            severities = [each["labels"].get("severity") for each in (rule, other)]
            if rule["alert"] != other["alert"] or not set(severities) <= set(ranks):
                continue
            stays, other_stays = (seconds(each.get("keep_firing_for", "0s")) for each in (rule, other))
            if ranks.index(severities[0]) > ranks.index(severities[1]) and stays < other_stays:
                problem(f"{path.name}: {rule['alert']}", f"{severities[0]} ends before the {severities[1]} that it silences")


def check_template_queries(where, notes):
    """The numbers in the text are those of the very series that fired: two jobs may have a source of one name."""
    for note, text in notes.items():
        for action in re.findall(r"\{\{(.*?)\}\}", text, re.S):
            if not re.search(r"\|\s*query\b|\bquery\s", action):
                continue
            if "source=" in action and "job=" not in action:
                problem(where, f"{note}: a query names a source and no job")
            asked, given = action.count("=%q") + action.count('=\\"%s\\"'), len(re.findall(r"\$labels\.\w+", action))
            if asked != given:
                problem(where, f"{note}: a query has {asked} places for labels and {given} labels")


def check_comments(path):
    lines = path.read_text().splitlines()
    previous_commented = False
    for number, line in enumerate(lines):
        if re.match(r"      - (alert|record): ", line):
            before = lines[number - 1].strip()
            same_subject = "baseline" in line or ":usual_" in line or ":max" in line or "_critical" in line
            if not before.startswith("#") and not (previous_commented and same_subject):
                problem(path.name, f"line {number + 1}: no comment above says why")
            previous_commented = before.startswith("#") or previous_commented


def check_tests(rules):
    """Every alert fires, stays quiet, and is tried at the edge; its templates use labels that are there."""
    cases = {}
    for path in sorted((ALERTS / "tests").glob("*.yml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            match = re.match(r"(\w+) (fires|stays quiet|at the edge|besides): ", test["name"])
            if match:
                cases.setdefault(match.groups(), []).append(test)
    for name in sorted({rule["alert"] for _, rule in rules}):
        where = f"alerts/tests: {name}"
        for kind in ("fires", "stays quiet", "at the edge"):
            if (name, kind) not in cases:
                problem(where, f'no test named "{name} {kind}: …"')
        fired = [
            alert
            for test in cases.get((name, "fires"), [])
            for case in test.get("alert_rule_test", [])
            if case["alertname"] == name
            for alert in case["exp_alerts"]
        ]
        variants = [rule for _, rule in rules if rule["alert"] == name]
        for rule in variants:
            severity = rule["labels"]["severity"]
            mine = [alert for alert in fired if alert["exp_labels"]["severity"] == severity]
            if not mine:
                problem(where, f"no test lets it fire as {severity}")
            used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
            for alert in mine:
                # these two are kept where the series have them
                for label in used - set(alert["exp_labels"]) - {"namespace", "cluster"}:
                    problem(where, f"its annotations use the label {label}, which the alert does not have")
                for note, text in alert["exp_annotations"].items():
                    if "<no value>" in text or "{{" in text or "error expanding" in text:
                        problem(where, f"{note} is not filled in: {text}")
        edges = [case for test in cases.get((name, "at the edge"), []) for case in test["promql_expr_test"]]
        outcomes = {frozenset(map(str, case["exp_samples"])) for case in edges}
        if name != "Watchdog" and edges and len(outcomes) < 2 and not any(o for o in outcomes):
            problem(where, "the edge has only one side")


def check_activity(rules, recording):
    """Alerts on activity are held off while their source catches up, and the proof names them."""
    proof = "".join(path.read_text() for path in sorted((ALERTS / "tests").glob("catch_up*.yml")))

    def stands_on(rule):
        names = {selector.name for selector in parse(rule["expr"])[0]}
        return {name for name in names if name and ":audit_threshold:" not in name and not name.endswith(":usual")}

    # what is recorded with the guard is held off, and so is what is made of nothing else
    held_off = {rule["record"] for rule in recording if GUARD.search(rule["expr"])}
    for _ in range(3):
        held_off |= {rule["record"] for rule in recording if stands_on(rule) and stands_on(rule) <= held_off}
    for path, rule in rules:
        if path.name != "audit-activity.yml" or any(f"{name}{{" in rule["expr"] for name in RECORDED_WITHOUT_HISTORY):
            continue
        where = f"{path.name}: {rule['alert']}"
        guards = GUARD.findall(rule["expr"])
        if guards:
            body, held = GUARD.sub("", rule["expr"]), min(guards, key=seconds)
            for selector in parse(body)[0]:
                offset = f"[{selector.range}] offset" in body
                recorded = re.search(r":increase(\w+)$", selector.name)
                looks_back = recorded.group(1) if recorded else None if offset else selector.range
                if looks_back and seconds(looks_back) > seconds(held):
                    problem(where, f"looks back {looks_back}, but only {held} for catching up")
        elif not stands_on(rule) <= held_off:
            problem(where, "is not held off while its source is catching up")
        if rule["alert"] not in proof:
            problem(where, "is not in alerts/tests/catch_up*.yml")


def check_runbooks(rules, known):
    names = {rule["alert"] for _, rule in rules}
    recorded = {name for name in known if ":" in name}
    for path in sorted(RUNBOOKS.glob("*.md")):
        where = str(path.relative_to(ROOT))
        text = path.read_text()
        if path.stem != "README" and path.stem not in names:
            problem(where, "there is no such alert")
        if path.stem != "README":
            headings = re.findall(r"^## (.*)$", text, re.M)
            if headings != RUNBOOK_HEADINGS:
                problem(where, f"headings are {headings}, not {RUNBOOK_HEADINGS}")
            if not text.startswith(f"# {path.stem}\n"):
                problem(where, "does not begin with the name of its alert")
        for name in re.findall(r"[\w:]*audit_[\w:]+", text):
            histogram = any(f"{name}_bucket" == sample for sample in known)
            prefix = name.endswith("_") and any(sample.startswith(name) for sample in known)
            if name not in known and name not in recorded and not histogram and not prefix:
                problem(where, f"{name} is neither on /metrics nor recorded")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not (path.parent / target).exists():
                problem(where, f"the link to {target} leads nowhere")
        for block in re.findall(r"```promql\n(.*?)```", text, re.S):
            for query in re.split(r"\n\s*\n", block.strip()):
                check_expr(where, {"expr": query.replace("$source", "x")}, known)


def check_alertmanager(rules):
    path = ALERTS / "alertmanager.example.yml"
    where, names = path.name, {rule["alert"] for _, rule in rules}
    config = yaml.safe_load(path.read_text())

    def walk(node, trail):
        if isinstance(node, dict):
            for key, value in node.items():
                secret = re.search(r"(password|secret|token|credentials|(routing|service|api)_key)$", key)
                if secret and isinstance(value, str):
                    problem(where, f"{trail}{key} is a secret; use {key}_file")
                if key.endswith("url") and isinstance(value, str) and "@" in value:
                    problem(where, f"{trail}{key} holds credentials")
                walk(value, f"{trail}{key}.")
        elif isinstance(node, list):
            for value in node:
                walk(value, trail)

    walk(config, "")
    for matcher in re.findall(r'alertname =~? "([^"]+)"', path.read_text()):
        for name in set(matcher.split("|")):
            if not any(re.fullmatch(name, alert) for alert in names):
                problem(where, f"there is no alert {name}")


def family_of(name):
    """A name without the ending of a histogram's part."""
    return re.sub(r"_(bucket|count|sum)$", "", name)


def families_behind(names, recorded):
    """The metrics that these names stand for, through the recorded series; without thresholds and the guard."""
    found, todo, seen = set(), list(names), set()
    while todo:
        name = todo.pop()
        if name in seen or ":audit_threshold:" in name or name == "source:audit_source_behind:max5m":
            continue
        seen.add(name)
        if ":" in name:
            todo.extend(recorded.get(name, ()))
        else:
            found.add(family_of(name))
    return found


def check_metrics_page(rules, recording, known):
    """docs/metrics.md: each family once, with its labels, the alerts that use it, and in an example query."""
    path = ROOT / "docs" / "metrics.md"
    where, text = str(path.relative_to(ROOT)), path.read_text()
    names_in = lambda rule: {selector.name for selector in parse(rule["expr"])[0] if selector.name}
    recorded = {}
    for rule in recording:
        recorded.setdefault(rule["record"], set()).update(names_in(rule))
    uses = {}
    for _, rule in rules:
        for family in families_behind(names_in(rule), recorded):
            uses.setdefault(family, set()).add(re.sub(r"^.*InBacklog$", "…InBacklog", rule["alert"]))
    labels = {}
    for name, has in read_exposed().items():
        family = family_of(name) if f"{family_of(name)}_bucket" in known else name
        labels.setdefault(family, set()).update(set(has) - {"le"})
    blocks = re.findall(r"```promql\n(.*?)```", text, re.S)
    asked = set()
    for query in (query for block in blocks for query in re.split(r"\n\s*\n", block.strip())):
        check_expr(where, {"expr": query.replace("$source", "x")}, known)
        asked |= families_behind(names_in({"expr": query}), {})
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (.*) \|$", text, re.M)
    for name in sorted({name for name, _ in rows if [n for n, _ in rows].count(name) > 1}):
        problem(where, f"{name} is there twice")
    rows = {name: cells.split(" | ") for name, cells in rows}
    for family in sorted(set(labels) - set(rows)):
        problem(where, f"has no row for {family}")
    for family, cells in rows.items():
        if family not in labels:
            problem(where, f"{family} is not on /metrics")
            continue
        if len(cells) != 4 or not all(cells):
            problem(where, f"{family}: a row has labels, unit, meaning and alerts")
            continue
        if set(re.findall(r"`(\w+)`", cells[0])) != labels[family]:
            problem(where, f"{family} has the labels {', '.join(sorted(labels[family]))}")
        if set(re.findall(r"`([\w…]+)`", cells[3])) != uses.get(family, set()):
            problem(where, f"{family} is used by {', '.join(sorted(uses.get(family, [])))}")
        if family not in asked:
            problem(where, f"{family} is in no example query")


def check_dashboards():
    found = sorted((ROOT / "dashboards").glob("*.json"))
    if not found:
        print("lint: SKIPPED that dashboard_url leads to a dashboard: dashboards/*.json is not there")
        return
    uids = set(re.findall(r'^\s{0,4}"uid":\s*"([\w-]+)"', "\n".join(p.read_text() for p in found), re.M))
    for uid in DASHBOARDS - uids:
        problem("dashboards", f"no dashboard has the uid {uid}")


def read_rules():
    """All groups with their files; all rules with theirs."""
    groups = [(path, group) for path in sorted(ALERTS.glob("audit-*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return groups, [(path, rule) for path, group in groups for rule in group["rules"]]


def known_series(recording):
    """What can be asked for: series of /metrics, of Prometheus itself, and recorded ones, with their labels."""
    known = {name: dict(labels) for name, labels in read_exposed().items()}
    known.update({name: {label: None for label in labels} for name, labels in BUILT_IN.items()})
    # a rule may stand on one that comes later in another file: labels settle in a few rounds
    for _ in range(5):
        for rule in recording:
            # several rules may record one name, with labels of their own
            known.setdefault(rule["record"], {}).update(recorded_labels(rule, known))
    return known


def main():
    files = sorted(ALERTS.glob("audit-*.yml"))
    groups, everything = read_rules()
    recording = [rule for _, rule in everything if "record" in rule]
    known = known_series(recording)
    for rule in recording:
        if not re.fullmatch(r"[a-z_]+:audit_[a-z_]+:[a-z0-9_]+", rule["record"]):
            problem(rule["record"], "recorded names are level:metric:operation")
    text = "".join(path.read_text() for path in files)
    for rule in recording:
        if text.count(rule["record"]) < 2:
            problem(rule["record"], "is recorded and never used")
    seen = set()
    for path, group in groups:
        if group["name"] in seen:
            problem(path.name, f"the group {group['name']} is there twice")
        seen.add(group["name"])
    for path, rule in everything:
        check_expr(f"{path.name}: {rule.get('alert') or rule['record']}", rule, known)
    rules = [(path, rule) for path, rule in everything if "alert" in rule]
    for path, rule in rules:
        check_alert(f"{path.name}: {rule['alert']}", rule)
    for path in files:
        check_comments(path)
    check_tests(rules)
    check_activity(rules, recording)
    check_silencing(rules)
    check_runbooks(rules, known)
    check_metrics_page(rules, recording, known)
    check_alertmanager(rules)
    check_dashboards()
    for line in problems:
        print(line)
    if problems:
        sys.exit(f"lint: {len(problems)} problem(s)")
    alerts = len({rule["alert"] for _, rule in rules})
    print(f"lint: {alerts} alerts, {len(recording)} recorded series, no problem")


if __name__ == "__main__":
    main()
