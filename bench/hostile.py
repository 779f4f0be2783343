"""Claim: words that were chosen to please the model at most double an ad's exposure.

    python bench/hostile.py [--ads 50] [--evaluations 256] [--requests 24] [--run demo]

An ad that nobody has met yet gets its semantic ID from its text, so text can move it below codes that the model likes.
Ads of a run (by default the demo's) are listed anew, each under a fresh ID: without history, at the mean rate, in the
place of the one it copies, and live in every visit of a sample. An advertiser then hill-climbs a suffix to its title.
It has the encoder and the codebook, and knows what a newcomer is worth at every path of the catalogue from the model's
own answers to other visits; what it may not do is change brand and category, or look at the visits that count.

Exposure of an ad: 1/log2(1 + rank) in the list of 20 that beam search returns, zero outside of it, the mean over test
visits of as many households; a list of the mean over ads is divided by that of honest titles (``*_ratio``, with a 95 %
bootstrap interval over ads), since an ad that was never listed has no ratio of its own. Each ad has one in the
probability that the model writes its ID (``*_chance_*``: median, mean and 95th percentile of after / before).

- ``raw``: the text is embedded as it was written.
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
from leadre.lm.asks import Ask, Policy
from leadre.lm.decode import Search
from leadre.semid import codebook as codebooks
from leadre.semid import embed
from leadre.semid.trie import build

Paths = NDArray[np.int64]  # [N, L]
BEAM, TOP = 24, 20  # as in `leadre generate`
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
    """What an advertiser writes about an ad, and the object that it stands in for."""

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


class Market:
    """A run's model, IDs and log."""

    def __init__(self, folder: Path, seed: int) -> None:
        kinds = {"data": ("tables", 1), "semid": ("codebook", 1), "tune-sft": ("model", 3)}
        tables, ids, model = (artifact.read(folder / n, kind=k, version=v) for n, (k, v) in kinds.items())
        self.engine, self.codebook = batch.load(tables, ids, model, training=False), codebooks.load(ids)
        self.logs, self.live, self.seed = self.engine.live.logs, self.engine.live, seed
        rates_O = self.live.rates_O
        assert rates_O is not None, "the model was tuned without a prior"
        met = np.unique(self.logs.ad_object_A[self.logs.inventory_ads])
        never = np.setdiff1d(np.arange(len(rates_O)), met)
        self.weight = float(rates_O[never].min()) if len(never) else float(np.median(rates_O))

    def visits(self, split: str, count: int) -> list[Any]:
        """Threads of one visit each, of ``count`` households."""
        logs, rng = self.logs, np.random.default_rng([self.seed, count])
        requests = rng.permutation(logs.requests_of(histories.SPLITS.index(split)))
        _, first = np.unique(logs.request_user_R[requests], return_index=True)
        windows = self.engine.threads.serving(requests[np.sort(first)[:count]])
        return [self.engine.threads.write(window) for window in windows]

    def listings(self, count: int) -> list[Listing]:
        """Ads that were live in a test visit."""
        logs, rng = self.logs, np.random.default_rng(self.seed)
        inventories = np.unique(logs.request_inventory_R[logs.requests_of(histories.TEST)])
        ads = np.unique(
            np.concatenate([logs.inventory_ads[slice(*logs.inventory_offsets[i : i + 2])] for i in inventories])
        )
        rows = logs.ads[np.sort(rng.choice(ads, count, replace=False))].select(
            "title", "brand", "category_path", "description", "object_id"
        )
        at = {object_id: o for o, object_id in enumerate(logs.objects["object_id"])}
        return [Listing(t, b or "", tuple(c or ()), d or "", at[o]) for t, b, c, d, o in rows.iter_rows()]

    def asks(self, thread: Any, paths: Paths, originals: Sequence[int]) -> list[Ask]:
        """One ask for each newcomer, which is the last row of its trie; its original is not live."""
        r, found = int(thread.requests[0]), []
        objects = self.live.objects(r)
        for path, original in zip(paths, originals, strict=True):
            others = objects[objects != original]
            codes_NL = np.vstack([self.live.codes_OL[others], path])
            weights_N = np.append(self.live.rates_O[others], self.weight)
            trie = build(codes_NL, self.live.sizes, weights_N)
            found.append(Ask(int(thread.ends[0]), trie, np.append(others, 0)))
        return found

    @torch.inference_mode()
    def chances(self, visits: Sequence[Any], paths: Paths, originals: Sequence[int]) -> NDArray[np.float64]:
        """The probability of each newcomer within its live set, [visits, N]."""
        chances = np.empty((len(visits), len(paths)))
        for v, thread in enumerate(visits):
            asks = self.asks(thread, paths, originals)
            search = Search(self.engine.searcher, [(thread.ids, asks[:1])], Policy(1))
            tries, places = [ask.trie for ask in asks], np.arange(len(asks))
            rows, log_p_N = search._rows(np.zeros(len(asks), np.int64), tries), np.zeros(len(asks))
            states = [trie.roots(1) for trie in tries]
            for level in range(paths.shape[1]):
                if level:
                    rows.write(level - 1, paths[:, level - 1], places)
                prior = np.concatenate([t.log_prior(s, level) for t, s in zip(tries, states, strict=True)])
                log_p_N += rows.log_p(level, prior).double().cpu().numpy()[places, paths[:, level]]
                states = [t.step(s, p[level : level + 1], level) for t, s, p in zip(tries, states, paths, strict=True)]
            chances[v] = np.exp(log_p_N)
        return chances

    def exposures(self, visits: Sequence[Any], paths: Paths, originals: Sequence[int]) -> NDArray[np.float64]:
        """1/log2(1 + rank) of each newcomer in its list, 0 where it is not listed: [visits, N]."""
        found = np.zeros((len(visits), len(paths)))
        for v, thread in enumerate(visits):
            asks = self.asks(thread, paths, originals)
            (answers,) = self.engine.searcher([(thread.ids, asks)], Policy(BEAM, TOP))
            for n, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
                rank = np.flatnonzero(answer.rows == len(ask.objects) - 1) + 1
                found[v, n] = (1 / np.log2(1 + rank)).sum()
        return found


