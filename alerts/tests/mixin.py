#!/usr/bin/env python3
"""mixin.libsonnet: its defaults are the plain files, and each setting changes what it is for, everywhere.

With Debian's jsonnet, and with the module `gojsonnet` of PyPI (a newer one, in Go) where it is there.

Usage: mixin.py WORK_FOLDER
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = Path(sys.argv[1]).resolve() / "mixin"
sys.path.insert(0, str(ROOT / "alerts"))
sys.argv = sys.argv[:1]
import lint  # noqa: E402

try:
    import _gojsonnet
except ImportError:
    _gojsonnet = None

LABEL = "namespace"
problems = []


def problem(what):
    problems.append(what)
    print(f"mixin: {what}")


def debian(snippet):
    done = subprocess.run(["jsonnet", "-J", ROOT, "-e", snippet], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())  # as the module does
    return json.loads(done.stdout)


def module(snippet):
    return json.loads(_gojsonnet.evaluate_snippet("test", snippet, jpathdir=str(ROOT)))


def with_config(config):
    return f"((import 'mixin.libsonnet') + {{ _config+:: {config} }})"


RULES = "{ alerts: m.prometheusAlerts.groups, rules: m.prometheusRules.groups }"
BOARDS = "{ boards: m.grafanaDashboards }"
ALL = "{ alerts: m.prometheusAlerts.groups, rules: m.prometheusRules.groups, boards: m.grafanaDashboards }"


def rendered(engine, config="{}", what=ALL):
    return engine(f"local m = {with_config(config)}; {what}")


def plain():
    alerts, rules = [], []
    for path in sorted((ROOT / "alerts").glob("audit-*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            (alerts if any("alert" in rule for rule in group["rules"]) else rules).append(group)
    boards = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards").glob("*.json"))}
    return {"alerts": alerts, "rules": rules, "boards": boards}


def differences(one, other, trail=""):
    """Where two documents differ: paths."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [d for key in sorted(one.keys() | other.keys()) for d in differences(one.get(key), other.get(key), f"{trail}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for at, (a, b) in enumerate(zip(one, other)) for d in differences(a, b, f"{trail}/{at}")]
    return [] if one == other and type(one) is type(other) else [trail]


def rules_of(document):
    return [rule for part in ("alerts", "rules") for group in document[part] for rule in group["rules"]]


def name_of(rule):
    return rule.get("alert") or rule["record"]


def queries_of(value, key=""):
    """All queries of a dashboard."""
    if isinstance(value, dict):
        return [one for name, inner in value.items() for one in queries_of(inner, name)]
    if isinstance(value, list):
        return [one for inner in value for one in queries_of(inner)]
    return [value] if key in ("expr", "query", "definition") and isinstance(value, str) and re.search(r"audit_|ALERTS|\bup\b|process_", value) else []


def selectors(query):
    """The selectors of a query, Grafana's variables replaced."""
    query = re.sub(r"^label_values\((.*), \w+\)$", r"\1", query)
    query = re.sub(r"\$\{?__\w+_ms\}?", "60000", query)
    query = re.sub(r"\$\{?__(?:from|to)\}?(?:ms)?", "5m", query)
    query = re.sub(r"\$\{?__(?:rate_interval|interval|range)\}?", "5m", query)
    query = re.sub(r"\$\{?(\w+)(?::\w+)?\}?", r"\1", query)
    query = re.sub(r"@\s*(?:(?:start|end)\(\)|-?[\w.]+)", "", query)
    try:
        lint.parse(query)
    except ValueError as error:
        problem(f"{error} in {query}")
        return []
    return [one for one in lint.parse(query)[0] if one.name and not one.name[0].isdigit()]


def is_scraped(name):
    return ":" not in name and (name.startswith(("audit_", "process_")) or name == "up")


def in_templates(text):
    """Queries within {{ }} of an annotation, as they are asked."""
    found = []
    for action in re.findall(r"\{\{(.*?)\}\}", text, re.S):
        for quoted in re.findall(r'"((?:[^"\\]|\\.)*)"|`([^`]*)`', action):
            query = quoted[1] or re.sub(r"\\(.)", r"\1", quoted[0])
            if re.search(r"audit_\w|\bup\{", query):
                found.append(query.replace("%q", '"x"').replace("%s", "x").replace("%%", "%"))
    return found


# === checks ===


