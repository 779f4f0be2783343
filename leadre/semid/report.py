"""Quality report of a codebook: report.json for programs, report.md and usage.png for people.

Letters: O objects, L levels (the last one resolves collisions), Q = L - 1 quantised levels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leadre.semid.codebook import Codebook

EXAMPLES, NEIGHBOURS = 10, 5


def write(folder: Path, codebook: Codebook, titles: Sequence[str], seed: int) -> dict[str, Any]:
    """Write the three files into `folder` and return what report.json holds. `titles` are those of the rows."""
    facts = measure(codebook)
    facts["examples"] = examples(codebook, titles, seed)
    (folder / "report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_page(facts), encoding="utf-8")
    _plot(codebook, folder / "usage.png")
    return facts


def measure(codebook: Codebook) -> dict[str, Any]:
    """Figures per quantised level and for the whole.

    codes_used        of `size`; entropy_bits of the objects over the codes, perplexity = 2 ** entropy_bits (how many
                      codes an even use would need); largest_code: objects with the most used code;
                      single_object_codes: codes that only one object has
    paths             different paths down to this level; sharing_share: objects whose path another object has too;
                      collision_share: 1 - paths / objects; largest_group: objects on the most crowded path
    error_share       squared error of the vectors rebuilt down to this level, over that of the mean vector
    residual_share    the same in the space that is quantised (equal to error_share without an autoencoder)
    """
    prefixes_OQ = codebook.codes_OL[:, :-1]
    vectors_OD = codebook.embeddings_OD
    quantiser = codebook.quantiser
    spread = _mean_square(vectors_OD - vectors_OD.mean(axis=0))
    latent_OZ = quantiser.residuals(vectors_OD, prefixes_OQ[:, :0])
    latent_spread = _mean_square(latent_OZ - latent_OZ.mean(axis=0))
    levels = []
    for level, size in enumerate(codebook.sizes[:-1]):
        upto = prefixes_OQ[:, : level + 1]
        used_C = np.bincount(prefixes_OQ[:, level], minlength=size)
        share = used_C[used_C > 0] / len(upto)
        entropy = float(-(share * np.log2(share)).sum())
        group_P = np.unique(upto, axis=0, return_counts=True)[1]
        levels.append(
            {
                "size": size,
                "codes_used": int((used_C > 0).sum()),
                "entropy_bits": _round(entropy),
                "perplexity": _round(2**entropy),
                "largest_code": int(used_C.max()),
                "single_object_codes": int((used_C == 1).sum()),
                "paths": len(group_P),
                "sharing_share": _round(group_P[group_P > 1].sum() / len(upto)),
                "collision_share": _round(1 - len(group_P) / len(upto)),
                "largest_group": int(group_P.max()),
                "error_share": _ratio(_mean_square(vectors_OD - quantiser.reconstruct(upto)), spread),
                "residual_share": _ratio(_mean_square(quantiser.residuals(vectors_OD, upto)), latent_spread),
            }
        )
    return {
        "version": codebook.version,
        "objects": len(codebook.object_ids),
        "sizes": list(codebook.sizes),
        "levels": levels,
        "slots_used": int(codebook.codes_OL[:, -1].max()) + 1,
        "moved_to_next_prefix": codebook.moved,
    }


def examples(codebook: Codebook, titles: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Ten seeded objects, each with its neighbours: most levels shared first, then nearest by vector."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(titles), size=min(EXAMPLES, len(titles)), replace=False))
    records = []
    for row in rows.tolist():
        shared_O = (codebook.codes_OL[:, :-1] == codebook.codes_OL[row, :-1]).cumprod(axis=1).sum(axis=1)
        distance_O = ((codebook.embeddings_OD - codebook.embeddings_OD[row]) ** 2).sum(axis=1)
        order = np.lexsort((np.arange(len(titles)), distance_O, -shared_O))
        near = [other for other in order[: NEIGHBOURS + 1].tolist() if other != row][:NEIGHBOURS]
        records.append(
            _example(codebook, titles, row)
            | {"neighbours": [_example(codebook, titles, o) | {"levels_shared": int(shared_O[o])} for o in near]}
        )
    return records


def _example(codebook: Codebook, titles: Sequence[str], row: int) -> dict[str, Any]:
    return {
        "object_id": codebook.object_ids[row],
        "title": titles[row],
        "codes": codebook.codes_OL[row].tolist(),
    }


def _page(facts: dict[str, Any]) -> str:
    """The report as Markdown."""
    levels = facts["levels"]
    lines = [
        "# Codebook",
        "",
        f"{facts['objects']:,} objects, codes per level {' x '.join(map(str, facts['sizes']))} (the last level tells "
        f"apart objects that share all others), version `{facts['version']}`.",
        "",
        "| level | codes used | perplexity | largest code | codes of one object | paths so far "
        "| objects sharing theirs | largest group | error left |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, level in enumerate(levels, start=1):
        lines.append(
            f"| {number} | {level['codes_used']} of {level['size']} | {level['perplexity']:.0f} "
            f"| {level['largest_code']} | {level['single_object_codes']} | {level['paths']:,} "
            f"| {level['sharing_share']:.1%} | {level['largest_group']} | {level['error_share']:.1%} |"
        )
    last = levels[-1]
    lines += [
        "",
        "Perplexity: as many codes as an even use would need. Largest code: objects of the level's most used code.",
        "",
        f"Collisions before the last level: {last['sharing_share']:.1%} of the objects share their path with another "
        f"one; {last['collision_share']:.1%} would be lost if a path could hold one object. The last level uses "
        f"{facts['slots_used']} of {facts['sizes'][-1]} slots; {facts['moved_to_next_prefix']} objects found their "
        f"prefix full and took the next nearest one.",
        "",
        "![How many objects use each code](usage.png)",
        "",
        f"## {len(facts['examples'])} objects and their neighbours by shared prefix",
    ]
    for example in facts["examples"]:
        lines += ["", f"**{_words(example['title'])}** `{_path(example['codes'])}`", ""]
        for other in example["neighbours"]:
            of = f"{other['levels_shared']} of {len(levels)} levels"
            lines.append(f"- {of}: {_words(other['title'])} `{_path(other['codes'])}`")
    return "\n".join(lines) + "\n"


def _plot(codebook: Codebook, path: Path) -> None:
    """Objects per code, sorted, one panel a level: a flat curve means even use, an empty tail unused codes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes 1 s to import, and only this function needs it
    from matplotlib.figure import Figure

    quantised = codebook.sizes[:-1]
    figure = Figure(figsize=(4 * len(quantised), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for level, size in enumerate(quantised):
        used_C = np.sort(np.bincount(codebook.codes_OL[:, level], minlength=size))[::-1]
        axes = figure.add_subplot(1, len(quantised), level + 1)
        axes.bar(np.arange(size), used_C, width=1.0, color="#3b6ea5")
        axes.axhline(len(codebook.object_ids) / size, color="#c44e52", linewidth=1, label="even use")
        axes.set_title(f"level {level + 1}: {(used_C > 0).sum()} of {size} codes used", fontsize=10)
        axes.set_xlabel("codes, most used first")
        axes.spines[["top", "right"]].set_visible(False)
        if not level:
            axes.set_ylabel("objects")
            axes.legend(frameon=False)
    # without the software's version, the same codebook gives the same bytes
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _words(title: str) -> str:
    """A title as plain text inside Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|" else sign for sign in title)


def _path(codes: Sequence[int]) -> str:
    return "-".join(map(str, codes))


def _mean_square(values: np.ndarray[Any, Any]) -> float:
    return float((np.asarray(values, dtype=np.float64) ** 2).sum(axis=1).mean())


def _ratio(part: float, whole: float) -> float:
    return _round(part / whole) if whole > 0 else 0.0


def _round(value: float) -> float:
    return round(float(value), 6)
