"""Stage `evaluate`: compare the generated lists with baselines on logged requests, and write a report.

The stage reads ``work/<run>/data`` and the lists in ``work/<run>/generate``. It fits the baselines on the training time
and stores them in ``work/<run>/channels``, so that a killed run resumes. Then it ranks the same requests with each of
them and writes ``work/<run>/evaluate``: metrics.json with confidence intervals, lists.parquet (top 20 of every method),
report.html, comparison.png, loss.png. Each reading of a test set is logged (``leadre/readings.py``).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, parquet, progress
from leadre.errors import ArtifactError, InputError
from leadre.tune.latest import latest

if TYPE_CHECKING:  # numpy and torch are imported in run, so that --help stays quick
    from leadre.data.histories import Logs
    from leadre.evaluate.retrieval.measure import Ads, Ints, View
    from leadre.readings import Reading

METRICS = artifact.Kind("metrics", 1)
OURS, FUSED, RERANKED = "leadre", "leadre+counts", "sft+price"
SHORTEST = 20  # length of the lists
FEW_USERS = 30  # below it, a bootstrap over users gives intervals that are clearly too narrow
RIVALS = (
    *("popularity", "popularity_buyers", "rate_when_live", "own_frequency", "own_frequency_decayed"),
    *("item_knn", "als", "tifu_knn", "up_cf", "sasrec", "counts_network"),
)


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre evaluate``."""

    split: Literal["valid", "test"] = config.option("test", "split of the requests to evaluate; choose models on valid")
    users: int = config.option(0, "evaluate this many users, drawn by the seed; 0 = all in the lists", at_least=0)
    channels: tuple[str, ...] = config.option(RIVALS, "baselines to fit and compare")
    fusion: bool = config.option(True, "add the row leadre+counts: fused with the user's own decayed counts")
    extra: tuple[str, ...] = config.option((), "further rows NAME=FOLDER: other lists artifacts, such as control runs")
    rerank: Path | None = config.option(
        None, "validation lists (generate --split valid --step generate-valid): adds the row sft+price"
    )
    last_visits: int = config.option(-1, "as of `leadre generate`: visits of each history that count", at_least=-1)
    length: int = config.option(
        SHORTEST, "places of each list that count; above 20, recall at this length is a metric too", at_least=SHORTEST
    )
    resamples: int = config.option(1000, "bootstrap resamples over users", at_least=1)


