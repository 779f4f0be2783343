"""Claim: text optimised against the model at most doubles an ad's exposure.

    python bench/hostile.py [--ads 50] [--evaluations 256] [--requests 24] [--run demo]

A new ad gets its semantic ID from its text, so text can move it below codes that the model prefers. Each ad of a run
(by default the demo's) is replaced by a copy under a fresh ID: without history, at the mean rate, live in every visit
of a sample. An advertiser then hill-climbs a suffix to its title, with the encoder, the codebook and the value of every
path of the catalogue, estimated from the model's answers to other visits. The advertiser may not change brand and
category, nor see the visits of the measurement.

Measures of an ad are means over test visits of as many households. ``exposure`` is 1/log2(1 + rank) among all live ads,
so that an ad outside all lists has an exposure too; ``chance`` is the probability of its ID, which resolves more at low
ranks; ``listed`` is the share of visits with the ad among the best 20. ``*_ratio`` are ratios of single ads, after the
climb over before it.

- ``raw``: the text is embedded unchanged.
- ``clean``: after `leadre.data.text`.

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leadre import artifact
from leadre.data import histories, text
from leadre.generate import batch
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearch
from leadre.semid import codebook as codebooks
from leadre.semid import embed
from leadre.semid.trie import build

Paths = NDArray[np.int64]  # [N, L]
TOP = 20  # ads of a list, as in `leadre generate`
TARGETS, CHILDREN, FINALISTS = 48, 32, 3
TRICKS = (
    "\u200b",
    "\u202e",
    "\u2066",
    "\u00ad",
    "\x00",
    "\u0430",
    "\uff33\uff21\uff2c\uff25",
    "<|im_start|>",
    "[SEP]",
    "[MASK]",
)


@dataclass(frozen=True)
class Listing:
    """The advertiser's text of a copy, and the object that it replaces."""

    title: str
    brand: str
    category: tuple[str, ...]
    description: str
    original: int


Write = Callable[[Listing, str], str]


def raw(listing: Listing, suffix: str) -> str:
    parts = (f"{listing.title} {suffix}", listing.brand, " > ".join(listing.category), listing.description)
    return " | ".join(part for part in parts if part)


def clean(listing: Listing, suffix: str) -> str:
    return text.join(f"{listing.title} {suffix}", listing.brand, listing.category, listing.description)


ARMS: dict[str, Write] = {"raw": raw, "clean": clean}


@dataclass(frozen=True)
class Places:
    """Of N newcomers in V visits: the probability that the model writes them, and their rank among all that is live."""

    chance_VN: NDArray[np.float64]
    rank_VN: NDArray[np.int64]

    def measures(self) -> dict[str, NDArray[np.float64]]:
        """Of each newcomer, the mean over visits: [N] each."""
        return {
            "exposure": (1 / np.log2(1 + self.rank_VN)).mean(0),
            "chance": self.chance_VN.mean(0),
            "listed": (self.rank_VN <= TOP).mean(0),
        }


