"""Ranker -> calibration: the log-odds of a ranker as probabilities that agree with observed rates, seen and new apart.

Reads ``work/<run>/rank-train`` and writes ``work/<run>/rank-calibrate``: calibration.json, metrics.json and
calibration.png. It is fitted on the second half of the validation time, which the training has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from leadre import artifact, config, progress
from leadre.rank.options import STOP_SHARE


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre rank calibrate``."""

    requests: int = config.option(0, "at most this many requests, drawn by the seed; 0 = all", at_least=0)
    resamples: int = config.option(300, "bootstrap resamples over users", at_least=1)


def run(config: Config) -> None:
    """Write ``work/<run>/rank-calibrate`` unless it is current. InputError for rows that cannot be calibrated."""
    data = artifact.read(config.folder("data"), artifact.TABLES)
    trained = artifact.read(config.folder("rank-train"), artifact.RANKER)
    artifact.check_parent(trained, data, "leadre rank train")
    output = artifact.Output(
        folder=config.folder("rank-calibrate"),
        kind=artifact.CALIBRATION,
        config=config.flat(),
        seed=config.seed,
        parents=[data, trained],
    )
    if output.skip("rank calibrate"):
        return
    from leadre.data import histories
    from leadre.rank import calibrate, ranker, report, rows, score

    with output.create() as temporary:
        empty = bool(trained.meta["config"]["empty"])
        logs = histories.load(data, empty=empty)
        model = ranker.load(trained.path)
        visits = trained.meta["config"].get("visits", 0)  # of a user, as in training
        late = rows.period(logs, histories.VALID, STOP_SHARE, 1, visits)
        requests = rows.drawn(late, config.requests, config.seed)
        ads_of = rows.candidates(data, logs, model.spec.rows, empty=empty)
        scored = score.stacked(score.score(logs, requests, ads_of, model))
        slice_N = calibrate.slices(scored.is_new_N)
        fitted = calibrate.fit(scored.logit_N, scored.label_N, slice_N, len(calibrate.SLICES))
        p_N = fitted.apply(scored.logit_N, slice_N)
        fitted.save(temporary)
        figures = report.figures(logs, scored, p_N, resamples=config.resamples, seed=config.seed)
        report.write(temporary, scored, p_N, figures)
    progress.say(f"rank calibrate: slope {fitted.slope:.3f}, rows {len(p_N):,} -> {output.folder}")
