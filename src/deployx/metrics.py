"""What this process counts of itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

FIRED = Counter("deployx_tasks_fired", "Tasks that the clock claimed and accounted for.")
RUNS_ENDED = Counter("deployx_runs_ended", "Device runs that agents reported as ended.", ["status"])
AGENTS = Gauge("deployx_agents_connected", "Agents with an open session at this process.")