def run(config: Config) -> None:
    """Write ``work/<run>/evaluate`` unless it is current. Raises ArtifactError if data or lists are missing."""
    started_s = time.monotonic()
    parents = _parents(config)
    data, lists = parents
    extras = _extras(config, data)
    validation = _validation(config, data, lists)
    tuned = latest(config)
    # parents are recorded by folder name, but folders of extras are all named `generate`: record them by row
    effective = config.flat() | {
        "extra": {name: extra.hash for name, extra in extras.items()},
        "rerank": None if validation is None else validation.hash,
        "beside": _fingerprint(config, tuned),
    }
    output = artifact.Output(
        folder=config.folder("evaluate"), kind=METRICS, config=effective, seed=config.seed, parents=parents
    )
    if output.skip("evaluate"):
        return
    from leadre.data import histories, moment
    from leadre.evaluate import report
    from leadre.evaluate.retrieval import measure as retrieval

    logs = moment.cut(histories.load(data), config.last_visits)
    requests_R = choose(config, logs, lists)
    views = views_of(logs, requests_R)
    methods = _methods(config, logs, data, {OURS: lists, **extras}, views)
    weights = {} if validation is None else _add_reranked(methods, logs, lists, validation, views)
    read = _record(config, data, output, methods[views[0].name], len(requests_R))
    with output.create() as temporary:
        tables = {
            v.name: retrieval.compare(v, methods[v.name], ours=OURS, resamples=config.resamples, seed=config.seed)
            for v in views
        }
        parts, by_slice = _slices(config, logs, views, methods)
        _write_lists(temporary / "lists.parquet", methods, views)
        inputs = report.ReportInputs(
            logs=logs,
            views=views,
            slices=parts,
            tables={**tables, **by_slice},
            lists=methods,
            root=config.folder("data").parent,
            tuned=tuned,
            readings=read,
            split=config.split,
            seed=config.seed,
        )
        report.write(temporary, inputs)
        seconds = round(time.monotonic() - started_s, 1)
        peak_rss_mb = round(artifact.peak_rss_mb(), 1)
        figures = {"views": tables, "slices": by_slice, "rerank": weights, "seconds": seconds}
        figures |= {"peak_rss_mb": peak_rss_mb, **_population(config, [*views, *parts], read)}
        (temporary / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for line in _summary(tables, views):
        progress.say(line)
    progress.say(f"evaluate: {seconds:.0f} s, {peak_rss_mb:,.0f} MB -> {output.folder / 'report.html'}")


def _record(
    config: Config, data: artifact.Artifact, output: artifact.Output, rows: Mapping[str, Ads], requests: int
) -> list[Reading]:
    """Log the reading of the test set. Returns all of its readings; none on validation."""
    from leadre import readings

    if config.split != "test":
        return []
    return readings.record(config.work, data, list(rows), run=config.run, requests=requests, config=output.config)


def _population(config: Config, views: Sequence[View], read: Sequence[Reading]) -> dict[str, object]:
    """The requests behind the figures: split, seed, numbers of requests and users by view or slice, readings by row."""
    from leadre import readings

    return {
        "split": config.split,
        "seed": config.seed,
        "requests": {v.name: len(v.requests_V) for v in views},
        "users": {v.name: v.users for v in views},
        "readings": readings.count(read),
    }


def _parents(config: Config) -> list[artifact.Artifact]:
    data = artifact.read(config.folder("data"), artifact.TABLES)
    return [data, _lists(config, config.folder("generate"), data)]


def _lists(config: Config, folder: Path, data: artifact.Artifact) -> artifact.Artifact:
    """A lists artifact.

    ArtifactError if it is of other logs, whose requests have other numbers, of other histories, or too short.
    """
    lists = artifact.read(folder, artifact.LISTS)
    seen = lists.meta["config"].get("last_visits", -1)
    if seen != config.last_visits:
        raise ArtifactError(
            f"{folder}: generated with --last-visits {seen}, not {config.last_visits}; give both the same"
        )
    top = lists.meta["config"].get("top", config.length)
    if top < config.length > SHORTEST:
        raise ArtifactError(f"{folder}: lists of {top} ads; run `leadre generate` with --top {config.length}")
    if lists.meta["parents"].get("data") != data.hash:
        raise ArtifactError(f"{folder}: generated from other logs than {data.path}; run `leadre generate` again")
    return lists


def _extras(settings: Config, data: artifact.Artifact) -> dict[str, artifact.Artifact]:
    """Row name -> lists artifact of the option `extra`. Raises InputError for an invalid `extra` or `channels`."""
    extras: dict[str, artifact.Artifact] = {}
    for entry in settings.extra:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise InputError(f"extra = {entry!r}: write NAME=FOLDER, such as random_init=work/random/generate")
        if name in extras or name in (OURS, FUSED, RERANKED, *RIVALS):
            raise InputError(f"extra = {entry!r}: the row {name!r} exists already; choose another name")
        extras[name] = _lists(settings, Path(folder), data)
    unknown = [name for name in settings.channels if name not in RIVALS]
    if unknown:
        nearest = config.nearest(unknown[0], RIVALS)
        raise InputError(f"channels: unknown channel {unknown[0]!r}; the nearest is {nearest!r}")
    return extras


def _validation(config: Config, data: artifact.Artifact, lists: artifact.Artifact) -> artifact.Artifact | None:
    """The validation lists, on which the weight of sft+price is chosen; None without the option `rerank`.

    Raises ArtifactError unless they have the model, IDs and logs of `lists`.
    """
    if config.rerank is None:
        return None
    validation = _lists(config, config.rerank, data)
    if validation.meta["parents"] != lists.meta["parents"]:
        raise ArtifactError(
            f"{config.rerank}: generated by another model than the lists in {lists.path}; "
            f"run `leadre generate --split valid --step generate-valid` again"
        )
    return validation


def _fingerprint(config: Config, tuned: Path) -> dict[str, str]:
    """Hashes of the files that the report shows although they are no parents: if one changes, the stage runs again."""
    paths = {
        "semid": config.folder("semid") / artifact.META,
        "loss": config.folder("tune-sft") / "loss.csv",
        "valid": config.folder("tune-sft") / "valid.csv",
        "meaning": config.folder("tune-sft") / "alignment.json",
        "preferences": tuned / "pairs.png",
        "calibration": config.folder("rank-score") / "calibration.png",
    }
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}


