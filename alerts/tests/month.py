#!/usr/bin/env python3
"""An honest month: four weeks of ordinary sources, from a seed, under all shipped rules. It must page nobody.

Each shape of source is judged on its own: no `critical`, at most two `warning`, and each of these within the time of something
that the shape says has happened (a term began, a holiday, a first agent). Then the attacks: the same sources with one attack
each, at the worst hour, which must be told in time; and one step below the threshold, which must stay silent.

Usage: month.py [--short] [--seed N] [--step MINUTES] [--only NAME,…] [--promtool PATH] [--keep FOLDER]
  --short   two shapes and some attacks, nine days, samples ten minutes apart: what tests/alerts runs
  --only    only these shapes or attacks

The series are written as a promtool test without expectations; what promtool got is read from its complaint. Samples and
evaluations are --step minutes apart (5), so a value that is above a threshold for less than that may be missed.
"""

import argparse
import math
import random
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ALERTS = Path(__file__).resolve().parent.parent
HOUR, DAY = 60, 1440
JOB = "audit-exporter"
WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
GROUPS = re.compile(r"^  - name: (\S+)", re.M)


def weekday(minute):
    """0 is Monday. Tests begin at the epoch, which was a Thursday."""
    return (minute // DAY + 3) % 7


def moment(minute):
    minute = int(minute)
    return f"day {minute // DAY} {WEEKDAYS[weekday(minute)]} {minute % DAY // 60:02}:{minute % 60:02}"


class Shape:
    """A source: what it counts in each step. Rates are per hour, by local time."""

    def __init__(self, name, seed, step, days, system="activid", job=JOB):
        self.name, self.step, self.days, self.system, self.job = name, step, days, system, job
        self.random = random.Random(f"{seed}/{name}")
        self.steps = days * DAY // step
        self.counters = {}  # (metric, labels) → what is counted in each step
        self.gauges = {}  # (metric, labels) → values
        self.incidents = []  # (from, to, what): what happened, and explains a ticket
        self.wobble = [self.random.gammavariate(16, 1 / 16) for _ in range(days * 24 + 26)]
        self.mood = [self.random.gauss(1, 0.08) for _ in range(days + 2)]
        self.summer_time_from = None

    def poisson(self, rate):
        if rate <= 0:
            return 0
        if rate > 50:
            return max(0, round(self.random.gauss(rate, math.sqrt(rate))))
        limit, product, count = math.exp(-rate), self.random.random(), 0
        while product > limit:
            product *= self.random.random()
            count += 1
        return count

    def local(self, minute):
        forward = self.summer_time_from is not None and minute >= self.summer_time_from
        return minute + (60 if forward else 0)

    def add(self, metric, labels, at, number):
        counts = self.counters.setdefault((metric, labels), [0] * self.steps)
        index = int(at) // self.step
        if 0 <= index < self.steps and number:
            counts[index] += number

    def login(self, at, number, principal="user", outcome="success"):
        self.add("audit_logins_total", (("principal", principal), ("outcome", outcome)), at, number)
        self.add("audit_events_total", (("category", "authentication"), ("action", "login"), ("outcome", outcome)), at, number)

    def action(self, at, number, category, action, outcome="success"):
        labels = (("category", category), ("action", action), ("outcome", outcome))
        self.add("audit_actions_total", labels, at, number)
        self.add("audit_events_total", labels, at, number)
        self.add("audit_failures_total", labels[:2], at, number if outcome == "failure" else 0)

    def people(self, per_hour, failing, principal="user"):
        """Logins at rates of `per_hour(local minute)`; a part fails; now and then somebody forgot a password."""
        for index in range(self.steps):
            minute = index * self.step
            busy = per_hour(self.local(minute)) * self.wobble[minute // HOUR] * self.mood[minute // DAY]
            good = self.poisson(busy * self.step / HOUR)
            self.login(minute, good, principal)
            self.login(minute, self.poisson(busy * failing / (1 - failing) * self.step / HOUR), principal, "failure")
            if good and self.random.random() < 1 - 0.998 ** min(good, 50):
                self.login(minute, self.random.randint(3, 6), principal, "failure")

    def office_work(self, hires=1, scale=1.0):
        """What administrators do from nine to five: some changes a day, all of them small."""
        kinds = [("user", "create", hires), ("user", "delete", 1), ("user", "update", 6), ("user_password", "update", 4), ("user", "disable", 1), ("device", "create", 2)]
        for day in range(self.days):
            if weekday(day * DAY) > 4:
                continue
            for category, action, number in kinds:
                for _ in range(self.poisson(number * scale)):
                    at = day * DAY + self.random.randint(9 * HOUR, 17 * HOUR)
                    self.action(at, 1, category, action)
                    if (category, action) == ("user", "create"):
                        self.action(at + 5, 1, "role", "create")
            for _ in range(self.poisson(scale)):
                self.action(day * DAY + self.random.randint(9 * HOUR, 17 * HOUR), 1, "user", "update", "failure")

    def happened(self, begin, end, what):
        self.incidents.append((begin, end, what))

    # === what is written ===

    def series(self):
        system, n, minutes = self.system, self.steps, [i * self.step for i in range(self.steps)]
        for outcome in ("success", "failure", "unknown"):
            for principal in ("user", "agent", "device"):
                self.login(0, 0, principal, outcome)
        if system != "index_exchange":
            for category, action in (("user", "create"), ("user", "delete"), ("user", "disable"), ("role", "create"), ("role", "update"), ("user_password", "update")):
                for outcome in ("success", "failure", "unknown"):
                    self.action(0, 0, category, action, outcome)
        # the exporter is restarted once, which takes five minutes: nothing is lost, and one sample
        restart = 9 * DAY // self.step
        one = lambda value: [value] * n
        fixed = {
            ("audit_source_up", ()): one(1),
            ("audit_source_catching_up", ()): one(0),
            ("audit_source_watermark_timestamp_seconds", ()): [m * 60 - 60 for m in minutes],
            ("audit_source_last_success_timestamp_seconds", ()): [m * 60 - 20 for m in minutes],
            ("audit_source_clock_skew_seconds", ()): one(1),
            ("audit_source_lost_seconds_total", ()): one(0),
            ("audit_tainted_feeds_total", ()): one(0),
            ("audit_series_held", ()): one(0),
        }
        for signal in ("login", "login_failure", "logout", "change", "integrity"):
            there = system == "activid" or (signal == "login" and system in ("canvas", "informatica")) or (signal == "change" and system in ("informatica", "losant"))
            fixed["audit_source_signal_available", (("signal", signal),)] = one(int(there))
        for kind in ("connect", "tls", "timeout", "auth", "forbidden", "throttled", "server", "not_found", "decode", "too_large", "truncated", "redirect", "storage"):
            fixed["audit_source_errors_total", (("kind", kind),)] = one(0)
        own = {
            ("audit_exporter_build_info", (("version", "1"), ("revision", "1"))): one(1),
            ("audit_exporter_config_last_reload_successful", ()): one(1),
            ("audit_exporter_time_seconds", ()): [m * 60 for m in minutes],
            ("audit_exporter_store_generation", ()): one(1),
            ("audit_exporter_log_lines_dropped_total", ()): one(0),
            ("process_start_time_seconds", ()): [-600 if i <= restart else restart * self.step * 60 for i in range(n)],
        }
        for (metric, labels), counts in self.counters.items():
            total, values = 0, []
            for count in counts:
                total += count
                values.append(total)
            fixed[metric, labels] = values
        fixed.update(self.gauges)
        who = (("job", self.job), ("instance", "a:10812"))
        for (metric, labels), values in own.items():
            yield metric, who + labels, self.gone(values, restart)
        for (metric, labels), values in fixed.items():
            yield metric, who + (("source", self.name), ("system", system)) + labels, self.gone(values, restart)

    def gone(self, values, restart):
        return [None if index == restart and len(values) > restart else value for index, value in enumerate(values)]


def written(values):
    """Values in the notation of promtool, with runs of equal steps as one."""
    out, index = [], 0
    while index < len(values):
        value = values[index]
        run, step = index + 1, None
        while run < len(values) and value is not None and values[run] is not None and (step is None or values[run] - values[run - 1] == step):
            step = values[run] - values[run - 1]
            run += 1
        if value is None:
            out.append("_")
            run = index + 1
        elif run - index > 2:
            out.append(f"{value}{'+' if step >= 0 else '-'}{abs(step)}x{run - index - 1}")
        else:
            out.append(str(value))
            run = index + 1
        index = run
    return " ".join(out)


# === shapes ===


def office(minute, begin=8, end=17, weekend=0.02):
    """The part of the busiest hour: sharp edges, a dip at noon. Nights and weekends have next to none."""
    hour = minute % DAY / 60
    if weekday(minute) > 4:
        return weekend
    if not begin <= hour < end:
        return 0.01
    return 0.7 if 12 <= hour < 13 else 1


def campus(minute, weekend=0.35):
    """A curve over the day: most at eleven, some at night."""
    hour = minute % DAY / 60
    return (0.06 + 0.94 * math.exp(-((hour - 11) ** 2) / 18)) * (weekend if weekday(minute) > 4 else 1)


def office_small(s):
    s.people(lambda m: 300 * office(m), 24 / 324)
    s.office_work()


def office_large(s):
    s.people(lambda m: 900 * office(m), 48 / 948)
    s.office_work(hires=2, scale=1.5)
    holiday = 18 * DAY  # a Monday
    for counts in s.counters.values():
        for index in range(holiday // s.step, min(s.steps, (holiday + DAY) // s.step)):
            counts[index] = 0 if s.random.random() < 0.98 else counts[index]
    s.happened(holiday, holiday + DAY, "a public holiday")


def large_100k(s):
    s.people(lambda m: 100_000 / 8.0 * campus(m), 0.015)
    s.office_work(hires=2, scale=2)


def large_1m(s):
    s.people(lambda m: 1_000_000 / 8.0 * campus(m, 0.5), 0.02)
    s.office_work(hires=2, scale=2)


def round_the_clock(s):
    s.people(lambda m: 200, 0.04)
    s.people(lambda m: 60, 0.02, principal="device")
    for index in range(s.steps):
        s.login(index * s.step, s.poisson(2 * s.step / HOUR), "user", "unknown")
    s.office_work(scale=0.5)


def five_a_day(s):
    for day in range(s.days):
        if weekday(day * DAY) < 5:
            for _ in range(5):
                at = day * DAY + s.random.randint(8 * HOUR, 17 * HOUR)
                s.login(at, 1) if s.random.random() < 0.7 else s.action(at, 1, "user", "update")


def nightly_agents(s):
    for day in range(s.days):
        number = 1200 if weekday(day * DAY) == 6 else 400
        for _ in range(number):
            s.login(day * DAY + 2 * HOUR + s.random.randint(0, 14), 1, "agent")
    s.people(lambda m: 8 * office(m), 0.0)
    s.happened(2 * HOUR, 3 * HOUR, "the first agents since the installation")


def term_start(s):
    term = 18 * DAY  # a Monday
    s.people(lambda m: 2_000 * campus(m) * (1 if m < term else 5 if m < term + 5 * DAY else 3), 0.03)
    s.office_work(hires=3)
    s.happened(term, term + 2 * DAY, "the term begins: five times the logins")


def daylight_saving(s):
    s.summer_time_from = 17 * DAY + 2 * HOUR  # a Sunday
    s.people(lambda m: 900 * office(m), 0.05)
    s.office_work()


def late_feed(s):
    """Hours of a feed are listed five hours late, give or take one; one of them eight hours."""
    listed = []
    slow = 12 * 24 + 6
    for index in range(s.steps):
        now = index * s.step
        hour = now // HOUR - 5 - (1 if s.random.random() < 0.02 else 0)
        if slow * HOUR <= now < (slow + 3) * HOUR:
            hour = slow - 5
        listed.append(max(listed[-1] if listed else 0, max(hour, 0) * 3600))
    s.gauges["audit_feed_newest_hour_timestamp_seconds", ()] = listed
    s.gauges["audit_feed_subscription_newest_hour_timestamp_seconds", (("category", "impressions"),)] = listed
    s.gauges["audit_feed_missing_hours", ()] = [0] * s.steps
    for status, value in (("new", 0), ("downloaded", 336), ("updated", 0)):
        s.gauges["audit_feed_files", (("status", status),)] = [value + (s.poisson(0.2) if status == "updated" else 0) for _ in range(s.steps)]
    for index in range(s.steps):
        if index % max(1, HOUR // s.step) == 0:
            s.add("audit_events_total", (("category", "impressions"), ("action", "impression"), ("outcome", "unknown")), index * s.step, 40_000 + s.random.randint(0, 9000))


def old_password(s):
    """Round the clock and small, and for a day a program has an old password."""
    s.people(lambda m: 40, 0.03)
    begin, end = 12 * DAY + 9 * HOUR, 12 * DAY + 20 * HOUR
    for at in range(begin, end, s.step):
        s.login(at, s.poisson(2 * s.step), outcome="failure")
    s.happened(begin, end + 14 * HOUR, "a program with an old password, 120 failures an hour")


SHAPES = {
    "office-small": (office_small, "activid"),
    "office-large": (office_large, "activid"),
    "large-100k": (large_100k, "activid"),
    "large-1m": (large_1m, "activid"),
    "round-the-clock": (round_the_clock, "activid"),
    "five-a-day": (five_a_day, "losant"),
    "nightly-agents": (nightly_agents, "informatica"),
    "term-start": (term_start, "activid"),
    "daylight-saving": (daylight_saving, "activid"),
    "late-feed": (late_feed, "index_exchange"),
    "old-password": (old_password, "activid"),
}
# Alerts that a machine's mistake rather than a person's does raise, and with right.
MAY_PAGE = {"old-password"}

# === attacks ===
# On the eighth day (a Friday): the source, minutes after its midnight, what is done, the alert that must come, within how many
# minutes; and the same a step smaller, which must not raise it.

ATTACK_DAY = 8 * DAY


def guesses(number, minutes, successes=0, outcome="failure"):
    def attack(s, at):
        slots = max(1, minutes // s.step)
        for slot in range(slots):
            s.login(at + slot * s.step, number * (slot + 1) // slots - number * slot // slots, outcome=outcome)
        s.login(at + minutes, successes)

    return attack


NIGHT, RUSH = 3 * HOUR, 11 * HOUR
ATTACKS = {
    # name: shape, at, attack, alert, severity, within minutes, a step below
    "burst-at-night": (office_large, NIGHT, guesses(60, 5, 1), "AuditLoginAfterFailures", "critical", 15, guesses(9, 5, 1)),
    "burst-among-900": (office_large, RUSH, guesses(60, 5, 1), "AuditLoginAfterFailures", "critical", 20, guesses(15, 5, 1)),
    "guessing-at-night": (office_large, NIGHT, guesses(40, 10), "AuditFailedLogins", "warning", 20, guesses(20, 10)),
    "guessing-in-the-rush": (office_large, RUSH, guesses(150, 10), "AuditFailedLogins", "warning", 20, guesses(25, 10)),
    "machine-in-the-rush": (office_large, RUSH, guesses(400, 10), "AuditFailedLogins", "critical", 20, guesses(60, 10)),
    "machine-on-1m": (large_1m, RUSH, guesses(30_000, 15), "AuditFailedLogins", "critical", 25, guesses(5_000, 15)),
    "rise-on-1m": (large_1m, RUSH, guesses(6_000, 60), "AuditFailedLoginsAboveBaseline", "warning", 75, guesses(1_000, 60)),
    "rise-on-100k": (large_100k, RUSH, guesses(600, 60), "AuditFailedLoginsAboveBaseline", "warning", 75, guesses(60, 60)),
    "rise-at-night": (round_the_clock, NIGHT, guesses(100, 60), "AuditFailedLoginsAboveBaseline", "warning", 75, guesses(5, 60)),
    "slow-240-a-day": (five_a_day, 0, guesses(240, DAY), "AuditFailedLoginsSlow", "warning", 8 * HOUR, guesses(45, DAY)),
    "unknown-outcome": (office_large, RUSH, guesses(120, 10, outcome="unknown"), "AuditLoginsOfUnknownOutcome", "warning", 20, guesses(24, 10, outcome="unknown")),
}


def write(path, shapes, step, queries):
    lines = ["rule_files:"]
    lines += [f"  - {rule}" for rule in sorted(ALERTS.glob("audit-*.yml"))]
    order = ["audit-counters", "audit-thresholds", "audit-baseline"]
    rest = [name for rule in sorted(ALERTS.glob("audit-*.yml")) for name in GROUPS.findall(rule.read_text()) if name not in order]
    lines += [f"evaluation_interval: {step}m", "group_eval_order:"] + [f"  - {name}" for name in order + rest]
    lines += ["tests:", f"  - interval: {step}m", "    input_series:"]
    for shape in shapes:
        for metric, labels, values in shape.series():
            text = ",".join(f'{label}="{value}"' for label, value in labels)
            lines += [f"      - series: '{metric}{{{text}}}'", f"        values: '{written(values)}'"]
    lines.append("    promql_expr_test:")
    for at, query in queries:
        lines += [f"      - expr: '{query}'", f"        eval_time: {at}m", "        exp_samples: []"]
    path.write_text("\n".join(lines) + "\n")


def run(promtool, path):
    """What each query of the test returned: [({label: value}, number), …]."""
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    output, results = done.stdout + done.stderr, {}
    if "exp: nil" not in output and done.returncode:
        sys.exit(f"month: {path}: {output[:2000]}")
    for query, got in re.findall(r'expr: "((?:[^"\\]|\\.)*)", time: .*?,\s*exp: .*\n\s*got: (.*)', output):
        query = query.replace('\\"', '"')
        for labels, number in re.findall(r"\{([^}]*)\} (\S+?)(?:,|$)", got):
            results.setdefault(query, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(number)))
    return results


def starts(severities, step):
    """When alerts began to fire. A larger step of the same alert is no second one."""
    firing = f'max without (step, alertstate) (ALERTS{{alertstate="firing",severity=~"{severities}"}}OFFSET)'
    now, before = firing.replace("OFFSET", ""), firing.replace("OFFSET", f" offset {step}m")
    return f"(({now}) unless ({before})) * 0 + time()"


def month(promtool, folder, names, seed, step, days):
    """One test for several shapes, each with a job of its own: promtool has to evaluate every rule only once for all of them."""
    shapes = {}
    for name in names:
        make, system = SHAPES[name]
        shapes[name] = Shape(name, seed, step, days, system, job=name)
        make(shapes[name])
    end = (days * DAY // step - 1) * step
    fired = starts("critical|warning", step)
    # for each day: the first and the last start of an alert, and how many. (`+ 0 * N` tells them apart in what promtool prints.)
    queries = []
    for day in range(1, days + 1):
        for kind in ("min", "max", "count"):
            queries.append((min(day * DAY, end), f"{kind}_over_time(({fired})[{DAY - step}m:{step}m]) + 0 * {day}"))
    path = folder / f"month-{names[0]}.yml"
    write(path, shapes.values(), step, queries)
    alerts = {}
    for query, samples in run(promtool, path).items():
        kind, day = query.split("_", 1)[0], int(query.rsplit("*", 1)[1])
        for labels, value in samples:
            key = (labels.get("job", ""), day, labels["severity"], labels["alertname"], labels.get("category", ""), labels.get("principal", ""))
            alerts.setdefault(key, {})[kind] = value
    return [judged(shape, {key[1:]: seen for key, seen in alerts.items() if key[0] in (name, "")}) for name, shape in shapes.items()]


def judged(shape, alerts):
    name, numbers, problems, told = shape.name, {"critical": 0, "warning": 0}, [], []
    for (_, severity, alert, category, principal), seen in sorted(alerts.items()):
        count = int(seen["count"])
        numbers[severity] += count
        for at in sorted({seen["min"] / 60, seen["max"] / 60}):
            why = [what for begin, until, what in shape.incidents if begin <= at <= until]
            told.append(f"{moment(at)} {severity} {alert} {category}{principal}: {why[0] if why else 'NOT EXPLAINED'}")
            if not why:
                problems.append(f"{name}: {told[-1]}")
        if count > 2:
            told.append(f"  … {count} times that day")
    if numbers["critical"] and name not in MAY_PAGE:
        problems.append(f"{name}: {numbers['critical']} critical")
    if numbers["warning"] > 2:
        problems.append(f"{name}: {numbers['warning']} warnings")
    logins = {outcome: sum(sum(c) for (m, l), c in shape.counters.items() if m == "audit_logins_total" and ("outcome", outcome) in l) for outcome in ("success", "failure")}
    row = f"{name:16} {logins['success']:>10} {logins['failure']:>8} {numbers['critical']:>8} {numbers['warning']:>8}"
    return row, told, problems


def attacks(promtool, folder, names, seed, step):
    days, shapes = 10, []
    for name in names:
        make, at, attack, *_, below = ATTACKS[name]
        for job, what in ((name, attack), (f"{name}-below", below)):
            shape = Shape("target", seed, step, days, "activid", job=job)
            make(shape)
            what(shape, ATTACK_DAY + at)
            shapes.append(shape)
    path = folder / f"attacks-{names[0]}.yml"
    end = (days * DAY // step - 1) * step
    fired = f'min_over_time((ALERTS{{alertstate="firing"}} * 0 + time())[{2 * DAY - step}m:{step}m])'
    write(path, shapes, step, [(end, fired)])
    first = {}
    for labels, value in run(promtool, path).get(fired, []):
        key = (labels.get("job", ""), labels["alertname"], labels["severity"])
        first[key] = min(first.get(key, math.inf), value / 60)
    rows, problems = [], []
    for name in names:
        _, at, _, alert, severity, within, _ = ATTACKS[name]
        began = first.get((name, alert, severity))
        after = None if began is None else began - ATTACK_DAY - at
        below = first.get((f"{name}-below", alert, severity))
        if after is None or not 0 <= after <= within:
            problems.append(f"{name}: {alert} ({severity}) came {'never' if after is None else f'after {after:.0f} minutes'}, allowed are {within}")
        if below is not None:
            problems.append(f"{name}: a step below, {alert} ({severity}) came nevertheless, {moment(below)}")
        rows.append(f"{name:22} {alert:32} {severity:9} {'never' if after is None else f'{after:.0f} min':>8}   below: {'silent' if below is None else 'TOLD'}")
    return rows, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--promtool", default="promtool")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    step = options.step or (10 if options.short else 5)
    days = 9 if options.short else 28
    shapes = ["office-large", "round-the-clock"] if options.short else list(SHAPES)
    chosen = ["burst-at-night", "guessing-in-the-rush", "slow-240-a-day"] if options.short else list(ATTACKS)
    if options.only:
        only = options.only.split(",")
        shapes, chosen = [n for n in shapes if n in only], [n for n in chosen if n in only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        problems = []
        with ThreadPoolExecutor(2) as pool:
            halves = [shapes[0::2], shapes[1::2]]
            pending = [pool.submit(month, options.promtool, folder, half, options.seed, step, days) for half in halves if half]
            # ten minutes are too coarse for what happens within five, except at night
            fine = step if options.short else min(step, 5)
            # a few at a time: promtool holds no more than so many samples
            batches = [chosen[n : n + 4] for n in range(0, len(chosen), 4)]
            attacked = [pool.submit(attacks, options.promtool, folder, batch, options.seed, fine) for batch in batches]
            if shapes:
                print(f"{'shape':16} {'logins':>10} {'failed':>8} {'critical':>8} {'warnings':>8}")
            for row, told, wrong in (one for future in pending for one in future.result()):
                print(row)
                for line in told:
                    print(f"    {line}")
                sys.stdout.flush()
                problems += wrong
            for rows, wrong in (batch.result() for batch in attacked):
                print("\n".join(rows))
                sys.stdout.flush()
                problems += wrong
    if problems:
        sys.exit("\n".join(f"month: {problem}" for problem in problems))
    print(f"month: {days} days of {len(shapes)} sources page nobody, {len(chosen)} attacks are told (seed {options.seed})")


if __name__ == "__main__":
    main()
