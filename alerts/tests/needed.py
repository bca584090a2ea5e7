#!/usr/bin/env python3
"""Writes a test file's rule files anew with only the rules that it needs: the alerts that it names, and what these and its
queries read, in turn. The others cannot change what it sees, and promtool evaluates every rule of every file at each step:
a test that plays weeks takes a fraction of the time.

Usage: needed.py TEST_FILE FOLDER      (prints the path of the test file to run)
"""

import re
import sys
from pathlib import Path

import yaml

ALERTS = Path(__file__).resolve().parent.parent
RECORDED = re.compile(r"[a-z_]+[a-z0-9_]*(?::[a-z0-9_]+)+")
ALERT = re.compile(r"\bAudit[A-Z]\w+|\bWatchdog\b")


def main():
    test, folder = Path(sys.argv[1]), Path(sys.argv[2]) / Path(sys.argv[1]).stem
    text = test.read_text()
    content = yaml.safe_load(text)
    files = [(test.parent / name).resolve() for name in content["rule_files"]]
    rules = {file: yaml.safe_load(file.read_text()) for file in files}
    everything = [rule for file in rules.values() for group in file["groups"] for rule in group["rules"]]
    known = {rule.get("alert") or rule["record"] for rule in everything}
    # without its comments: a name in them is no use of it
    said = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    # where alerts are asked for without a name, each of them is meant
    nameless = re.search(r"ALERTS(?!\{[^}]*alertname=\")", said) or re.search(r"alertname[=!]~", said)
    needed = {rule["alert"] for rule in everything if "alert" in rule} if nameless else set(ALERT.findall(said))
    needed = (needed | set(RECORDED.findall(said))) & known
    uses = {}
    for rule in everything:
        words = " ".join([rule["expr"], *rule.get("annotations", {}).values()])
        uses.setdefault(rule.get("alert") or rule["record"], set()).update(RECORDED.findall(words), ALERT.findall(rule["expr"]))
    todo = list(needed)
    while todo:
        more = (uses[todo.pop()] & known) - needed
        needed |= more
        todo += more
    folder.mkdir(parents=True)
    for file, content_of_file in rules.items():
        for group in content_of_file["groups"]:
            group["rules"] = [rule for rule in group["rules"] if (rule.get("alert") or rule["record"]) in needed]
        (folder / file.name).write_text(yaml.safe_dump(content_of_file, sort_keys=False, width=1000))
        text = re.sub(rf"^(\s*- ).*{re.escape(file.name)}$", rf"\g<1>{folder / file.name}", text, flags=re.M)
    (folder / test.name).write_text(text)
    print(folder / test.name)


if __name__ == "__main__":
    main()
