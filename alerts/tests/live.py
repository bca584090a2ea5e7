#!/usr/bin/env python3
"""Loads the rules into a real Prometheus that scrapes `audit-exporter demo`.

What unit tests cannot show: that every metric and label the rules are made for is really there
(exposed.txt says so, and is compared here), and that no rule fails on real labels.

Usage: live.py AUDIT_EXPORTER WORK_FOLDER
"""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ALERTS = Path(__file__).resolve().parent.parent
BINARY, WORK = sys.argv[1], Path(sys.argv[2])
# The recorded counters are evaluated every 15 s; two rounds and a little.
SETTLE_SECONDS = 45


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(what, attempt, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if attempt():
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"live: {what} did not happen within {seconds} s")


def check_exposed(text):
    """exposed.txt and the page agree on names and labels."""
    shown = {}
    for line in text.splitlines():
        match = re.match(r"(audit_\w+)(?:\{(.*)\})? ", line)
        if match:
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(2) or ""))
            shown.setdefault(match.group(1), []).append(labels)
    problems = []
    known, maybe = {}, set()
    for line in (ALERTS / "tests" / "exposed.txt").read_text().splitlines():
        if line.startswith("audit_"):
            name, *labels = line.split()
            if name.endswith("?"):
                name = name.removesuffix("?")
                maybe.add(name)
            known[name] = {label: values.split("|") if values else None for label, _, values in (l.partition("=") for l in labels)}
    for name in sorted(known.keys() - shown.keys() - maybe):
        problems.append(f"{name} is in exposed.txt and not on /metrics")
    for name in sorted(shown.keys() - known.keys()):
        problems.append(f"{name} is on /metrics and not in exposed.txt")
    for name in sorted(shown.keys() & known.keys()):
        for labels in shown[name]:
            if set(labels) != set(known[name]):
                problems.append(f"{name} has the labels {sorted(labels)}, not {sorted(known[name])}")
                break
        for label, values in known[name].items():
            strange = {labels.get(label) for labels in shown[name]} - set(values or [])
            if values and strange:
                problems.append(f"{name}: {label} is also {sorted(map(str, strange))}")
    return problems


def main():
    exporter_port, prometheus_port = free_port(), free_port()
    exporter_log, prometheus_log = open(WORK / "demo.log", "w"), open(WORK / "prometheus.log", "w")
    exporter = subprocess.Popen(
        [BINARY, "demo", f"--web.listen-address=127.0.0.1:{exporter_port}", f"--storage.path={WORK}/ledger"],
        stdout=exporter_log, stderr=exporter_log,
    )
    prometheus = None
    try:
        wait("the demo's readiness", lambda: get(f"http://127.0.0.1:{exporter_port}/-/ready"))
        config = WORK / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 5s}\n"
            f"rule_files: ['{ALERTS}/audit-*.yml']\n"
            "scrape_configs:\n  - job_name: audit-exporter\n    static_configs:\n"
            f"      - targets: ['127.0.0.1:{exporter_port}']\n"
        )
        prometheus = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={WORK}/tsdb", f"--web.listen-address=127.0.0.1:{prometheus_port}"],
            stdout=prometheus_log, stderr=prometheus_log,
        )
        api = f"http://127.0.0.1:{prometheus_port}"
        wait("Prometheus's readiness", lambda: get(f"{api}/-/ready"))

        def files_are_listed():
            return 'audit_feed_files{' in get(f"http://127.0.0.1:{exporter_port}/metrics")

        wait("the first list of files", files_are_listed)
        time.sleep(SETTLE_SECONDS)
        problems = check_exposed(get(f"http://127.0.0.1:{exporter_port}/metrics"))
        groups = json.loads(get(f"{api}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        for rule in rules:
            if rule["health"] == "err" or rule.get("lastError"):
                problems.append(f"{rule['name']}: {rule.get('lastError')}")
        # What is usual takes longer. Steps are there in an attack only, a backlog after an outage, and the present (present15m)
        # where no history is read.
        sometimes = re.compile("_step:|:audit_backlog_peak:|:present15m$")
        soon = [group for group in groups if group["interval"] <= 15]
        known = [rule["name"] for group in soon for rule in group["rules"] if not sometimes.search(rule["name"])]
        for name in sorted({name for name in known if name.startswith(("source:audit_source_", "source:audit_threshold:", "source_p", "source_c"))}):
            if not json.loads(get(f"{api}/api/v1/query?query={name}"))["data"]["result"]:
                problems.append(f"{name} is not recorded")
        state = {alert["labels"]["alertname"] for alert in json.loads(get(f"{api}/api/v1/alerts"))["data"]["alerts"] if alert["state"] == "firing"}
        if "Watchdog" not in state:
            problems.append("Watchdog does not fire")
        activity = set(re.findall(r"alert: (\w+)", (ALERTS / "audit-activity.yml").read_text()))
        if state & activity:
            problems.append(f"the history that a first start reads sets off {sorted(state & activity)}")
        broken = state & {
            "AuditSourceDown", "AuditManySourcesDown", "AuditExporterAbsent", "AuditExporterDown", "AuditStorageFailing",
            "AuditConfigReloadFailed", "AuditSourceVanished", "AuditStoreRestored", "AuditExporterClockOff",
        }
        if broken:
            problems.append(f"a healthy demo sets off {sorted(broken)}")
        for problem in problems:
            print(f"live: {problem}")
        if problems:
            sys.exit(1)
        print(f"live: {len(rules)} rules are evaluated on a running exporter; firing in the demo: {', '.join(sorted(state))}")
    finally:
        for process in (prometheus, exporter):
            if process:
                process.terminate()
                process.wait(timeout=20)


if __name__ == "__main__":
    main()