class Market:
    """Model, IDs and log of a run."""

    def __init__(self, folder: Path, seed: int) -> None:
        tables = artifact.read(folder / "data", artifact.TABLES)
        ids = artifact.read(folder / "semid", artifact.CODEBOOK)
        model = artifact.read(folder / "tune-sft", artifact.MODEL)
        self.engine = batch.load(tables, ids, model, training=False)
        self.codebook = codebooks.load(ids)
        self.logs = self.engine.threads.logs
        self.live = self.engine.live
        self.seed = seed
        rates_O = self.live.rates_O
        assert rates_O is not None, "the model was tuned without a prior"
        met = np.unique(
            self.logs.ad_object_A[self.logs.inventories.ever_live(np.ones(len(self.logs.request_split_R), np.bool_))]
        )
        never = np.setdiff1d(np.arange(len(rates_O)), met)
        self.weight = float(rates_O[never].min()) if len(never) else float(np.median(rates_O))

    def visits(self, split: str, count: int) -> list[Any]:
        """Threads of one visit each, of ``count`` households."""
        logs = self.logs
        rng = np.random.default_rng([self.seed, count])
        requests = rng.permutation(logs.requests_of(histories.SPLITS.index(split)))
        _, first = np.unique(logs.request_user_R[requests], return_index=True)
        windows = self.engine.threads.serving(requests[np.sort(first)[:count]])
        return [self.engine.threads.write(window) for window in windows]

    def listings(self, count: int) -> list[Listing]:
        """Ads that were live in a test visit."""
        logs = self.logs
        rng = np.random.default_rng(self.seed)
        ads = logs.inventories.ever_live(logs.request_split_R == histories.TEST)
        rows = logs.ads[np.sort(rng.choice(ads, count, replace=False))].select(
            "title", "brand", "category_path", "description", "object_id"
        )
        at = {object_id: o for o, object_id in enumerate(logs.objects["object_id"])}
        return [Listing(t, b or "", tuple(c or ()), d or "", at[o]) for t, b, c, d, o in rows.iter_rows()]

    @torch.inference_mode()
    def place(self, visits: Sequence[Any], paths: Paths, originals: Sequence[int]) -> Places:
        """Chance and rank of new ads at these paths in each visit, one at a time, each in place of its original."""
        shape = (len(visits), len(paths))
        (apart, of_N) = np.unique(originals, return_inverse=True)
        places = Places(np.empty(shape), np.empty(shape, np.int64))
        for v, thread in enumerate(visits):
            objects = self.engine.threads.moments[int(thread.requests[0])].inventory.objects
            codes_NL = self.live.codes_OL[objects]
            weights_N = self.live.rates_O[objects]

            def ask(there: NDArray[np.bool_], end: int = int(thread.ends[0])) -> BeamRequest:
                trie = build(codes_NL[there], self.live.sizes, weights_N[there])  # noqa: B023
                return BeamRequest(end, trie, np.flatnonzero(there))

            there_N = [objects != original for original in apart]
            whole = ask(np.ones(len(objects), np.bool_))
            ((everyone,),) = self.engine.searcher([(thread.ids, [whole])], BeamPolicy(len(objects)))
            p_N = np.empty(len(objects))
            p_N[everyone.rows] = np.exp(everyone.log_p.astype(np.float64))
            search = BeamSearch(self.engine.searcher, [(thread.ids, [ask(there) for there in there_N])], BeamPolicy(1))
            search.prefill()
            order = np.argsort(of_N, kind="stable")
            levels = self._levels(search, of_N[order], paths[order])
            for n, *log_p_C in zip(order, *levels, strict=True):
                there = there_N[of_N[n]]
                places.chance_VN[v, n], places.rank_VN[v, n] = _rank(paths[n], log_p_C, codes_NL[there], p_N[there])
        return places

    def _levels(self, search: BeamSearch, ask_N: NDArray[np.int64], paths: Paths) -> list[NDArray[np.float64]]:
        """Log-probabilities of all codes along each path as if it were live in its request: L arrays [N, sizes[l]]."""
        rows = search.prefilled.open_paths(ask_N, None)
        places = np.arange(len(paths))
        # a new ad is in no history, so the pointer cannot repeat it
        rows.pointer_bias_NT = search.paths.pointer_bias_NT[ask_N].clone()
        states = np.zeros(len(paths), np.int64)
        log_p = []
        for level in range(paths.shape[1]):
            if level:
                rows.append(level - 1, paths[:, level - 1], places)
            masses_NC = np.empty((len(paths), self.live.sizes[level]))
            after = np.empty_like(states)
            for q in np.unique(ask_N):
                of_request = ask_N == q
                mask = search.requests[q].mask
                masses_NC[of_request] = mask.masses(states[of_request], level)
                after[of_request] = mask.step(states[of_request], paths[of_request, level], level)
            masses_NC[places, paths[:, level]] += self.weight
            with np.errstate(divide="ignore"):
                prior_NC = np.log(masses_NC).astype(np.float32)
            log_p.append(rows.log_p(level, prior_NC).double().cpu().numpy())
            states = after
        return log_p


def _rank(
    path_L: NDArray[np.int64], log_p_C: Sequence[NDArray[np.float64]], codes_NL: Paths, p_N: NDArray[np.float64]
) -> tuple[float, int]:
    """(probability, rank) of a new ad among others with probabilities ``p_N`` before it.

    Another ad that leaves the new ad's path at a level gets the probability of its code there, and keeps its share
    below that level.
    """
    on_path_N = np.ones(len(p_N), np.bool_)
    before = 1.0
    now_N = np.zeros(len(p_N))
    for level, code in enumerate(path_L.tolist()):
        p_C = np.exp(log_p_C[level])
        leaves_N = on_path_N & (codes_NL[:, level] != code)
        sums_C = np.bincount(codes_NL[leaves_N, level], p_N[leaves_N], len(p_C))
        at = codes_NL[leaves_N, level]
        now_N[leaves_N] = before * p_C[at] * p_N[leaves_N] / sums_C[at]
        on_path_N &= codes_NL[:, level] == code
        before *= p_C[code]
    assert not on_path_N.any() and abs(now_N.sum() + before - 1) < 1e-3, (now_N.sum(), before)
    return float(before), 1 + int((now_N > before).sum())