def check_defaults(engine, files):
    found = rendered(engine)
    names = {group["name"] for part in ("alerts", "rules") for group in found[part]}
    for path in sorted((ROOT / "alerts").glob("audit-*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            if group["name"] not in names:
                problem(f"alerts/{path.name} is not in mixin.libsonnet")
                return
    for part in ("alerts", "rules"):
        wanted = {group["name"]: group for group in files[part]}
        for path in differences({group["name"]: group for group in found[part]}, wanted):
            problem(f"with its defaults the mixin differs from the plain rules: {path}")
    for path in differences(found["boards"], files["boards"]):
        problem(f"with its defaults the mixin differs from the plain dashboards: {path}")


def has_matcher(selector, label, value, operator="="):
    return any((name, op, text) == (label, operator, value) for name, op, text in selector.matchers)


def check_selector(engine, files):
    """A selector is in every query on what is scraped, and only there; nothing else changes."""
    found = rendered(engine, """{ auditExporterSelector: 'namespace="sec ops", job="audit"' }""")
    count = 0
    for rule in rules_of(found):
        texts = [rule["expr"]] + [query for text in rule.get("annotations", {}).values() for query in in_templates(text)]
        for query in texts:
            for selector in selectors(query):
                ours = has_matcher(selector, LABEL, "sec ops")
                count += ours
                if is_scraped(selector.name) != ours:
                    problem(f"{name_of(rule)}: {selector.name} {'has' if ours else 'lacks'} the selector in {query}")
    for name, board in found["boards"].items():
        for query in queries_of(board):
            for selector in selectors(query):
                ours = has_matcher(selector, LABEL, "sec ops")
                count += ours
                if is_scraped(selector.name) != ours:
                    problem(f"{name}: {selector.name} {'has' if ours else 'lacks'} the selector in {query}")
    text = json.dumps(found).replace('namespace=\\"sec ops\\", job=\\"audit\\", ', "").replace('{namespace=\\"sec ops\\", job=\\"audit\\"}', "")
    text = text.replace('namespace=\\\\\\"sec ops\\\\\\", job=\\\\\\"audit\\\\\\", ', "").replace('{namespace=\\\\\\"sec ops\\\\\\", job=\\\\\\"audit\\\\\\"}', "")
    for path in differences(by_name(json.loads(text)), by_name(files)):
        problem(f"the selector changes more than selectors: {path}")
    promtool("selector", found)
    return count


def by_name(document):
    return {part: {group["name"]: group for group in document[part]} for part in ("alerts", "rules")} | {"boards": document["boards"]}


def promtool(name, document):
    path = WORK / f"{name}.yml"
    path.write_text(json.dumps({"groups": document["alerts"] + document["rules"]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    if done.returncode:
        problem(f"promtool refuses the rules with another {name}: {done.stdout}{done.stderr}")


def check_thresholds(engine, files):
    """Each threshold is in _config, and changes its rule and nothing else."""
    keys = rendered(engine, what="m._config.thresholds")
    groups = yaml.safe_load((ROOT / "alerts" / "audit-thresholds.yml").read_text())["groups"]
    recorded = {rule["record"].partition(":audit_threshold:")[2] for group in groups for rule in group["rules"]}
    for missing in recorded ^ {key.partition("{")[0] for key in keys}:
        problem(f"_config.thresholds and the plain file differ: {missing}")
    numbers = {key: 900_000 + at for at, key in enumerate(sorted(keys))}
    before = rules_of({part: sorted_groups(files[part]) for part in ("alerts", "rules")})

    def changed(config):
        found = rendered(engine, config, RULES)
        promtool("thresholds", found)
        after = rules_of({part: sorted_groups(found[part]) for part in ("alerts", "rules")})
        changed = {}
        for old, new in zip(before, after, strict=True):
            name = old.get("record", "").partition(":audit_threshold:")[2]
            name = name if name in recorded else ""
            if (old != new) != bool(name) or name and differences(old, new) != ["/expr"]:
                problem(f"{name_of(old)}: other thresholds make {new} of {old}")
            elif name:
                changed[name] = (old["expr"], new["expr"])
        return changed

    # all at once, each with a number of its own
    for name, (old, new) in changed(f"{{ thresholds+: {json.dumps(numbers)} }}").items():
        lines = list(zip(old.strip().splitlines(), new.strip().splitlines(), strict=True))
        for one, other in lines:
            selector = re.search(r"\{.*?\}", one)
            key = name + (selector[0] if selector and len(lines) > 1 else "")
            if other != re.sub(r"\+ [\d.]+( \* [\d.]+)*(?=\)|$)", f"+ {numbers[key]}", one) or str(numbers[key]) not in other:
                problem(f"the threshold {key} makes {other!r} of {one!r}")
    bare = lambda expr: re.sub(r"[\s()]", "", expr)  # noqa: E731
    own = {name: {"campus": 800_000 + at} for at, name in enumerate(sorted(recorded))}
    for name, (old, new) in changed(f"{{ sourceThresholds: {json.dumps(own)} }}").items():
        if not re.match(rf'\(0 \* \S+\{{source="campus"\}} \+ {own[name]["campus"]}\)\nor \(', new) or not bare(new).endswith("or" + bare(old)):
            problem(f"the threshold {name} of a source makes {new!r} of {old!r}")
    for wrong in ("{ thresholds+: { no_such_thing: 1 } }", "{ sourceThresholds+: { no_such_thing: {} } }"):
        try:
            rendered(engine, wrong, RULES)
            problem(f"{wrong} is taken without a word")
        except RuntimeError as error:
            if "there is no threshold no_such_thing" not in str(error):
                problem(f"{wrong}: {error}")
    return len(keys)


def sorted_groups(groups):
    return sorted(groups, key=lambda group: group["name"])


def check_labels(engine, files):
    """A label is added to each list of labels with a job in it; the name of the cluster's can be another."""
    found = rendered(engine, "{ aggregationLabels: ['team', 'namespace'], clusterLabel: 'k8s' }", RULES)
    lists = 0
    for rule in rules_of(found):
        for word, inside in re.findall(r"\b(by|on)\s*\(([^)]*)\)", rule["expr"]):
            labels = [label.strip() for label in inside.split(",")]
            lists += 1
            if "job" in labels and not ({"team", "namespace"} <= set(labels) and "cluster" not in labels) or len(set(labels)) != len(labels):
                problem(f"{name_of(rule)}: {word} ({inside})")
            if "job" not in labels:
                problem(f"{name_of(rule)}: {word} ({inside}) has no job")
    # the lists apart, all is as it was
    empty = [re.sub(r"\b(by|on) \([^)]*\)", r"\1 ()", json.dumps(by_name(one | {'boards': {}}), sort_keys=True)) for one in (found, files)]
    if empty[0].replace("k8s", "cluster") != empty[1]:
        problem("aggregationLabels changes more than lists of labels")
    promtool("aggregationLabels", found)
    # the plain files as they will be, with and without what is added
    again = rendered(engine, "{ aggregationLabels: ['job', 'source', 'system'] }", RULES)
    for rule in rules_of(again):
        for inside in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            labels = inside.split(", ")
            if len(set(labels)) != len(labels):
                problem(f"{name_of(rule)}: ({inside}) says a label twice")
    return lists


def check_addresses(engine, files):
    config = "{ grafanaUrl: 'https://g.test', runbookUrl: 'https://x.test/runbooks/%s?from=alert', statusUrl: 'https://s.test/', dashboardTags: ['mine'] }"
    found = rendered(engine, config)
    for rule, old in zip(rules_of({part: sorted_groups(found[part]) for part in ("alerts", "rules")}), rules_of({part: sorted_groups(files[part]) for part in ("alerts", "rules")}), strict=True):
        if "alert" in rule:
            notes = rule["annotations"]
            wanted = old["annotations"] | {
                "runbook_url": re.sub(r"^.*/runbooks/(\w+)", r"https://x.test/runbooks/\1?from=alert", old["annotations"]["runbook_url"]), "status_url": "https://s.test/",
                "dashboard_url": "https://g.test" + old["annotations"]["dashboard_url"],
            }
            if notes != wanted or {**rule, "annotations": 0} != {**old, "annotations": 0}:
                problem(f"{rule['alert']}: with other addresses its annotations are {notes}")
    text = json.dumps(found["boards"])
    if "runbooks:raw" in text or "https://x.test/runbooks/${__data.fields.Alert}?from=alert" not in text or '"audit-exporter"' in re.sub(r'"uid": "audit-exporter[^"]*"', "", json.dumps([board["tags"] for board in found["boards"].values()])):
        problem("a dashboard keeps the address of a runbook or the tags")
    for name, board in found["boards"].items():
        if board["tags"] != ["mine"] or not all(link["tags"] == ["mine"] for link in board["links"] if link.get("type") == "dashboards"):
            problem(f"{name}: its tags are {board['tags']}, its links {board['links']}")


def check_clusters(engine, files):
    found = rendered(engine, "{ showMultiCluster: true, clusterLabel: 'k8s' }", BOARDS)["boards"]
    count = 0
    for name, board in found.items():
        variables = [one["name"] for one in board["templating"]["list"]]
        if variables[:2] != ["datasource", "cluster"]:
            problem(f"{name}: its variables are {variables}")
        chosen = next(one for one in board["templating"]["list"] if one["name"] == "cluster")
        if chosen["definition"] != "label_values(audit_source_up, k8s)":
            problem(f"{name}: the clusters are {chosen['definition']}")
        for query in queries_of({**board, "templating": {"list": [one for one in board["templating"]["list"] if one["name"] != "cluster"]}}):
            for selector in selectors(query):
                count += 1
                if not has_matcher(selector, "k8s", "cluster", "=~"):
                    problem(f"{name}: {selector.name} is not chosen by cluster in {query}")
    return count


def main():
    WORK.mkdir()
    files = plain()
    engines = [debian]
    if _gojsonnet:
        engines.append(module)
    else:
        print("mixin: SKIPPED a newer jsonnet: pip install gojsonnet", file=sys.stderr)
    for engine in engines:
        check_defaults(engine, files)
    if problems:
        sys.exit(1)
    # one is enough for the settings, and newer ones are faster
    engine = engines[-1]
    selected, thresholds, lists = check_selector(engine, files), check_thresholds(engine, files), check_labels(engine, files)
    check_addresses(engine, files)
    chosen = check_clusters(engine, files)
    if not all((selected, thresholds, lists, chosen)):
        problem(f"nothing was looked at: {selected} selectors, {thresholds} thresholds, {lists} lists, {chosen} choices")
    if problems:
        sys.exit(1)
    print(f"mixin: as the plain files ({len(engines)} jsonnet); {selected} selectors, {thresholds} thresholds, {lists} lists of labels, {chosen} choices of a cluster")


if __name__ == "__main__":
    main()
