"""Ranker and calibration -> the best live ads of logged requests with their probabilities, and figures of both.

Reads ``work/<run>/rank-train`` and ``rank-calibrate``, and writes ``work/<run>/rank-score``: lists.parquet, a lists
artifact in both views, so that ``leadre evaluate --extra ranker=work/<run>/rank-score`` compares it; metrics.json: AUC,
GAUC, NE, calibration by slice; calibration.png. Each reading of a test set is logged (``leadre/readings.py``).

With ``--cut`` the lists have only ads that ``work/<run>/rank-coarse`` puts first, and metrics.json has the share of the
ranker's best ads that are among them. All other figures are those of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, parquet, progress
from leadre.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from leadre.data.histories import I32, Logs
    from leadre.rank.calibrate import Calibration
    from leadre.rank.ranker import TrainedRanker
    from leadre.rank.score import ScoredRows


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre rank score``."""

    split: Literal["valid", "test"] = config.option("test", "split of the requests to score")
    users: int = config.option(0, "only the requests of this many users, drawn by the seed; 0 = all", at_least=0)
    visits: int = config.option(0, "at most this many requests of each user, drawn by the seed; 0 = all", at_least=0)
    refit_days: int = config.option(
        0,
        "calibrate again every so many days, on as many days before, as a bidder that is kept up to date; 0 = never",
        at_least=0,
    )
    top: int = config.option(20, "ads per list", at_least=1)
    cut: int = config.option(0, "rank only so many ads, the first of `leadre rank coarse`; 0 = all", at_least=0)
    resamples: int = config.option(1000, "bootstrap resamples over users", at_least=1)


def run(config: Config) -> None:
    """Write ``work/<run>/rank-score`` unless it is current."""
    data = artifact.read(config.folder("data"), artifact.TABLES)
    trained = artifact.read(config.folder("rank-train"), artifact.RANKER)
    calibrated = artifact.read(config.folder("rank-calibrate"), artifact.CALIBRATION)
    artifact.check_parent(trained, data, "leadre rank train")
    artifact.check_parent(calibrated, trained, "leadre rank calibrate")
    parents = [data, trained, calibrated]
    if config.cut:
        parents.append(artifact.read(config.folder("rank-coarse"), artifact.RANKER))
        artifact.check_parent(parents[-1], trained, "leadre rank coarse")
    output = artifact.Output(
        folder=config.folder("rank-score"),
        kind=artifact.LISTS,
        config=config.flat(),
        seed=config.seed,
        parents=parents,
    )
    if output.skip("rank score"):
        return
    import numpy as np

    from leadre import readings
    from leadre.data import histories
    from leadre.rank import calibrate, coarse, lists, ranker, report, rows

    with output.create() as temporary:
        empty = bool(trained.meta["config"]["empty"])
        logs = histories.load(data, empty=empty)
        model = ranker.load(trained.path)
        requests = histories.choose_requests(
            logs, split=config.split, users=config.users, visits=config.visits, seed=config.seed
        )
        if config.split == "test":
            row = f"rank.{model.model}"
            readings.record(config.work, data, [row], run=config.run, requests=len(requests), config=output.config)
        ads_of = rows.candidates(data, logs, model.spec.rows, empty=empty)
        first = ranker.load(parents[-1].path) if config.cut else None
        scored, p_N = _calibrated(config, logs, model, first, requests, ads_of, calibrate.load(calibrated.path))
        figures = report.figures(logs, scored, p_N, resamples=config.resamples, seed=config.seed)
        is_in_N = np.ones(len(p_N), np.bool_)
        if config.cut:
            is_in_N = coarse.cut(scored, config.cut, config.seed)
            figures["cut"] = coarse.figures(logs, scored, p_N, is_in_N, resamples=config.resamples, seed=config.seed)
        report.write(temporary, scored, p_N, figures)
        number_R = rows.plain_numbers(data) if empty else np.arange(len(logs.request_user_R))
        frame = lists.best(logs, scored.rows(is_in_N), p_N[is_in_N], number_R, top=config.top, seed=config.seed)
        parquet.write(frame, temporary / "lists.parquet")
    auc, gauc = (figures[name]["mean"] for name in ("auc", "gauc_user"))
    progress.say(
        f"rank score: AUC {auc:.4f}, GAUC {gauc:.4f}, ECE {figures['ece_rel']:.3f} of the rate -> {output.folder}"
    )


def _calibrated(
    config: Config,
    logs: Logs,
    model: TrainedRanker,
    first: TrainedRanker | None,
    requests: NDArray[np.int64],
    ads_of: Callable[[int], I32],
    calibration: Calibration,
) -> tuple[ScoredRows, NDArray[np.float64]]:
    """(rows of the requests, their probabilities), by one calibration or by one that is fitted again and again."""
    import numpy as np

    from leadre.data import histories
    from leadre.rank import calibrate, score
    from leadre.units import US_PER_DAY

    if not config.refit_days:
        scored = score.stacked(score.score(logs, requests, ads_of, model, first))
        return scored, calibration.apply(scored.logit_N, calibrate.slices(scored.is_new_N))
    at_us_R = logs.request_at_us_R
    from_us = int(at_us_R[requests].min())
    first_us = from_us - config.refit_days * US_PER_DAY
    if first_us < histories.train_end_us(logs):
        raise InputError(f"--refit-days {config.refit_days}: the days before the scored requests are training time")
    before = np.flatnonzero((at_us_R >= first_us) & (at_us_R < from_us))
    scored = score.stacked(score.score(logs, np.concatenate([before, requests]), ads_of, model, first))
    slice_N = calibrate.slices(scored.is_new_N)
    at_us_N = at_us_R[scored.request_N]
    p_N = calibrate.refitted(scored.logit_N, scored.label_N, slice_N, at_us_N, from_us, config.refit_days)
    after_N = ~np.isnan(p_N)
    return scored.rows(after_N), p_N[after_N]
