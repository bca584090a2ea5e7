#!/usr/bin/env python3
"""Reads an OpenMetrics 1.0 page on stdin and prints its number of samples.

The judge is PyPI's prometheus_client, whose parser is the strict one of the OpenMetrics
project. Exit 0: the page is sound. 1: it is not, and why stands on standard error.
2: prometheus_client is not installed.
"""

import sys

try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
except ImportError as missing:
    print(f"prometheus_client is not installed: {missing}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    try:
        page = sys.stdin.buffer.read().decode("utf-8")
        samples = sum(len(family.samples) for family in text_string_to_metric_families(page))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as fault:
        # The parser reports most faults as ValueError and stumbles over some.
        print(f"not OpenMetrics 1.0: {type(fault).__name__}: {fault}", file=sys.stderr)
        return 1
    print(samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
