"""The rows of the ablation: options that are switched off, the order in which they return, and rows without one.

CONTROLS: the config itself with one of its foundations removed (training, pointer, prior, pretrained weights).
The first row is the config with all options of OFF switched off; the last cumulative row before preferences is the
config itself. To add a row, put its options into OFF and a line into STEPS.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from leadre import config
from leadre.errors import InputError

OFF: Mapping[str, Any] = {
    "long_ad": False,
    "short_content": False,
    "long_content": False,
    "profile": False,
    "words": False,
    "aux_share": 0.0,
    "aux_first": 0,
}


@dataclass(frozen=True)
class Step:
    """A cumulative row: the options `on`, keys of OFF, have the config's values from this row on."""

    name: str
    title: str
    on: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A row with one thing left out, compared with the row that has all."""

    name: str
    title: str
    options: Mapping[str, Any]  # of `tune`, or of `tune dpo`


AUXILIARY = "aux"
BASE = Step("base", "short-term ad IDs only", ())
STEPS = (
    Step("long-term", "+ long-term interests", ("long_ad",)),
    Step("content", "+ content domain", ("short_content", "long_content")),
    Step("words", "+ profile and words", ("profile", "words")),
    Step(AUXILIARY, "+ auxiliary tasks", ("aux_share", "aux_first")),
)
PREFERENCES = Step("dpo", "+ preferences by value", ())
RULES = ("live_unbought", "higher_value", "on_policy")
RATES = ("learning_rate", "codes_learning_rate")
TASKS = (
    LeftOut("no-id-to-text", "no task from ID to text", {"task_id_to_text": 0.0}),
    LeftOut("no-text-to-id", "no task from text to ID", {"task_text_to_id": 0.0}),
    LeftOut("no-prefix-to-category", "no task from first codes to category", {"task_prefix_to_category": 0.0}),
    LeftOut("no-mixed", "no histories partly in words", {"task_mixed": 0.0}),
    LeftOut("no-search", "no search", {"task_search": 0.0}),
    LeftOut("no-content-to-ad", "no task from contents to ad", {"task_content_to_ad": 0.0}),
    LeftOut("no-why", "no interest told before the ad", {"task_why": 0.0}),
)
UNTRAINED: Mapping[str, Any] = {"max_steps": 1, "aux_share": 0.0, "aux_first": 0} | dict.fromkeys(RATES, 0.0)
CONTROLS = (
    LeftOut("untrained", "no training: all weights as they start", UNTRAINED),
    LeftOut("no-pointer", "no pointer", {"pointer": False}),
    LeftOut("rate-prior", "response rates as prior", {"learnt_prior": False}),
    LeftOut("no-prior", "no prior", {"prior": False, "learnt_prior": False}),
    LeftOut("prior-alone", "the prior alone", {**UNTRAINED, "pointer": False, "zero_codes": True}),
    LeftOut("frozen-body", "body frozen", {"freeze_body": True}),
    LeftOut("random-body", "body random", {"random_backbone": True}),
    LeftOut("random-all", "body and word embeddings random", {"random_backbone": True, "random_words": True}),
)
LEFT_OUT = (
    LeftOut("no-live-unbought", "no pairs over live ads not acted on", {"live_unbought": False}),
    LeftOut("no-higher-value", "no pairs of two conversions", {"higher_value": False}),
    LeftOut("no-on-policy", "no pairs over what the model ranked above", {"on_policy": False}),
    LeftOut("no-similarity", "near-duplicates count in full", {"similarity": False}),
    LeftOut("no-prefix", "gradients at shared codes too", {"stop_shared": False}),
    LeftOut("no-value-margin", "no margin by value", {"value_margin": 0.0}),
    LeftOut("sft-term", "no preference: prices, and the likelihood by value", {"loss": "none"}),
    LeftOut(
        "sft-alone", "no preference, no price: the likelihood alone", {"loss": "none", "money": 0.0, "money_prior": 0.0}
    ),
    LeftOut("no-pairs", "prices alone, nothing learnt", {"max_steps": 1} | dict.fromkeys(RATES, 0.0)),
    LeftOut("no-money", "no price in prior and pointer", {"money": 0.0, "money_prior": 0.0}),
    LeftOut("no-sft-term", "no likelihood beside the preference", {"sft_weight": 0.0}),
    LeftOut("no-guard", "no guard on recall", {"guard": 1.0}),
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row: changes to the config of `tune` and, with preferences, of `tune dpo`; compared with `against`."""

    name: str
    title: str
    tune: Mapping[str, Any]
    dpo: Mapping[str, Any] | None = None
    left_out: bool = False
    against: str | None = None


def compose(tune: Mapping[str, Any], dpo: Mapping[str, Any], selected: Collection[str] = ()) -> list[Variant]:
    """The rows that differ under these configs (option -> value); only the `selected` ones, if any is named.

    A step whose options this config already has off, or does not have, would repeat the row before it and is left out.
    So is a row without a rule that is off already, or that is the only rule. Raises InputError for an unknown name.
    """
    left = {field: off for field, off in OFF.items() if field in tune and tune[field] != off}
    rows = [Variant(name=BASE.name, title=BASE.title, tune=dict(left))]
    for step in STEPS:
        restored = left.keys() & set(step.on)
        if restored:
            left = {field: off for field, off in left.items() if field not in restored}
            rows.append(Variant(name=step.name, title=step.title, tune=dict(left)))
        if step.name == AUXILIARY and restored:
            rows += [
                Variant(name=row.name, title=row.title, tune={**left, **row.options}, left_out=True)
                for row in TASKS
                if any(tune[field] != off for field, off in row.options.items())
            ]
    rows += [
        Variant(name=row.name, title=row.title, tune=row.options, left_out=True)
        for row in CONTROLS
        if any(tune.get(field) != value for field, value in row.options.items())
    ]
    rows.append(Variant(name=PREFERENCES.name, title=PREFERENCES.title, tune={}, dpo={}))
    for row in LEFT_OUT:
        changed = dict(dpo) | dict(row.options)
        if changed != dpo and any(changed[rule] for rule in RULES):
            rows.append(Variant(name=row.name, title=row.title, tune={}, dpo=row.options, left_out=True))
    return _linked(rows, selected)


def _linked(rows: list[Variant], selected: Collection[str]) -> list[Variant]:
    """The selected rows, each with the row that it is compared with: the last cumulative one before it."""
    known = [row.name for row in rows]
    for name in selected:
        if name not in known:
            raise InputError(f"variants: no row {name!r}; the nearest is {config.nearest(name, known)!r}, of {known}")
    kept = [row for row in rows if not selected or row.name in selected]
    linked: list[Variant] = []
    for row in kept:
        cumulative = [other for other in linked if not other.left_out]
        before = cumulative[-1] if cumulative else None
        if row.left_out and before is not None and (before.tune or (before.dpo is None) != (row.dpo is None)):
            before = None  # not the row that has all
        linked.append(replace(row, against=None if before is None else before.name))
    return linked
