#!/usr/bin/env python3
"""The example for Alertmanager and its templates in a real Alertmanager.

 - Each shipped alert goes where its severity says (amtool), and is grouped as the file says.
 - Inhibitions, each pair of each rule: the target is silenced, and not when a label in `equal` differs, above all not in
   another cluster, and never by an alert that is not ours. No alert silences itself, and whatever is silenced is silenced
   by one that is told.
 - What PagerDuty, Slack, a mail server and webhooks are sent; the beats of the dead man's switch.

Usage: routing.py ALERTMANAGER AMTOOL WORK_FOLDER
"""

import email
import email.policy
import http.server
import itertools
import json
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

import yaml

ALERTS = Path(__file__).resolve().parent.parent
ALERTMANAGER, AMTOOL, WORK = sys.argv[1], sys.argv[2], Path(sys.argv[3]).resolve() / "routing"
EXAMPLE = yaml.safe_load((ALERTS / "alertmanager.example.yml").read_text())
RECEIVER_OF = {"critical": "page", "warning": "ticket", "info": "record"}
# A minute of the routes is a second here.
FASTER = 60
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))

problems = []

# of an alert that has the label: powers of 3, as far as the example for Alertmanager goes
STEPS = ("1", "3", "9", "27", "81", "243", "729", "2187")


def problem(what):
    problems.append(what)
    print(f"routing: {what}")


