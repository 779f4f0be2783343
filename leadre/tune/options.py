"""Options of fine-tuning that its code takes as one object: the form of prompts, the schedule of training.

They are in a module of their own, without torch, so that `leadre tune --help` need not import it.
"""

from __future__ import annotations

from dataclasses import dataclass

from leadre.config import option


@dataclass(frozen=True, kw_only=True)
class PromptBlocks:
    """The blocks of a prompt and their lengths. Tokens count positions."""

    words: bool = option(True, "false writes prompts of IDs alone (control runs)")
    profile: bool = option(True, "prompt block: the user's profile")
    long_content: bool = option(True, "prompt block: long-term interests outside ads")
    long_ad: bool = option(True, "prompt block: long-term interests from ads")
    short_content: bool = option(True, "prompt block: the last visits outside ads")
    short_ad: bool = option(True, "prompt block: the last visits from ads")
    context: bool = option(True, "prompt block: weekday and time of the request, as far as the log has them")
    placement: bool = option(True, "prompt block: placement of the request, if the data has several")
    long_items: int = option(48, "maximum number of long-term interests per domain", at_least=1)
    described: int = option(4, "how many of them are written in words", at_least=0)
    long_tokens: int = option(160, "positions of the long-term interests of a domain", at_least=0)
    short_title: int = option(0, "tokens of its title beside each object of the last visits; 0 = none", at_least=0)
    short_tokens: int = option(512, "step of the short-term window, which holds one to two steps", at_least=1)


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """How long and how fast: ``batch_tokens`` positions a step, ``epochs`` passes, at most ``max_steps`` if not 0."""

    epochs: int = option(3, "passes over the training visits, or over the preference pairs", at_least=1)
    max_steps: int = option(
        0, "stop after this many steps, 0 = all epochs; the learning rate is fitted to it", at_least=0
    )
    batch_tokens: int = option(4096, "positions in a step, padding included", at_least=1)
    learning_rate: float = option(1e-3, "peak learning rate of the body", at_least=0)
    codes_learning_rate: float = option(3e-3, "peak learning rate of the semantic-ID rows", at_least=0)
    weight_decay: float = option(0.05, "decoupled weight decay", at_least=0)
    validate_every: int = option(200, "steps between validations on a seeded sample of users", at_least=1)
    validate_users: int = option(200, "users of a validation, drawn by the seed", at_least=1)
    validate_visits: int = option(50, "at most this many requests of each of them, drawn by the seed", at_least=1)
    checkpoint_s: float = option(120.0, "seconds between checkpoints", at_least=0)
    seed: int = 0  # no option of its own: run sets it to the shared seed
