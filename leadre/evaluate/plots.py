"""Plots of the reports: matplotlib figures from plain data, in colour-blind-safe colours (Okabe and Ito)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

OURS, KIN, RIVAL, INK, FAINT = "#0072B2", "#56B4E9", "#6E6E6E", "#1A1A1A", "#D8DDE3"
ACCENT = "#D55E00"
STYLE: Any = {
    "font.size": 10.0,
    "axes.edgecolor": "#9AA3AD",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#4A4A4A",
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "leadre",  # equal data give equal bytes
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One method in a comparison: mean and interval; `kind` is ours, kin (built on ours) or rival."""

    title: str
    mean: float
    lo: float
    hi: float
    kind: str
    tie: bool


def comparison(panels: Mapping[str, Sequence[Bar]], *, label: str, ranked: bool = True) -> Figure:
    """Plot means with intervals, one panel per title, two panels per row; a hollow dot marks a tie.

    ``ranked``: sort by mean, best on top, on an axis from 0. Otherwise keep the order, from bottom to top, on an axis
    that fits the intervals, so that small differences are visible.
    """
    rows = max(len(bars) for bars in panels.values())
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * across, (0.34 * rows + 0.8) * down + 0.35), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).flat
        for ax, (title, bars) in zip(axes, panels.items(), strict=False):
            _panel(ax, sorted(bars, key=lambda bar: bar.mean) if ranked else bars, title=title)
            if not ranked:
                lowest = min(bar.lo for bar in bars)
                highest = max(bar.hi for bar in bars)
                spread = (highest - lowest) or 1.0
                ax.set_xlim(lowest - 0.08 * spread, highest + 0.35 * spread)
        figure.supxlabel(label, fontsize=10)
    return figure


def _panel(ax: Axes, bars: Sequence[Bar], *, title: str) -> None:
    color_of = {"ours": OURS, "kin": KIN, "rival": RIVAL}
    highest = max(bar.hi for bar in bars) or 1.0  # no method has a hit
    for y, bar in enumerate(bars):
        color = color_of[bar.kind]
        if bar.kind == "ours":
            ax.axvspan(bar.lo, bar.hi, color=OURS, alpha=0.10, lw=0)
        ax.plot([bar.lo, bar.hi], [y, y], color=color, lw=2.4, solid_capstyle="round", zorder=2)
        face = "white" if bar.tie else color
        ax.plot(bar.mean, y, "o", ms=7, mfc=face, mec=color, mew=1.8, zorder=3)
        weight = "bold" if bar.kind == "ours" else "normal"
        text = f"{bar.mean:.3f}".removeprefix("0")
        label_box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
        position: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "bbox": label_box}
        ax.annotate(text, (bar.hi, y), fontsize=9, weight=weight, **position)
    ax.set_yticks(range(len(bars)), [bar.title for bar in bars])
    for tick, bar in zip(ax.get_yticklabels(), bars, strict=True):
        if bar.kind == "ours":
            tick.set_fontweight("bold")
            tick.set_color(OURS)
    ax.set_xlim(0, highest * 1.16)
    ax.set_ylim(-0.7, len(bars) - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("0.", ".", 1))  # the format of the means; it saves room
    ax.grid(axis="x", color=FAINT, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title(title, loc="left", fontsize=11, weight="bold")


def loss(train: Mapping[str, NDArray[np.float64]], valid: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Plot training loss by step (faint) with its running mean, and below it the validation metrics, if any.

    `train` has the arrays `step` and `loss`; `valid` has `step` and one array per metric.
    """
    curves = [name for name in valid if name != "step"]
    with matplotlib.rc_context(STYLE):
        panels = 1 + bool(curves)
        figure = Figure(figsize=(6.4, 2.9 * panels), layout="constrained")
        axes = figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0]
        top: Axes = axes[0]
        top.plot(train["step"], train["loss"], color=FAINT, lw=1, label="each step")
        top.plot(train["step"], _running_mean(train["loss"]), color=OURS, lw=2, label="running mean")
        top.set_ylabel("training loss (nats)")
        # the loss of the first steps would flatten the rest of the curve
        later = train["loss"][len(train["loss"]) // 50 :]
        if len(later):
            pad = 0.05 * (np.ptp(later) or 1.0)
            top.set_ylim(float(later.min() - pad), float(np.quantile(later, 0.999) + pad))
        top.legend(frameon=False, fontsize=9)
        if curves:
            lower: Axes = axes[1]
            markers = zip(
                curves, (OURS, ACCENT, "#009E73", "#CC79A7", "#E69F00", RIVAL) * 9, "os^Dvx" * 9, strict=False
            )
            for name, color, marker in markers:
                lower.plot(valid["step"], valid[name], marker=marker, ms=4, lw=1.6, color=color, label=name)
            lower.set_ylabel("validation")
            lower.legend(frameon=False, fontsize=9)
        for ax in axes:
            ax.grid(color=FAINT, lw=0.8)
            ax.set_axisbelow(True)
        axes[-1].set_xlabel("step")
    return figure


def codebook(codes_OL: NDArray[np.int32], sizes: Sequence[int]) -> Figure:
    """Plot objects per code of each level, most used codes first. A flat line means that the level is used well."""
    levels = codes_OL.shape[1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.75 * levels + 0.4), layout="constrained")
        axes = figure.subplots(levels, 1, squeeze=False)[:, 0]
        for level, ax in enumerate(axes):
            count_S = np.sort(np.bincount(codes_OL[:, level], minlength=sizes[level]))[::-1]
            used = int((count_S > 0).sum())
            last = level == levels - 1
            ax.fill_between(
                np.arange(len(count_S) + 1), np.append(count_S, 0), step="post", color=KIN if last else OURS
            )
            ax.set_yscale("symlog", linthresh=1)
            ax.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1k"])
            ax.set_ylim(0, max(12, count_S[0] * 1.6))
            ax.set_xlim(0, len(count_S))
            name = "collision level" if last else f"level {level + 1}"
            ax.set_title(f"{name}: {used} of {len(count_S)} codes used", loc="left", fontsize=10, weight="bold")
            ax.set_ylabel("objects")
            ax.grid(axis="y", color=FAINT, lw=0.8)
            ax.set_axisbelow(True)
        axes[-1].set_xlabel("codes, most used first")
    return figure


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element to embed; it takes the width of its container."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG at 160 dpi."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=160, metadata={"Software": None})


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each step, the mean over a window of 2 % of all steps that ends there."""
    window = max(len(values) // 50, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start))