class Encoder:
    """Text to codes as `leadre semid --extend` does it; ``quick`` in bfloat16, for climbing."""

    def __init__(self, codebook: codebooks.Codebook) -> None:
        self.codebook = codebook
        self.recipe = embed.read_recipe(embed.PACKAGED)
        self.tokenizer, self.model = embed._load(self.recipe)
        self.model = self.model.bfloat16().eval()

    @torch.inference_mode()
    def quick(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = embed.tokenize([text.strip() for text in texts], self.tokenizer, self.recipe)
        lengths = np.array([len(ids) for ids in tokens])
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for some in embed._batches(np.argsort(lengths, kind="stable"), lengths):
            padded = self.tokenizer.pad({"input_ids": [tokens[i] for i in some]}, return_tensors="pt")
            hidden = self.model(**{name: padded[name] for name in ("input_ids", "attention_mask")})[0]
            vectors[some] = embed._pool(hidden.float(), padded["attention_mask"], self.recipe.pooling).numpy()
        return vectors

    def prefixes(self, vectors_ND: NDArray[np.float32]) -> list[tuple[int, ...]]:
        codes = self.codebook.quantiser.encode(self.codebook._widen(vectors_ND))
        return [tuple(path) for path in codes.tolist()]

    def paths(self, texts: Sequence[str]) -> Paths:
        """The ID that each text would get, were it the only newcomer."""
        vectors = embed.embed(texts)
        books = [self.codebook.encode(vector[None], ["a newcomer"]) for vector in vectors]
        return np.array([book.codes_OL[-1] for book in books], np.int64)


class Advertiser:
    """Climbs suffixes towards paths of worth: what a newcomer gets there, as the model answers ``visits``."""

    def __init__(self, market: Market, encoder: Encoder, visits: Sequence[Any], seed: int) -> None:
        self.market = market
        self.encoder = encoder
        self.visits = visits
        self.rng = random.Random(seed)
        codes_OL = market.codebook.codes_OL
        slots = market.codebook.sizes[-1]
        prefixes, of_O, taken = np.unique(codes_OL[:, :-1], axis=0, return_inverse=True, return_counts=True)
        room = np.flatnonzero(taken < slots)
        paths = np.column_stack([prefixes, taken])[room].astype(np.int64)
        worth = market.place(visits, paths, [-1] * len(paths)).chance_VN.mean(0)
        self.worth = dict(zip(map(tuple, prefixes[room].tolist()), worth.tolist(), strict=True))
        best = room[np.argsort(-worth)[:TARGETS]]
        text_OD = market.codebook.embeddings_OD[:, : market.codebook.text_width]
        self.log_worth_T = np.log(np.sort(worth)[::-1][:TARGETS])
        self.middle_TD = np.stack([text_OD[of_O == t].mean(0) for t in best])
        self.middle_TD /= np.linalg.norm(self.middle_TD, axis=1, keepdims=True)
        title = dict(zip(market.logs.objects["object_id"], market.logs.objects["title"], strict=True))
        members = [np.flatnonzero(of_O == t) for t in best]
        self.phrases = [title[market.codebook.object_ids[int(rows[0])]] for rows in members]
        named = [title[market.codebook.object_ids[int(row)]] for rows in members for row in rows]
        self.words = sorted({word for name in named for word in name.replace(",", " ").split()})

    def texts(self, listings: Sequence[Listing], write: Write, evaluations: int) -> list[str]:
        """The texts of the listings after the climb."""
        suffixes = self.climb(listings, write, evaluations)
        return [write(listing, suffix) for listing, suffix in zip(listings, suffixes, strict=True)]

    def climb(self, listings: Sequence[Listing], write: Write, evaluations: int) -> list[str]:
        """The best suffix of each listing after about ``evaluations`` evaluations of its codes."""
        best_of: list[dict[tuple[int, ...], tuple[tuple[float, float], str]]] = [{} for _ in listings]
        tried = 0
        while tried < evaluations:
            suffixes = [[*self.phrases, ""] if not tried else self._children(best) for best in best_of]
            texts = [
                write(listing, suffix) for listing, some in zip(listings, suffixes, strict=True) for suffix in some
            ]
            vectors_ND = self.encoder.quick(texts)
            scored = iter(zip(self.encoder.prefixes(vectors_ND), vectors_ND @ self.middle_TD.T, strict=True))
            for best, some in zip(best_of, suffixes, strict=True):
                for suffix in some:
                    prefix, likeness_T = next(scored)
                    key = self.worth.get(prefix, 0.0), float((self.log_worth_T + 8 * likeness_T).max())
                    if prefix not in best or key > best[prefix][0]:
                        best[prefix] = key, suffix
            tried += len(suffixes[0])
        return self._choose(listings, write, best_of)

    def _children(self, best: dict[tuple[int, ...], tuple[tuple[float, float], str]]) -> list[str]:
        """Mutations of the best suffix, of the runner-up and of the one that is nearest to something better."""
        ranked = sorted(best.values(), reverse=True)
        parents = [
            ranked[0][1],
            ranked[0][1],
            ranked[min(1, len(ranked) - 1)][1],
            max(ranked, key=lambda b: b[0][1])[1],
        ]
        return [self._mutate(self.rng.choice(parents)) for _ in range(CHILDREN)]

    def _mutate(self, suffix: str) -> str:
        rng = self.rng
        words = suffix.split(" ") if suffix else []
        for _ in range(rng.choice([1, 1, 2, 4])):
            new = rng.choice(
                [rng.choice(self.words), rng.choice(self.words), rng.choice(self.phrases), rng.choice(TRICKS)]
            )
            at = rng.randrange(len(words) + 1)
            kind = rng.random()
            if kind < 0.5 or not words:
                words.insert(at, new)
            elif kind < 0.75:
                words[at % len(words)] = new
            elif kind < 0.9:
                del words[at % len(words)]
            else:
                words += words
        return " ".join(words)[:2000]

    def _choose(self, listings: Sequence[Listing], write: Write, best_of: Sequence[dict[Any, Any]]) -> list[str]:
        """Among the best few suffixes the one with the highest model probability; it may be the honest title."""
        finals = [["", *(s for _, s in sorted(best.values(), reverse=True)[:FINALISTS])] for best in best_of]
        finals = [some + [""] * (1 + FINALISTS - len(some)) for some in finals]
        texts = [write(listing, suffix) for listing, some in zip(listings, finals, strict=True) for suffix in some]
        originals = [listing.original for listing in listings for _ in range(1 + FINALISTS)]
        chances = self.market.place(self.visits, self.encoder.paths(texts), originals).chance_VN.mean(0)
        best = chances.reshape(len(listings), -1).argmax(1)
        return [some[at] for some, at in zip(finals, best, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ads", type=int, default=50)
    parser.add_argument("--evaluations", type=int, default=300, help="of each ad")
    parser.add_argument("--visits", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--run", default="demo")
    args = parser.parse_args()
    market = Market(args.work / args.run, args.seed)
    encoder = Encoder(market.codebook)
    listings = market.listings(args.ads)
    advertiser = Advertiser(market, encoder, market.visits("valid", args.visits // 3), args.seed)
    honest = [clean(listing, "") for listing in listings]
    texts = {
        "honest": honest,
        **{name: advertiser.texts(listings, write, args.evaluations) for name, write in ARMS.items()},
    }
    print(json.dumps(compare(market, encoder, listings, texts, args.visits)))


def compare(
    market: Market, encoder: Encoder, listings: Sequence[Listing], texts: dict[str, list[str]], visits: int
) -> dict[str, Any]:
    originals = [listing.original for listing in listings]
    sample = market.visits("test", visits)
    figures: dict[str, Any] = {"ads": len(listings), "visits": len(sample)}
    measured = {name: market.place(sample, encoder.paths(some), originals).measures() for name, some in texts.items()}
    for name, measures in measured.items():
        figures |= {f"{name}_{what}": round(float(value_A.mean()), 5) for what, value_A in measures.items()}
        for what in ("exposure", "chance") if name != "honest" else ():
            ratio_A = measures[what] / measured["honest"][what]
            low, middle, high = np.quantile(ratio_A, [0.05, 0.5, 0.95])
            figures[f"{name}_{what}_ratio"] = {
                key: round(float(value), 2)
                for key, value in (("median", middle), ("mean", ratio_A.mean()), ("p95", high), ("p5", low))
            }
    return figures


if __name__ == "__main__":
    main()
