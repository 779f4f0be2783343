"""Options of preference training that its code takes as one object: the rules for pairs, the objective.

They are in a module of their own, without torch, so that `leadre tune dpo --help` need not import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leadre.config import option


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """The rules that make pairs (`pairs.RULES`), and the margins and weights of the pairs.

    live_unbought   over live objects that were not acted on, drawn in proportion to the prior: plausible ones
    higher_value    over another conversion of the request whose value is lower by a factor of ``value_ratio`` or more
    on_policy       over objects that the model itself ranked above the conversion and that were not acted on
    similarity      the weight of an object not acted on is 1 - cosine of its embedding and the conversion's
    """

    live_unbought: bool = option(True, "pairs: a conversion over live objects that were not acted on")
    higher_value: bool = option(True, "pairs: of two conversions of a request, the one of higher value")
    on_policy: bool = option(False, "pairs: a conversion over objects that the model itself ranked above it")
    value: Literal["price", "ecpm"] = option(
        "price", "value of an object: its money in the log; ecpm: its bid x the rate of the event that the bid pays for"
    )
    negatives: int = option(
        1, "objects not acted on that each conversion is paired with, by live_unbought and by on_policy", at_least=1
    )
    value_ratio: float = option(
        2.0, "least ratio of the values of two conversions for a pair; at 1, a conversion would beat itself", above=1
    )
    margin: float = option(0.0, "least reward margin of a pair (the gamma of SimPO)", at_least=0)
    value_margin: float = option(0.1, "further reward margin for every factor of e in value", at_least=0)
    similarity: bool = option(True, "near-duplicates of a conversion weigh less as rejected objects")


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """The preference loss, the SFT term beside it, and the guard on recall.

    ``stop_shared``: no gradient of the preference at the codes that a pair shares (`losses.without_shared`).
    ``money``: in the SFT term a conversion counts its value to this power, as in the pointer (`InventoryPrior`). An
    unweighted likelihood would undo the weights of the pointer.
    ``guard``: weights pass if the mean validation recall of each view falls by at most this share of the fine-tuned
    model's, chance or not. Of the weights that pass, those of the highest validation GMV are kept. Training ends early
    if a fall is also larger than two standard errors of the paired difference: few requests cannot prove a smaller one.
    """

    loss: Literal["dpo", "simpo", "none"] = option(
        "dpo", "dpo: relative to the fine-tuned model; simpo: without a reference; none: the SFT term alone"
    )
    beta: float = option(0.1, "reward per nat of log-likelihood", above=0)
    stop_shared: bool = option(True, "no gradient of a preference at the codes that both objects share")
    sft_weight: float = option(
        1.0, "weight of the likelihood of the chosen objects, which keeps it from falling", at_least=0
    )
    money: float = option(
        0.5, "exponent of the price of an object in the pointer, and of the value of a conversion", at_least=0
    )
    guard: float = option(
        0.05, "keep only weights whose validation recall, in each view, falls by at most this share", at_least=0
    )