def choose(config: Config, logs: Logs, lists: artifact.Artifact) -> Ints:
    """The requests to evaluate, ascending: those of the split that have lists, of at most `config.users` users."""
    import numpy as np

    from leadre.data.histories import SPLITS

    requests_R = _listed_requests(logs, lists, config.split)
    users = np.unique(logs.request_user_R[requests_R])
    if 0 < config.users < len(users):
        sample = np.random.default_rng(config.seed).choice(users, size=config.users, replace=False)
        requests_R = requests_R[np.isin(logs.request_user_R[requests_R], sample)]
        users = sample
    split_size = int((logs.request_split_R == SPLITS.index(config.split)).sum())
    progress.say(f"evaluate: {len(requests_R):,} of {split_size:,} {config.split} requests, {len(users):,} users")
    return requests_R


def views_of(logs: Logs, requests_R: Ints) -> list[View]:
    """The views, `all` first, without those in which no request has a relevant ad. InputError if none is left."""
    from leadre.evaluate.retrieval import measure as retrieval

    views = [retrieval.build_view(logs, requests_R, name) for name in retrieval.VIEWS]
    empty = [view.name for view in views if not len(view.requests_V)]
    if len(empty) == len(views):
        raise InputError(f"none of these {len(requests_R):,} requests has a positive action; evaluate more --users")
    for name in empty:
        progress.say(f"evaluate: view {name}: none of these requests has a relevant ad, so the view is left out")
    return [view for view in views if len(view.requests_V)]


def _listed_requests(logs: Logs, lists: artifact.Artifact, split: str) -> Ints:
    """The requests of `split` that have lists, ascending. Raises InputError if there are none."""
    import numpy as np
    import polars as pl

    from leadre.data.histories import SPLITS

    requests = pl.read_parquet(lists.path / "lists.parquet", columns=["request"])["request"].unique().sort().to_numpy()
    requests_R: Ints = requests[logs.request_split_R[requests] == SPLITS.index(split)].astype(np.int64)
    if not len(requests_R):
        raise InputError(f"{lists.path} holds no request of the {split} split; run `leadre generate` for it")
    return requests_R


def _methods(
    config: Config,
    logs: Logs,
    data: artifact.Artifact,
    sources: Mapping[str, artifact.Artifact],
    views: Sequence[View],
) -> dict[str, dict[str, Ads]]:
    """view -> row -> top ads [V, K]. Rows: each lists artifact in `sources`, the fusion with counts, each channel."""
    import polars as pl

    from leadre.evaluate.retrieval import measure as retrieval
    from leadre.generate.channels import fitted

    key_A = retrieval.tie_key(logs, config.seed)
    rows: dict[str, dict[str, Ads]] = {}
    for name, source in sources.items():
        frame = pl.read_parquet(source.path / "lists.parquet", columns=["request", "view", "ads"])
        lists = retrieval.checked_lists(frame, logs, views, source=str(source.path))
        rows[name] = retrieval.tabulate(retrieval.iterate_lists(lists), views, length=config.length)
        if name == OURS and config.fusion:
            fused = retrieval.fuse_with_counts(logs, lists, views, key_A=key_A)
            rows[FUSED] = retrieval.tabulate(fused, views, length=config.length)
    for name in config.channels:
        folder = config.folder("channels") / name
        channel = fitted.load(folder, name, logs, data, seed=config.seed, threads=config.threads)
        ranked = retrieval.rank(logs, channel, views, key_A=key_A, length=config.length)
        bar = progress.bar(ranked, total=len(views[0].requests_V), label=f"rank with {name}")
        rows[name] = retrieval.tabulate(bar, views, length=config.length)
    return {v.name: {name: tables[v.name] for name, tables in rows.items()} for v in views}