class Encoder:
    """Text to codes as `leadre semid --extend` does it; ``quick`` in bfloat16, for climbing."""

    def __init__(self, codebook: codebooks.Codebook) -> None:
        self.codebook, self.recipe = codebook, embed.read_recipe(embed.PACKAGED)
        self.tokenizer, self.model = embed._load(self.recipe)
        self.model = self.model.bfloat16().eval()

    @torch.inference_mode()
    def quick(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = embed.tokenize([each.strip() for each in texts], self.tokenizer, self.recipe)
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
        self.market, self.encoder, self.visits, self.rng = market, encoder, visits, random.Random(seed)
        codes_OL, slots = market.codebook.codes_OL, market.codebook.sizes[-1]
        prefixes, of_O, taken = np.unique(codes_OL[:, :-1], axis=0, return_inverse=True, return_counts=True)
        room = np.flatnonzero(taken < slots)
        paths = np.column_stack([prefixes, taken])[room].astype(np.int64)
        worth = market.chances(visits, paths, [-1] * len(paths)).mean(0)
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

    def climb(self, listings: Sequence[Listing], write: Write, evaluations: int) -> list[str]:
        """The best suffix of each listing after about so many looks at its codes."""
        found: list[dict[tuple[int, ...], tuple[tuple[float, float], str]]] = [{} for _ in listings]
        tried = 0
        while tried < evaluations:
            made = [[*self.phrases, ""] if not tried else self._children(each) for each in found]
            texts = [write(listing, suffix) for listing, some in zip(listings, made, strict=True) for suffix in some]
            vectors_ND = self.encoder.quick(texts)
            scored = iter(zip(self.encoder.prefixes(vectors_ND), vectors_ND @ self.middle_TD.T, strict=True))
            for best, some in zip(found, made, strict=True):
                for suffix in some:
                    prefix, likeness_T = next(scored)
                    key = self.worth.get(prefix, 0.0), float((self.log_worth_T + 8 * likeness_T).max())
                    if prefix not in best or key > best[prefix][0]:
                        best[prefix] = key, suffix
            tried += len(made[0])
        return self._choose(listings, write, found)

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
        rng, words = self.rng, suffix.split(" ") if suffix else []
        for _ in range(rng.choice([1, 1, 2, 4])):
            new = rng.choice(
                [rng.choice(self.words), rng.choice(self.words), rng.choice(self.phrases), rng.choice(TRICKS)]
            )
            at, kind = rng.randrange(len(words) + 1), rng.random()
            if kind < 0.5 or not words:
                words.insert(at, new)
            elif kind < 0.75:
                words[at % len(words)] = new
            elif kind < 0.9:
                del words[at % len(words)]
            else:
                words += words
        return " ".join(words)[:2000]

    def _choose(self, listings: Sequence[Listing], write: Write, found: Sequence[dict[Any, Any]]) -> list[str]:
        """Of the best few the one that the model itself likes most, which may be the honest title."""
        finals = [["", *(s for _, s in sorted(best.values(), reverse=True)[:FINALISTS])] for best in found]
        finals = [some + [""] * (1 + FINALISTS - len(some)) for some in finals]
        texts = [write(listing, suffix) for listing, some in zip(listings, finals, strict=True) for suffix in some]
        originals = [listing.original for listing in listings for _ in range(1 + FINALISTS)]
        chances = self.market.chances(self.visits, self.encoder.paths(texts), originals).mean(0)
        best = chances.reshape(len(listings), -1).argmax(1)
        return [some[at] for some, at in zip(finals, best, strict=True)]


def ratio_of(after_A: NDArray[np.float64], before_A: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """(ratio of means, and its 95 % interval by a bootstrap over ads)."""
    draws = np.random.default_rng(seed).integers(0, len(after_A), (2000, len(after_A)))
    ratios = after_A[draws].mean(1) / np.maximum(before_A[draws].mean(1), 1e-12)
    return float(after_A.mean() / before_A.mean()), *np.quantile(ratios, [0.025, 0.975]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ads", type=int, default=50)
    parser.add_argument("--evaluations", type=int, default=256, help="of each ad")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--run", default="demo")
    args = parser.parse_args()
    market = Market(args.work / args.run, args.seed)
    encoder, listings = Encoder(market.codebook), market.listings(args.ads)
    advertiser = Advertiser(market, encoder, market.visits("valid", args.requests * 2 // 3), args.seed)
    texts = {"before": [clean(listing, "") for listing in listings]}
    for name, write in ARMS.items():
        suffixes = advertiser.climb(listings, write, args.evaluations)
        texts[name] = [write(listing, suffix) for listing, suffix in zip(listings, suffixes, strict=True)]
        for listing, suffix in list(zip(listings, suffixes, strict=True))[:5]:
            print(f"{name}: {listing.title!r} + {suffix!r}", flush=True)
    visits, originals = market.visits("test", args.requests), [listing.original for listing in listings]
    found: dict[str, Any] = {"ads": len(listings), "requests": len(visits), "evaluations": args.evaluations}
    chance, exposure = {}, {}
    for name, some in texts.items():
        paths = encoder.paths(some)
        chance[name] = market.chances(visits, paths, originals).mean(0)
        exposure[name] = market.exposures(visits, paths, originals).mean(0)
        found[f"{name}_exposure"] = round(float(exposure[name].mean()), 4)
        if name != "before":
            found[f"{name}_ratio"] = [
                round(each, 2) for each in ratio_of(exposure[name], exposure["before"], args.seed)
            ]
            ratio_A = chance[name] / chance["before"]
            for what, value in (
                ("median", np.median(ratio_A)),
                ("mean", ratio_A.mean()),
                ("p95", np.quantile(ratio_A, 0.95)),
            ):
                found[f"{name}_chance_{what}"] = round(float(value), 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
