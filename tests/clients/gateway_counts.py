"""What the gateway says of the requests that it was sent: the other side of a client's report."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter

_LINE = re.compile(r"^plinth_requests_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# Asked by probes, and by this.
_PROBES = ("/healthz", "/readyz", "/metrics")


def answered(base: str) -> Counter[tuple[str, str]]:
    """REST requests that have ended since the gateway's start, by path and code; base: its /v1."""
    url = f"{base.removesuffix('/v1')}/metrics"
    with urllib.request.urlopen(url, timeout=120) as page:
        text = page.read().decode()
    counts: Counter[tuple[str, str]] = Counter()
    for line in _LINE.finditer(text):
        labels = dict(_LABEL.findall(line["labels"]))
        if labels["api"] == "rest" and labels["path"] not in _PROBES:
            counts[labels["path"], labels["code"]] += int(float(line["count"]))
    return counts