def _add_reranked(
    methods: dict[str, dict[str, Ads]],
    logs: Logs,
    lists: artifact.Artifact,
    validation: artifact.Artifact,
    views: Sequence[View],
) -> dict[str, float]:
    """Add the row sft+price to `methods`. Returns view -> weight of log-price, chosen on the validation lists."""
    import polars as pl

    from leadre.evaluate.retrieval import measure as retrieval
    from leadre.evaluate.retrieval import rerank

    frame = pl.read_parquet(validation.path / "lists.parquet")
    requests_R = _listed_requests(logs, validation, "valid")
    validation_views = [retrieval.build_view(logs, requests_R, v.name) for v in views]
    price_A = views[0].price_A
    weights = rerank.choose_weights(
        rerank.scored_lists(frame, logs, validation_views, source=str(validation.path)), validation_views, price_A
    )
    progress.say(
        "evaluate: " + RERANKED + ", weight of log-price: " + ", ".join(f"{k} {w}" for k, w in weights.items())
    )
    ours = rerank.scored_lists(pl.read_parquet(lists.path / "lists.parquet"), logs, views, source=str(lists.path))
    reordered = retrieval.iterate_lists(rerank.reorder(ours, price_A, weights))
    tables = retrieval.tabulate(reordered, views, length=methods[views[0].name][OURS].shape[1])
    for v in views:
        methods[v.name][RERANKED] = tables[v.name]
    return weights


def _slices(
    config: Config, logs: Logs, views: Sequence[View], methods: Mapping[str, Mapping[str, Ads]]
) -> tuple[list[View], dict[str, dict[str, dict[str, dict[str, object]]]]]:
    """(views of the cold-start slices, slice -> comparison of all methods in it)."""
    from leadre.evaluate.retrieval import measure as retrieval
    from leadre.evaluate.retrieval import slices

    parts = slices.slice_views(logs, views)
    tables = {}
    for view, part in parts:
        lists = slices.slice_lists(view, part, methods[view.name])
        tables[part.name] = retrieval.compare(
            part, lists, ours=OURS, resamples=config.resamples, seed=config.seed, columns=slices.METRICS
        )
    return [part for _, part in parts], tables


def _write_lists(path: Path, methods: Mapping[str, Mapping[str, Ads]], views: Sequence[View]) -> None:
    import polars as pl

    frames = []
    for v in views:
        for name, ads_VK in methods[v.name].items():
            ads = [row[row >= 0].tolist() for row in ads_VK]
            columns = {
                "request": pl.Series(v.requests_V, dtype=pl.Int32),
                "ads": pl.Series(ads, dtype=pl.List(pl.Int32)),
            }
            frames.append(
                pl.DataFrame(columns).select(
                    pl.lit(name).alias("method"), pl.lit(v.name).alias("view"), "request", "ads"
                )
            )
    parquet.write(pl.concat(frames), path)


def _summary(
    tables: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]], views: Sequence[View]
) -> list[str]:
    """The comparison as text lines for the terminal; without GMV where there is no money."""
    lines = []
    for v in views:
        has_money = any(_mean(row, "gmv@10") for row in tables[v.name].values())
        shown = {"recall@10": "R@10", "ndcg@10": "nDCG@10"} | ({"gmv@10": "GMV@10"} if has_money else {})
        lines.append(f"view {v.name}: {len(v.requests_V):,} requests, {v.users:,} users   {'   '.join(shown.values())}")
        ordered = sorted(tables[v.name].items(), key=lambda item: -_mean(item[1], "recall@10"))
        for name, row in ordered:
            figures = "   ".join(f"{_mean(row, metric):.4f}" for metric in shown)
            lines.append(f"  {name:<24} {figures}")
        if v.users < FEW_USERS:
            lines.append(f"  intervals over {v.users} users are too narrow: no difference in this table is proven")
    return lines


def _mean(row: Mapping[str, Mapping[str, object]], metric: str) -> float:
    mean = row[metric]["mean"]
    assert isinstance(mean, float)
    return mean
