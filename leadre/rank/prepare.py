"""Logs -> all that the training of a ranker reads: spec, vocabulary, rows with features, count tables.

Collaborative scores of the training rows come from a fit on the time before them, so they have not seen the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.artifact import Artifact
from leadre.data import collaborative_fit, counts, histories
from leadre.data.counts import CountTables
from leadre.data.histories import I32, TRAIN, VALID, Logs, train_end_us
from leadre.errors import InputError
from leadre.rank import inputs, rows
from leadre.rank.inputs import Vocabulary
from leadre.rank.options import STOP_PART, STOP_SHARE, BagOptions, RowOptions
from leadre.rank.proportions import bags
from leadre.rank.proportions.bags import BagRows
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec
from leadre.semid import codebook as codebooks

CLICK = "click"
LABELS_OF_ROWS = BagOptions()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """``train`` and ``stop``: rows of training, and of the early stop. ``tables``: those of the end of training.

    ``content_OW``: text vectors of the objects; None without semantic IDs. ``bags``: the same rows of training and
    stop in bags, if labels are known as sums alone; no row has a label then.
    """

    object_ids: list[str]
    spec: FeatureSpec
    known: Vocabulary
    train: list[Example]
    stop: list[Example]
    tables: CountTables
    content_OW: NDArray[np.float32] | None
    bags: tuple[BagRows, BagRows] | None = None


def prepare(
    data: Artifact,
    codebook: Artifact | None,
    options: RowOptions,
    *,
    seed: int,
    threads: int,
    bag_options: BagOptions = LABELS_OF_ROWS,
) -> Prepared:
    """Read the tables and compute the features of all rows. InputError if a label never happens in them.

    With labels of bags ``options.negatives`` is the share of the bags without an action that are kept: a draw of rows
    would read their labels.
    """
    has_bags = bag_options.labels == "bags"
    logs = histories.load(data, empty=options.empty)
    codes_OL, content_OW = _ids(logs, codebook)
    seen_O = counts.exposures(logs, 0, train_end_us(logs)) > 0
    known, fields, sizes = inputs.vocabulary(logs, seen_O, codes_OL)
    positive = str(data.meta["config"]["positive"])
    clicked_of = _clicked(data, logs, positive, empty=options.empty) if options.clicks else None
    spec = FeatureSpec(
        labels=(positive, CLICK) if clicked_of else (positive,),
        rows=options.rows,
        negatives=1.0 if has_bags else options.negatives,
        popularity=options.popularity,
        fields=fields,
        profile=tuple(known.profile),
        tables=sizes,
    )
    spec.check()
    ads_of = rows.candidates(data, logs, options.rows, empty=options.empty)
    requests, stop = _drawn(logs, options, bag_options, seed)
    periods = ((requests, int(logs.request_at_us_R[requests].min())), (stop, train_end_us(logs)))
    parts = []
    for chosen, before_us in periods:
        scores = collaborative_fit.fit(logs, before_us, seed, threads)
        popularity = rows.Popularity(logs, scores, before_us, is_fresh=spec.popularity == "fresh")
        part = rows.examples(
            *(logs, chosen, ads_of, spec, known, popularity),
            negatives=spec.negatives,
            seed=seed,
            clicked_of=clicked_of,
        )
        parts.append(list(part))
        rows.check_labels(parts[-1], spec)
    in_bags = [_bags(logs, part, bag_options, options.negatives, seed) for part in parts] if has_bags else None
    train, stop_rows = [list(part.examples) for part in in_bags] if in_bags else parts
    return Prepared(
        object_ids=logs.objects["object_id"].to_list(),
        spec=spec,
        known=known,
        train=train,
        stop=stop_rows,
        tables=counts.fit(logs, train_end_us(logs), scores),
        content_OW=content_OW,
        bags=(in_bags[0], in_bags[1]) if in_bags else None,
    )


def _drawn(logs: Logs, options: RowOptions, bag_options: BagOptions, seed: int) -> list[NDArray[np.int64]]:
    """The requests of training and of the early stop.

    With the bags of a report they are drawn by whole placements and weeks, so that no bag is in part.
    """
    late = rows.period(logs, TRAIN, 1 - options.row_share, 1, options.visits)
    early = rows.period(logs, VALID, 0, STOP_SHARE, options.visits)
    parts = ((late, options.requests), (early, -(-options.requests // STOP_PART)))
    if bag_options.labels == "bags" and bag_options.bag_rows == "report":
        return [bags.drawn_reports(logs, requests, most, seed) for requests, most in parts]
    return [rows.drawn(requests, most, seed) for requests, most in parts]


def _bags(logs: Logs, part: list[Example], options: BagOptions, empty: float, seed: int) -> BagRows:
    """Rows in the bags of the options, without labels."""
    if options.bag_rows == "report":
        bag_N = bags.report_bags(logs, part)
    else:
        bag_N = bags.random_bags(sum(len(row.ads) for row in part), options.bag_size, seed)
    return bags.hide(part, bag_N, empty=empty, seed=seed)


def _clicked(data: Artifact, logs: Logs, positive: str, *, empty: bool) -> Callable[[int], I32]:
    """Request -> its clicked ads. InputError if clicks are the positive action already, or no ad has one."""
    clicked = None if positive == CLICK else rows.acted(data, logs, CLICK, empty=empty)
    if clicked is None:
        raise InputError(
            f"--clicks true: the positive action is {positive!r}, and the second label are clicks of ads beside"
            " conversions; give `leadre data` a log with both and --positive conversion, or leave --clicks out"
        )
    return clicked


def _ids(logs: Logs, codebook: Artifact | None) -> tuple[I32, NDArray[np.float32] | None]:
    """(codes of the objects [O, L], their text vectors [O, W]); no codes and no vectors without a codebook."""
    if codebook is None:
        return np.zeros((len(logs.objects), 0), np.int32), None
    ids = codebooks.load(codebook)
    rows_O = ids.rows(logs.objects["object_id"].to_list())
    return ids.codes_OL[rows_O, :-1], ids.embeddings_OD[rows_O, : ids.text_width]
