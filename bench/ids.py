"""Claim: the codes of a new ad, from its text alone, are often those that it would have had; and how even codes are.

    python bench/ids.py work/demo/semid

Fits the quantiser of a finished codebook again without one object in twenty, with the vectors of that codebook, five
times with other objects left out. The objects left out then get IDs twice: as new ads, from their text alone, and from
their full vectors, which is what they would have had. Figures, means over the five draws:

- ``perplexity_L``, ``largest_L``, ``single_L``: of level L: how many codes an even use would need, objects of the most
  used code, codes of a single object;
- ``sharing``: share of the objects whose quantised codes another object has too;
- ``agree_1``, ``agree_all``: share of new ads whose first code, or all quantised codes, are those they would have had.

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from leadre import artifact
from leadre.semid import codebook as codebooks
from leadre.semid import report, rkmeans
from leadre.semid.codebook import Codebook
from leadre.semid.quantiser import Codes

DRAWS = 5
HIDDEN = 0.05


def codes_of_new(book: Codebook, rows: np.ndarray, whole: Codebook, width: int) -> Codes:
    """Quantised codes of the objects ``rows`` of ``whole`` from the first ``width`` columns of their vectors."""
    new = book.encode(whole.embeddings_OD[rows, :width], [whole.object_ids[row] for row in rows])
    return new.codes_OL[-len(rows) :, :-1]


def measure(whole: Codebook, seed: int) -> dict[str, float]:
    """The figures of one draw of hidden objects."""
    count = len(whole.object_ids)
    hidden = np.random.default_rng(seed).choice(count, round(HIDDEN * count), replace=False)
    known = np.setdiff1d(np.arange(count), hidden)
    vectors = whole.embeddings_OD[known]
    quantiser = rkmeans.fit(vectors, whole.sizes[:-1], seed)
    known_ids = [whole.object_ids[row] for row in known]
    book = codebooks.fit(known_ids, vectors, quantiser, whole.sizes[-1], whole.text_width)
    from_text = codes_of_new(book, hidden, whole, whole.text_width)
    from_all = codes_of_new(book, hidden, whole, whole.embeddings_OD.shape[1])
    levels = report.measure(book)["levels"]
    figures = {"sharing": levels[-1]["sharing_share"]}
    for number, level in enumerate(levels, start=1):
        figures[f"perplexity_{number}"] = level["perplexity"]
        figures[f"largest_{number}"] = level["largest_code"]
        figures[f"single_{number}"] = level["single_object_codes"]
    figures["agree_1"] = float((from_text[:, 0] == from_all[:, 0]).mean())
    figures["agree_all"] = float((from_text == from_all).all(axis=1).mean())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("codebook", type=Path, help="folder of a semid artifact, such as work/demo/semid")
    book = codebooks.load(artifact.read(parser.parse_args().codebook, artifact.CODEBOOK))
    draws = [measure(book, seed) for seed in range(DRAWS)]
    figures = {name: float(f"{np.mean([draw[name] for draw in draws]):.4g}") for name in draws[0]}
    print(json.dumps({"bench": "ids", "objects": len(book.object_ids)} | figures))


if __name__ == "__main__":
    main()
