"""`load.sh`: offers the planned load to all models at the same time, and fails if one breaks its limit.

Touches: nothing.
"""

from __future__ import annotations

import math
import shlex

from trtopt.fleet.plan import Plan
from trtopt.fleet.servers import Server

_HEAD = """#!/bin/sh
# Offers the planned load to all models at the same time: load.sh [HOST] [SECONDS]
# Ends with the highest exit code: 1 if a limit is broken. The requests are random: add --data for real ones.
host=${1:-localhost}
seconds=${2:-60}
pids=
"""
_TAIL = """code=0
for pid in $pids; do
  wait "$pid"
  ended=$?
  [ "$ended" -gt "$code" ] && code=$ended
done
exit "$code"
"""


def script(plan: Plan, servers: tuple[Server, ...]) -> str:
    """Return the script."""
    lines = []
    for server in servers:
        for service in server.models(plan):
            rate = server.rate(plan, service)
            limit = plan.fleet.demand(service.model).limit
            words = ["trtopt", "bench", shlex.quote(service.model), "--server", f'"grpc://$host:{server.port + 1}"']
            words += ["--rate", f"{rate:.6g}", "--poisson", "--seconds", '"$seconds"']
            if math.isfinite(limit):
                words += ["--latency-limit", f"{limit:g}ms", "--gate", f"latency_p99={limit:g}ms"]
            lines.append(f'{" ".join(words)} &\npids="$pids $!"\n')
    return _HEAD + "".join(lines) + _TAIL
