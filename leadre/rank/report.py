"""Figures of a ranker on scored rows: order, calibration by slice, with intervals over users; and the plot of both.

Letters: N rows, U users, B resamples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit

from leadre import metrics
from leadre.data.histories import Logs
from leadre.data.prices import training_prices
from leadre.data.user_counts import train_counts
from leadre.errors import InputError
from leadre.rank import measure
from leadre.rank.score import ScoredRows

Bools = NDArray[np.bool_]
Json = dict[str, Any]


def write(folder: Path, rows: ScoredRows, p_N: NDArray[np.float64], figures: Json) -> None:
    """Write metrics.json with the ``figures``, and calibration.png."""
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    plot(rows, p_N, folder / "calibration.png")


def figures(logs: Logs, rows: ScoredRows, p_N: NDArray[np.float64], *, resamples: int, seed: int) -> Json:
    """AUC, GAUC by user and by request, NE, ECE over the base rate, sum of p over sum of labels by slice.

    InputError if all rows have an action, or none has.
    """
    if not 0 < rows.label_N.sum() < len(p_N):
        raise InputError(
            f"rank: {rows.label_N.sum():,} of {len(p_N):,} scored rows have an action, so nothing can be measured;"
            " score more requests"
        )
    user_N = logs.request_user_R[rows.request_N]
    users, which_N = np.unique(user_N, return_inverse=True)
    auc_B = measure.bootstrap_auc(rows.label_N, p_N[:, None], which_N, len(users), resamples=resamples, seed=seed)
    result: Json = {
        "rows": len(p_N),
        "requests": len(np.unique(rows.request_N)),
        "users": len(users),
        "rate": float(rows.label_N.mean()),
        "auc": metrics.interval(measure.auc(rows.label_N, p_N), auc_B[:, 0]),
    }
    by_user = measure.group_auc(rows.label_N, p_N, which_N)
    by_request = measure.group_auc(rows.label_N, p_N, rows.request_N)
    user_of_request = np.searchsorted(users, logs.request_user_R[by_request.group_G])
    ratios = {
        "gauc_user": by_user.by_user(by_user.group_G, len(users)),
        "gauc_request": by_request.by_user(user_of_request, len(users)),
    }
    for name, ratio in ratios.items():
        values_B = metrics.bootstrap([ratio], resamples=resamples, seed=seed)[:, 0]
        result[name] = metrics.interval(ratio.mean, values_B)
    result["gauc_share"] = {"user": by_user.share, "request": by_request.share}
    loss = measure.log_losses(rows.label_N, p_N)
    result["log_loss"] = float(loss.mean())
    result["ne"] = float(measure.normalised_entropy(loss.mean(), rows.label_N.mean()))
    result["ece_rel"] = measure.calibration_error(rows.label_N, p_N)
    result["ece_rel_of_draws"] = measure.drawn_calibration_error(p_N, seed=seed)
    result["sum_ratio"] = {
        name: _sum_ratio(rows.label_N[part], p_N[part], which_N[part], len(users), resamples, seed)
        for name, part in slices(logs, rows).items()
    }
    return result


def slices(logs: Logs, rows: ScoredRows) -> dict[str, Bools]:
    """The rows of each slice: seen or new, terciles of price and of popularity, halves of users by activity.

    Popularity and activity are events of training time.
    """
    price_N = training_prices(logs)[rows.ad_N]
    counts_UO = train_counts(logs)
    events_O = np.asarray(counts_UO.sum(axis=0)).ravel()
    events_N = np.asarray(counts_UO.sum(axis=1)).ravel()[logs.request_user_R[rows.request_N]]
    parts = {"all": np.ones(len(price_N), np.bool_), "seen": ~rows.is_new_N, "new": rows.is_new_N}
    for name, value_N in (("price", price_N), ("popularity", events_O[logs.ad_object_A[rows.ad_N]])):
        low, high = np.quantile(value_N, [1 / 3, 2 / 3])
        parts[f"{name}_low"] = value_N <= low
        parts[f"{name}_middle"] = (value_N > low) & (value_N <= high)
        parts[f"{name}_high"] = value_N > high
    parts["quiet_users"] = events_N <= np.median(events_N)
    parts["active_users"] = ~parts["quiet_users"]
    return {name: part for name, part in parts.items() if part.any()}


def _sum_ratio(
    label_N: Bools, p_N: NDArray[np.float64], user_N: NDArray[np.int64], users: int, resamples: int, seed: int
) -> Json:
    if not label_N.any():
        return {"mean": None, "lo": None, "hi": None, "positives": 0, "expected": float(p_N.sum())}
    ratio = metrics.ratio(p_N, label_N.astype(np.float64), user_N, users)
    values_B = metrics.bootstrap([ratio], resamples=resamples, seed=seed)[:, 0]
    return metrics.interval(ratio.mean, values_B) | {"positives": int(label_N.sum())}


def plot(rows: ScoredRows, p_N: NDArray[np.float64], path: Path) -> None:
    """Observed rate against mean probability in bins of equal count, before and after calibration, on both log axes."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for name, values in (("before calibration", expit(rows.logit_N)), ("calibrated", p_N)):
        curve = measure.calibration_curve(rows.label_N, values)
        axes.plot(curve.p_K, np.maximum(curve.rate_K, 1e-6), marker="o", label=name)
    low, high = axes.get_xlim()
    axes.plot([max(low, 1e-6), high], [max(low, 1e-6), high], color="grey", linewidth=1, label="perfect")
    axes.set(xscale="log", yscale="log", xlabel="mean probability of a bin", ylabel="observed rate")
    axes.set_title("Calibration: 20 bins of equal count")
    axes.legend()
    figure.savefig(path, dpi=150)
