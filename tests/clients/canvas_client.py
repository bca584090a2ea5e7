"""Reads the simulated Canvas authentication log with a client we did not write (PyPI `canvasapi`).

usage: canvas_client.py BASE_URL ACCOUNT ACCESS_TOKEN

Prints JSON counts by category, action and outcome in the shape of `/simulator/truth`, and exits 1
where they differ from what the simulator says is true (read again a few times, because events may
become visible between our reading and its answer). `Account.get_authentication_events` itself
expects a bare list, so its paginated list is made here with the root key of the compound document.
"""
import json
import sys
import urllib.request
import warnings
from collections import Counter

from canvasapi import Canvas
from canvasapi.authentication_event import AuthenticationEvent
from canvasapi.paginated_list import PaginatedList


def read(requester, account):
    events = PaginatedList(
        AuthenticationEvent, requester, "GET", f"audit/authentication/accounts/{account}", _root="events", per_page=100
    )
    counts, ids, times = Counter(), set(), []
    for event in events:
        assert event.id not in ids, f"{event.id} came twice"
        ids.add(event.id)
        times.append(event.created_at)
        counts[("authentication", event.event_type, "success")] += 1
    assert times == sorted(times, reverse=True), "not newest first"
    return counts


def truth(base):
    with urllib.request.urlopen(f"{base}/simulator/truth") as answer:
        events = json.load(answer)["events"]
    return Counter({(e["category"], e["action"], e["outcome"]): e["count"] for e in events if e["system"] == "canvas"})


def main():
    base, account, token = sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3]
    warnings.simplefilter("ignore")
    requester = Canvas(base, token)._Canvas__requester
    for _ in range(5):
        counts = read(requester, account)
        equal = counts == truth(base)
        if equal:
            break
    events = [[*key, count] for key, count in sorted(counts.items())]
    print(json.dumps({"client": "canvasapi", "equal": equal, "total": counts.total(), "events": events}))
    sys.exit(0 if equal else 1)


main()
