"""Fits on disk that several stages share: ``work/<run>/channels/<name>``, written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from leadre import artifact

if TYPE_CHECKING:
    from leadre.data.histories import Logs


class Fit(Protocol):
    """Something fitted on the training time of a log."""

    def save(self, folder: Path) -> None:
        """Write the fitted arrays into an existing folder, as safetensors."""
        ...


F_co = TypeVar("F_co", bound=Fit, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Method(Generic[F_co]):
    """How to create a fit: its settings, `fit(logs, seed, threads)` and `load(folder)`; ``threads`` 0 = all.

    A fit on disk is current while `settings` stay the same, so they hold every number that shapes it.
    """

    settings: Mapping[str, object]
    fit: Callable[[Logs, int, int], F_co]
    load: Callable[[Path], F_co]

    def current(self, folder: Path, logs: Logs, data: artifact.Artifact, *, seed: int, threads: int) -> F_co:
        """The fit of ``logs``, those of ``data``, from ``folder``; if it is not current there, fit and write it."""
        settings = {"channel": folder.name, **self.settings}
        output = artifact.Output(folder=folder, kind=artifact.CHANNEL, config=settings, seed=seed, parents=[data])
        if not output.is_current():
            with output.create() as temporary:
                self.fit(logs, seed, threads).save(temporary)
        return self.load(folder)
