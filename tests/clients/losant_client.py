"""Reads the simulated Losant audit log with a client we did not write (PyPI `losant-rest`).

usage: losant_client.py BASE_URL INSTANCE_ID API_TOKEN

Prints JSON counts by category, action and outcome in the shape of `/simulator/truth`, and exits 1
where they differ from what the simulator says is true for the same span of time (read again a few
times, because events may become visible between our reading and its answer).
"""
import json
import re
import sys
import time
import urllib.request
from collections import Counter

from losant_rest import Client

VERBS = {"post": "create", "patch": "update", "put": "update", "delete": "delete"}


def words(name):
    """API names as counters' words: CustomNode and resendInvite become custom_node, resend_invite."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() if name else "unknown"


def outcome(status):
    return "unknown" if status is None else "success" if status < 400 else "failure"


def read(client, instance, end):
    counts, seen, page = Counter(), set(), 0
    while True:
        answer = client.instance_audit_logs.get(
            instanceId=instance, sortField="creationDate", sortDirection="asc", page=page, perPage=50, start=0, end=end
        )
        for item in answer["items"]:
            if item["id"] not in seen:
                seen.add(item["id"])
                verb = item.get("requestAction")
                category = words(item.get("primaryTargetType"))
                counts[(category, VERBS.get(verb) or words(verb), outcome(item.get("responseStatus")))] += 1
        page += 1
        if len(answer["items"]) < 50:
            return counts, page


def truth(base, end):
    to = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime((end + 1) // 1000)) + f".{(end + 1) % 1000:03d}Z"
    with urllib.request.urlopen(f"{base}/simulator/truth?to={to}") as answer:
        events = json.load(answer)["events"]
    return Counter({(e["category"], e["action"], e["outcome"]): e["count"] for e in events if e["system"] == "losant"})


def main():
    base, instance, token = sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3]
    client = Client(auth_token=token, url=base)
    for _ in range(5):
        end = int(time.time() * 1000)
        counts, pages = read(client, instance, end)
        equal = counts == truth(base, end)
        if equal:
            break
    events = [[*key, count] for key, count in sorted(counts.items())]
    print(json.dumps({"client": "losant-rest", "equal": equal, "pages": pages, "total": counts.total(), "events": events}))
    sys.exit(0 if equal else 1)


main()
