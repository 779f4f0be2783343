"""Every counter and histogram of serving, declared once, the unit in its name.

All processes count into files of one folder (`prometheus_client`'s multi-process mode), and each of them can export
the sums: set ``PROMETHEUS_MULTIPROC_DIR`` to an empty folder before this module is imported.
"""

from __future__ import annotations

import glob
import os
from collections import defaultdict

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.utils import floatToGoString

from leadre.units import S_PER_DAY, S_PER_HOUR

LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
AGE_S = (60, 600, *(hours * S_PER_HOUR for hours in (1, 4, 12, 24)), *(days * S_PER_DAY for days in (2, 7, 30)))

ANSWERS = Counter(
    "leadre_answers", "Bid requests answered", ["route", "outcome"]
)  # bid, no_bid, bad, shed, foreign, limited
BAD_REQUESTS = Counter("leadre_bad_requests", "Bid requests refused, by wrong field", ["route", "field", "reason"])
LEFT_OUT_VALUES = Counter("leadre_left_out_values", "Values of a wrong type, read as absent", ["field"])
NEWER_POLICIES = Counter("leadre_newer_policies", "TC strings of policies newer than the bidder knows")
CLOSED_CONNECTIONS = Counter("leadre_closed_connections", "Connections closed by a limit", ["reason"])
LIMITED = Counter(
    "leadre_limited", "Requests refused by a limit of their address", ["kind"]
)  # key, event, origin, network, caller
CALLER_REQUESTS = Counter("leadre_caller_requests", "Bid requests of configured callers", ["caller", "outcome"])
OPEN_BIDS = Gauge(
    "leadre_open_bids", "Bids neither shown nor lost, within their time", ["caller"], multiprocess_mode="livesum"
)
UNKNOWN_CALLERS = Counter("leadre_unknown_callers", "Bid requests of nobody who is configured", ["route", "reason"])
ANSWER_S = Histogram(
    "leadre_answer_seconds", "From arrival of the request to the response", ["route"], buckets=LATENCY_S
)
BIDS = Counter("leadre_bids", "Bids, by source of the ad", ["source"])
NO_BIDS = Counter("leadre_no_bids", "Requests without a bid, by reason", ["reason"])
LIST_AGE_S = Histogram("leadre_list_age_seconds", "Age of the stored list that answered", buckets=AGE_S)
GENERATIONS = Counter("leadre_generations", "Requests to the language model", ["outcome"])  # complete, cut, late, gone
GENERATE_S = Histogram("leadre_generate_seconds", "Waiting for the language model", buckets=LATENCY_S)
EVENTS = Counter("leadre_events", "Events that came back", ["kind", "outcome"])
REFUSED_EVENTS = Counter(
    "leadre_refused_events", "Events without an effect", ["kind", "reason"]
)  # forged, late, price, audit, foreign
RANKINGS = Counter("leadre_rankings", "Requests to the ranker", ["outcome"])  # ranked, unknown, late, failed
EXPECTED_EVENTS = Counter(
    "leadre_expected_events", "Sum of the probabilities that bids assumed, of their impressions", ["bid_type", "slice"]
)
OBSERVED_EVENTS = Counter(
    "leadre_observed_events", "Clicks or conversions of the bids in leadre_expected_events", ["bid_type", "slice"]
)
MISCALIBRATED = Gauge(
    "leadre_miscalibrated",
    "1 while expected over observed events is outside 0.8 to 1.25",
    ["bid_type", "slice"],
    multiprocess_mode="livemax",
)
CHARGED_NANOS = Counter("leadre_charged_nanos", "Charged to advertisers", ["currency"])
WRITTEN_OFF_NANOS = Counter("leadre_written_off_nanos", "Charges beyond the budget, not billed", ["currency"])
RECORDS_DROPPED = Counter("leadre_records_dropped", "Records of requests that no log has", ["reason"])
STDERR_DROPPED = Counter("leadre_stderr_dropped", "Messages dropped, as nothing read stderr")
SET_ASIDE = Counter("leadre_set_aside", "Requests to the writer that failed and are in refused.jsonl", ["kind"])
TASK_FAILURES = Counter("leadre_task_failures", "Unexpected errors of background tasks", ["task"])
FAILING_TASKS = Gauge(
    "leadre_failing_tasks", "1 while a background task keeps failing", ["task"], multiprocess_mode="livemax"
)
UNCAPPED_STOPPED = Gauge(
    "leadre_uncapped_stopped",
    "1 while campaigns without a budget do not bid, because the writer is away",
    multiprocess_mode="livemax",
)
PACED_CAMPAIGNS = Gauge(
    "leadre_paced_campaigns",
    "Campaigns with a plan, by how they bid: wait (for their plan), less (than the value), full",
    ["state"],
    multiprocess_mode="livemax",
)
USERS_TO_ERASE = Gauge(
    "leadre_users_to_erase", "Users whose erasure was requested and is not finished", multiprocess_mode="livemax"
)
# Bids continue without them. tasks: a background task keeps failing; clock: the machine's time is in doubt.
PARTS = ("store", "writer", "model", "tasks", "clock", "ranker")
DEGRADED = Gauge(
    "leadre_degraded", "1 while store, writer or model server is down", ["part"], multiprocess_mode="livemax"
)


def exposition() -> bytes:
    """All metrics of all processes in Prometheus's text format."""
    return generate_latest(_registry())


def totals() -> dict[tuple[str, str, str], float]:
    """(sample, label, value of the label) -> the sum over processes and all other labels, now."""
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    for metric in _registry().collect():
        for sample in metric.samples:
            for label, value in sample.labels.items():
                sums[sample.name, label, value] += sample.value
    return sums


def failing_tasks() -> set[str]:
    """The background tasks of all processes that keep failing (`FAILING_TASKS`). It reads the files of gauges alone."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        metrics = FAILING_TASKS.collect()
    else:
        files = glob.glob(os.path.join(glob.escape(folder), "gauge_livemax_*.db"))
        metrics = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    samples = (sample for metric in metrics if metric.name == "leadre_failing_tasks" for sample in metric.samples)
    return {sample.labels["task"] for sample in samples if sample.value}


def edge(upper: float) -> str:
    """The label `le` of a histogram's bucket."""
    return str(floatToGoString(upper))  # type: ignore[no-untyped-call]


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def forget(process: int) -> None:
    """Drop the gauges of a dead process; its counters stay."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