def rules():
    """All alerts: (file, name, severity)."""
    found = []
    for path in sorted(ALERTS.glob("audit-*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found += [(path.name, rule["alert"], rule["labels"]["severity"]) for rule in group["rules"] if "alert" in rule]
    return sorted(set(found))


# === a receiver of everything ===

RECEIVED = {"page": [], "ticket": [], "record": [], "dead-mans-switch": [], "pagerduty": [], "slack": [], "mail": []}


class Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        RECEIVED[self.path.strip("/")].append((time.monotonic(), body))
        answer = b'{"status":"success"}' if "pagerduty" in self.path else b"ok"
        self.send_response(202 if "pagerduty" in self.path else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as it takes to be sent a mail."""

    def handle(self):
        def say(line):
            self.wfile.write(line.encode() + b"\r\n")

        say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line.upper().split(" ")[0]
            if word == "DATA":
                say("354 go on")
                lines = []
                while (text := self.rfile.readline()).strip() != b".":
                    lines.append(text[1:] if text.startswith(b"..") else text)
                RECEIVED["mail"].append((time.monotonic(), email.message_from_bytes(b"".join(lines), policy=email.policy.default)))
                say("250 taken")
            elif word == "QUIT":
                return say("221 bye")
            else:
                say("250 ok")


def serve(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


# === the Alertmanager ===


def faster(node):
    if isinstance(node, dict):
        return {key: seconds(value) if key in ("group_wait", "group_interval", "repeat_interval") else faster(value) for key, value in node.items()}
    return [faster(one) for one in node] if isinstance(node, list) else node


def seconds(duration):
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    total = sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smhd])", duration))
    # waiting for what comes at the same time is about the seconds of computers
    return f"{total}s" if total < 10 else f"{total * 1000 // FASTER}ms"


def configure(web, mail):
    """The example, its addresses replaced by ours; and the same where nothing is sent, to look who is silenced."""
    config = faster(json.loads(json.dumps(EXAMPLE)))
    config["templates"] = [str(ALERTS / pattern) for pattern in config["templates"]]
    for name in ("key", "token", "slack"):
        (WORK / name).write_text(f"http://127.0.0.1:{web}/slack" if name == "slack" else "not-a-secret")
    for receiver in config["receivers"]:
        for hook in receiver.get("webhook_configs", []):
            hook["url"] = f"http://127.0.0.1:{web}/{receiver['name']}"
            hook["http_config"]["authorization"]["credentials_file"] = str(WORK / "token")
        for one in receiver.get("pagerduty_configs", []):
            one |= {"url": f"http://127.0.0.1:{web}/pagerduty", "routing_key_file": str(WORK / "key")}
        for one in receiver.get("slack_configs", []):
            one["api_url_file"] = str(WORK / "slack")
        for one in receiver.get("email_configs", []):
            one |= {"smarthost": f"127.0.0.1:{mail}", "require_tls": False}
            del one["auth_username"], one["auth_password_file"]
    # PagerDuty is not told labels: a webhook beside it
    page = next(one for one in config["receivers"] if one["name"] == "page")
    page["webhook_configs"] = [{"url": f"http://127.0.0.1:{web}/page"}]
    loud, mute = WORK / "loud.yml", WORK / "mute.yml"
    loud.write_text(json.dumps(config))
    config["receivers"] = [{"name": one["name"]} for one in config["receivers"]]
    # hundreds of cases at once, which must not touch each other
    for rule in config["inhibit_rules"]:
        rule["equal"].append("case")
    mute.write_text(json.dumps(config))
    return loud, mute


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    with LOCAL.open(request, timeout=20) as answer:
        return json.loads(answer.read() or "null")


def until(what, true, wait=20):
    end = time.monotonic() + wait
    while True:
        try:
            if found := true():
                return found
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() > end:
            return problem(f"after {wait} s still not: {what}")
        time.sleep(0.1)


NOW = datetime.now(timezone.utc)


def alert(**labels):
    return {
        "labels": labels, "startsAt": NOW.isoformat(), "endsAt": (NOW + timedelta(hours=1)).isoformat(),
        "annotations": {
            "summary": "A summary.", "description": "A description.",
            "runbook_url": "https://example.org/runbooks/x.md", "dashboard_url": f"/d/audit-source?var-source={labels.get('source', 'All')}",
        },
        "generatorURL": "http://prometheus.example.com/graph?g0.expr=a+%3E+1&g0.tab=1",
    }


class Board:
    """Alerts that are posted together; each case has a label of its own, which configure() adds to every `equal`."""

    def __init__(self, port):
        self.port, self.alerts, self.wanted, self.cases = port, [], [], 0

    def case(self, what, silenced=(), told=()):
        """`silenced` and `told` are alerts (dicts of labels), all there at the same time."""
        self.cases += 1
        own = {"case": str(self.cases)}
        for labels, wanted in [(one, True) for one in silenced] + [(one, False) for one in told]:
            self.alerts.append(alert(**labels, **own))
            self.wanted.append((what, {**labels, **own}, wanted))

    def judge(self):
        for start in range(0, len(self.alerts), 256):
            ask(self.port, "/api/v2/alerts", self.alerts[start : start + 256])
        # the inhibitor learns of alerts a moment after they are stored
        time.sleep(2)
        state = {frozenset(one["labels"].items()): one["status"] for one in ask(self.port, "/api/v2/alerts")}
        for what, labels, wanted in self.wanted:
            status = state[frozenset(labels.items())]
            if bool(status["inhibitedBy"]) != wanted:
                problem(f"{what}: {labels} is {'told' if wanted else 'silenced'}")
        return state


# === cases ===


def matches(matchers, labels):
    for matcher in matchers:
        name, operator, value = re.fullmatch(r'(\w+) (=~|=) "(.*)"', matcher).groups()
        if not (re.fullmatch(value, labels.get(name, "")) if operator == "=~" else labels.get(name, "") == value):
            return False
    return True


def sides(matchers, names):
    """Label sets that fulfil matchers: each name that is meant, or two where all are."""
    choices = []
    for matcher in matchers:
        name, operator, value = re.fullmatch(r'(\w+) (=~|=) "(.*)"', matcher).groups()
        values = value.split("|") if operator == "=~" else [value]
        choices.append([(name, one) for one in (names if value == "Audit.+" else values)])
    return [dict(pick) for pick in itertools.product(*choices)]


def inhibitions(board):
    names = ["AuditFailedLogins", "AuditBulkDeletions"]
    for number, rule in enumerate(EXAMPLE["inhibit_rules"]):
        where = f"inhibit rule {number + 1}"
        equal = rule["equal"]
        if "cluster" not in equal:
            problem(f"{where}: cluster is not in equal")
        for side in ("source_matchers", "target_matchers"):
            value = next((re.search(r'"(.*)"', one)[1] for one in rule[side] if one.startswith("alertname ")), "")
            if not value or not all(one.startswith("Audit") for one in value.split("|")):
                problem(f"{where}: {side} is not limited to our alerts")
                return
        filled = {label: "here" for label in equal if label not in ("alertname", "severity")}
        # what the matchers leave open
        open_ = {"severity": "critical"} if "severity" in equal else {}
        for source, target in itertools.product(sides(rule["source_matchers"], names), sides(rule["target_matchers"], names)):
            if "alertname" in equal and source["alertname"] != target["alertname"]:
                continue
            what = f"{where}, {source} and {target}"
            source, target = ({"job": "audit"} | filled | open_ | one for one in (source, target))
            board.case(what, silenced=[target], told=[source])
            # labels that both lack are equal
            lacking = [{k: v for k, v in one.items() if k not in ("cluster", "namespace")} for one in (source, target)]
            board.case(f"{what}, without cluster", silenced=[lacking[1]], told=[lacking[0]])
            for label in equal:
                if label not in ("alertname", "severity"):
                    board.case(f"{what}, another {label}", told=[source, {**target, label: "there"}])
            board.case(f"{what}, only one with a cluster", told=[source, {k: v for k, v in target.items() if k != "cluster"}])
            board.case(f"{what}, another team's", told=[{**source, "alertname": "Disk"}, {**target, "alertname": "Disk"}])


def scenarios(board):
    # the ones of an Alertmanager that others share
    board.case("another team", told=[
        {"alertname": "DiskFull", "severity": "critical", "host": "a"}, {"alertname": "DiskFull", "severity": "warning", "host": "b"},
        {"alertname": "DiskFull", "severity": "info"},
    ])
    ours = {"alertname": "AuditFailedLogins", "job": "audit", "source": "campus"}
    board.case("two clusters", silenced=[{**ours, "severity": "warning", "cluster": "eu"}], told=[
        {**ours, "severity": "critical", "cluster": "eu"}, {**ours, "severity": "warning", "cluster": "us"},
    ])
    # one network
    down = [
        {"alertname": name, "severity": severity, "job": "audit", "source": f"s{number}", "system": "canvas", "cluster": "eu"}
        for name, severity in [("AuditSourceDown", "warning"), ("AuditSourceDown", "critical"), ("AuditSourceStale", "warning")]
        for number in range(200)
    ]
    board.case("200 sources, one network", silenced=down, told=[
        {"alertname": "AuditManySourcesDown", "severity": "critical", "job": "audit", "cluster": "eu"},
        {**down[0], "job": "other"}, {**down[0], "cluster": "us"},
        {"alertname": "AuditFeedTainted", "severity": "critical", "job": "audit", "source": "s1", "cluster": "eu"},
        {"alertname": "AuditCredentialsRefused", "severity": "critical", "job": "audit", "source": "s999", "cluster": "eu"},
    ])
    # an exporter with a job; no exporter at all, which has none
    gone = [{"alertname": "AuditSourceVanished", "severity": "warning", "job": "audit", "source": f"s{number}"} for number in range(5)]
    board.case("one exporter", silenced=gone, told=[
        {"alertname": "AuditExporterDown", "severity": "critical", "job": "audit"}, {**gone[0], "job": "other"},
    ])
    board.case("no exporter", silenced=[*gone, {"alertname": "AuditExporterDown", "severity": "critical", "job": "audit"}], told=[
        {"alertname": "AuditExporterAbsent", "severity": "critical"}, {**gone[0], "cluster": "us"},
    ])
    # a rise
    steps = [{**ours, "severity": "critical", "principal": "user", "step": step} for step in STEPS]
    for highest in range(4):
        board.case(f"steps up to {steps[highest]['step']}", silenced=steps[:highest], told=[
            steps[highest], {**steps[0], "principal": "agent"}, {**steps[0], "source": "other"},
        ])


def alone_and_together(board, alerts):
    """No alert silences itself; and of all at once, each silenced one is silenced by one that is told."""
    for _, name, severity in alerts:
        for step in ({}, {"step": "1"}, {"step": "3"}, {"step": "9"}, {"step": "27"}):
            board.case(f"{name} alone", told=[{"alertname": name, "severity": severity, "job": "audit", "source": "campus", **step}])
    return [
        {"alertname": name, "severity": severity, "job": "audit", "source": "campus", "system": "canvas", "case": "all", **step}
        for _, name, severity in alerts for step in ({}, {"step": "1"}, {"step": "3"})
    ]


def nothing_is_lost(port, together, state):
    by_id = {one["fingerprint"]: one for one in ask(port, "/api/v2/alerts")}
    silenced = 0
    for labels in together:
        at = state[frozenset(labels.items())]["inhibitedBy"]
        silenced += bool(at)
        chain = set()
        while at and at[0] not in chain:
            chain.add(at[0])
            at = by_id[at[0]]["status"]["inhibitedBy"]
        if at:
            problem(f"{labels} is silenced by alerts that silence each other")
    if not silenced:
        problem("of all alerts at once none is silenced")


def variants(alerts):
    """The labels of an alert that is critical are those of the same alert as warning, or it would not silence it."""
    shown = {}
    for path in sorted((ALERTS / "tests").glob("*.yml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("alert_rule_test", []):
                for one in case.get("exp_alerts") or []:
                    # namespace and cluster are kept where a test's series have them
                    labels = set(one["exp_labels"]) - {"severity", "step", "namespace", "cluster"}
                    shown.setdefault(case["alertname"], {}).setdefault(one["exp_labels"]["severity"], set()).add(frozenset(labels))
    equal = set(EXAMPLE["inhibit_rules"][0]["equal"])
    for name, by_severity in shown.items():
        for higher, lower in [("critical", "warning"), ("critical", "info"), ("warning", "info")]:
            for one, other in itertools.product(by_severity.get(higher, ()), by_severity.get(lower, ())):
                if one & equal != other & equal:
                    problem(f"{name}: as {higher} it has the labels {sorted(one & equal)}, as {lower} {sorted(other & equal)}: the one does not silence the other")


def routes(alerts):
    def goes(receiver, **labels):
        done = subprocess.run(
            [AMTOOL, "config", "routes", "test", f"--config.file={ALERTS}/alertmanager.example.yml", f"--verify.receivers={receiver}",
             *(f"{name}={value}" for name, value in labels.items())], capture_output=True, text=True)
        if done.returncode:
            problem(f"{labels} does not go to {receiver}: {done.stdout.strip()}")

    for _, name, severity in alerts:
        goes("dead-mans-switch" if name == "Watchdog" else RECEIVER_OF[severity], alertname=name, severity=severity, job="audit", source="campus")
    goes("ticket", alertname="SomethingElse", severity="critical")
    goes("ticket", alertname="AuditWithoutSeverity")


def groups(port, alerts):
    """Watch alerts by job, the others by source."""
    file_of = {name: file for file, name, _ in alerts}
    for group in ask(port, "/api/v2/alerts/groups"):
        for one in group["alerts"]:
            name = one["labels"]["alertname"]
            if name == "Watchdog" or name not in file_of:
                continue
            watch = file_of[name] == "audit-watch.yml"
            if ("source" not in group["labels"]) != watch and "source" in one["labels"]:
                problem(f"{name} of {file_of[name]} is grouped by {sorted(group['labels'])}")
                file_of.pop(name)
            elif not watch and "step" in one["labels"] and "step" not in group["labels"]:
                problem(f"{name}: a step is no group of its own")
                file_of.pop(name)


def urls(text):
    return re.findall(r"https?://[^\s|<>\"]+", text)


def sent(port):
    """What the receivers were sent: one page, one ticket, and both ended."""
    for name in RECEIVED:
        RECEIVED[name].clear()
    labels = {"job": "audit", "cluster": "sent", "source": "campus"}
    page = alert(alertname="AuditFailedLogins", severity="critical", step="3", **labels)
    page["annotations"]["title"] = "campus: 812 failed logins in 15 minutes (usual: 4)"
    ticket = alert(alertname="AuditSourceThrottled", severity="warning", **labels)
    ticket["annotations"]["description"] = "<script>alert(1)</script> & more"
    ask(port, "/api/v2/alerts", [page, ticket])
    until("a page and a ticket", lambda: all(RECEIVED[name] for name in ("page", "pagerduty", "slack", "ticket", "mail")))
    if problems:
        return
    pager = RECEIVED["pagerduty"][0][1]
    if pager["payload"]["summary"] != page["annotations"]["title"] or pager["payload"]["severity"] != "critical":
        problem(f"PagerDuty is told {pager['payload']}")
    links = {one["text"]: one["href"] for one in pager["links"]}
    if list(links) != ["Grafana", "Runbook", "Status page", "Prometheus graph", "Silence"] or not all(one.startswith("http") for one in links.values()):
        problem(f"PagerDuty's links are {links}")
    if links.get("Grafana") != "https://grafana.example.com/d/audit-source?var-source=campus":
        problem(f"PagerDuty's link to Grafana is {links.get('Grafana')}")
    wanted = urllib.parse.unquote(links["Silence"].partition("filter=")[2])
    found = ask(port, "/api/v2/alerts?" + urllib.parse.urlencode([("filter", one) for one in re.findall(r'\w+="(?:[^"\\]|\\.)*"', wanted)]))
    if [one["labels"] for one in found] != [page["labels"]]:
        problem(f"the filter of the silence, {wanted}, finds {[one['labels'] for one in found]}")
    slack = RECEIVED["slack"][0][1]["attachments"][0]
    if slack["title"] != page["annotations"]["title"] or slack["color"] != "danger" or len(urls(slack["text"])) != 5:
        problem(f"Slack is told {slack}")
    message = RECEIVED["mail"][0][1]
    html = message.get_body(("html",)).get_content()
    if message["subject"] != "campus: A summary." or "<script>" in html or "&lt;script&gt;" not in html or message.get_body(("plain",)) is None:
        problem(f"the mail is {message}")
    over = (datetime.now(timezone.utc)).isoformat()
    for one in (page, ticket):
        one["endsAt"] = over
    ask(port, "/api/v2/alerts", [page, ticket])
    until("the end of both", lambda: all(body["event_action"] == "resolve" for _, body in RECEIVED["pagerduty"][-1:])
          and len(RECEIVED["mail"]) > 1 and len(RECEIVED["slack"]) > 1 and RECEIVED["ticket"][-1][1]["status"] == "resolved")
    if not RECEIVED["mail"][-1][1]["subject"].startswith("Resolved: "):
        problem(f"the mail at the end is {RECEIVED['mail'][-1][1]['subject']}")
    if RECEIVED["slack"][-1][1]["attachments"][0]["color"] != "good":
        problem("Slack's last message is not green")


def race(port):
    """All steps, one rule after the other as Prometheus sends them: the pager is called once, for the highest."""
    labels = {"alertname": "AuditLoginAfterFailures", "severity": "critical", "job": "audit", "source": "race"}
    RECEIVED["page"].clear()
    begin = datetime.now(timezone.utc).isoformat()
    for step in STEPS:
        # group_wait counts from startsAt
        ask(port, "/api/v2/alerts", [alert(**labels, step=step) | {"startsAt": begin}])
    time.sleep(6)
    told = [one["labels"].get("step") for _, body in RECEIVED["page"] for one in body["alerts"] if one["labels"].get("source") == "race"]
    if not told or set(told) != {STEPS[-1]}:
        problem(f"of steps {', '.join(STEPS)} at once the pager is told {told}")


def beats(port):
    RECEIVED["dead-mans-switch"].clear()
    ask(port, "/api/v2/alerts", [alert(alertname="Watchdog", severity="info")])
    time.sleep(12)
    times = [at for at, _ in RECEIVED["dead-mans-switch"]]
    gaps = [later - at for at, later in itertools.pairwise(times)]
    if len(gaps) < 8 or max(gaps) > 1.5:
        problem(f"the dead man's switch beats every {[round(gap, 1) for gap in gaps]} minutes")
    return len(times)


def alertmanager(config, running):
    checked = subprocess.run([AMTOOL, "check-config", config], capture_output=True, text=True)
    if checked.returncode:
        sys.exit(f"routing: {checked.stdout}{checked.stderr}")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with open(config.with_suffix(".log"), "w") as log:
        running.append(subprocess.Popen(
            [ALERTMANAGER, f"--config.file={config}", f"--storage.path={config.with_suffix('.data')}", f"--web.listen-address=127.0.0.1:{port}",
             "--cluster.listen-address=", f"--web.external-url=http://127.0.0.1:{port}"], stdout=log, stderr=log))
    until("Alertmanager is ready", lambda: ask(port, "/api/v2/status"))
    return port


def main():
    WORK.mkdir()
    loud, mute = configure(serve(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)), serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)))
    alerts = rules()
    routes(alerts)
    variants(alerts)
    running = []
    try:
        port = alertmanager(mute, running)
        board = Board(port)
        inhibitions(board)
        scenarios(board)
        together = alone_and_together(board, alerts)
        board.alerts += [alert(**labels) for labels in together]
        state = board.judge()
        nothing_is_lost(port, together, state)
        groups(port, alerts)
        port = alertmanager(loud, running)
        sent(port)
        race(port)
        count = beats(port)
    finally:
        for process in running:
            process.terminate()
            process.wait(20)
    if problems:
        sys.exit(1)
    print(f"routing: {len(alerts)} routes, {board.cases} cases of inhibition, what 5 receivers are sent, {count} beats")


if __name__ == "__main__":
    main()
