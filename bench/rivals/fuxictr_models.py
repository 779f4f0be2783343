"""DIN and DCNv2 of FuxiCTR on the rows that bench/fuxictr.py wrote; runs in FuxiCTR's own environment.

    python fuxictr_models.py FOLDER EPOCHS

FOLDER has rows.npz and sizes.json, and gets scores.npz: log-odds of the rows to score by each model, and times.json:
training rows a second, milliseconds of scoring 1,000 candidates of one request. A batch has the rows of some requests,
in the order of `order_ER`. It is built in memory, and each row has its own copy of the user's sequence, as FuxiCTR's
models read it. The epoch with the highest AUC on the rows of the early stop counts.

Letters: R requests, N rows, F numbers, K fields, P features of user and context, T positions, E epochs.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DCNv2 import DCNv2
from model_zoo.LongCTR.DIN import DIN
from sklearn.metrics import roc_auc_score

CANDIDATES = 1000
SCORED_ROWS = 2000  # at a time
BINS_WIDTH, OBJECT_WIDTH, FIELD_WIDTH, USER_WIDTH = 10, 16, 8, 4  # as in leadre/rank/models/shared.py
MODELS = {
    "dcnv2": (DCNv2, {"parallel_dnn_hidden_units": [128, 64], "num_cross_layers": 3}),
    "dcnv2_low_rank": (
        DCNv2,
        {
            "parallel_dnn_hidden_units": [128, 64],
            "num_cross_layers": 3,
            "use_low_rank_mixture": True,
            "low_rank": 32,
            "num_experts": 1,
        },
    ),
    "din": (DIN, {"dnn_hidden_units": [128, 64], "attention_hidden_units": [16]}),
}


def main() -> None:
    folder = Path(sys.argv[1])
    epochs = int(sys.argv[2])
    torch.set_num_threads(1)
    rows = dict(np.load(folder / "rows.npz", allow_pickle=False))
    sizes = json.loads((folder / "sizes.json").read_text())
    scores: dict[str, np.ndarray] = {}
    times: dict[str, dict[str, float]] = {}
    for name, (model_class, options) in MODELS.items():
        torch.manual_seed(0)
        model = model_class(
            feature_map(sizes),
            learning_rate=1e-3,
            embedding_dim=FIELD_WIDTH,
            optimizer="adam",
            loss="binary_crossentropy",
            metrics=["AUC"],
            verbose=0,
            model_root=str(folder),
            **options,
        )
        rows_per_s = trained(model, rows, sizes, epochs)
        scores[name] = scored(model, rows, sizes, "score")
        ms = milliseconds(model, rows, sizes)
        times[name] = {"train_rows_per_s": round(rows_per_s), "ms_1000": round(ms, 2)}
    np.savez(folder / "scores.npz", **scores)
    (folder / "times.json").write_text(json.dumps(times))


def feature_map(sizes: dict[str, dict[str, int]]) -> FeatureMap:
    """Numbers as values and as bins, user and context, and the fields of an item, which candidate and history share."""
    result = FeatureMap("rows", ".")
    result.labels = ["label"]
    result.default_emb_dim = FIELD_WIDTH
    features = OrderedDict()
    for f, bins in enumerate(sizes["numbers"].values()):
        features[f"value_{f}"] = {"type": "numeric", "source": "", "embedding_dim": 1}
        bucket = {"type": "categorical", "source": "", "embedding_dim": BINS_WIDTH, "vocab_size": bins}
        features[f"bin_{f}"] = bucket
    for p, count in enumerate(sizes["user"].values()):
        features[f"user_{p}"] = {
            "type": "categorical",
            "source": "user",
            "embedding_dim": USER_WIDTH,
            "vocab_size": count,
        }
    for name, count in sizes["fields"].items():
        width = OBJECT_WIDTH if name == "object" else FIELD_WIDTH
        item = {"type": "categorical", "source": "item", "embedding_dim": width, "vocab_size": count + 1}
        features[name] = item | {"padding_idx": 0}  # its pooling adds padding, so this row must be zero
    result.features = features
    result.num_fields = result.get_num_fields()
    return result


def batch(rows: dict[str, np.ndarray], sizes: dict[str, dict[str, int]], part: str, chosen_N: np.ndarray) -> tuple:
    """Rows in the form of FuxiCTR's loader: (columns, columns of items [N x (T + 1)], mask [N, T])."""
    request_N = rows[f"{part}_request_N"][chosen_N]
    columns: dict[str, torch.Tensor] = {"label": torch.from_numpy(rows[f"{part}_label_N"][chosen_N].astype(np.float32))}
    value_NF = torch.from_numpy(rows[f"{part}_value_NF"][chosen_N])
    bin_NF = torch.from_numpy(rows[f"{part}_bin_NF"][chosen_N])
    for f in range(len(sizes["numbers"])):
        columns[f"value_{f}"] = value_NF[:, f]
        columns[f"bin_{f}"] = bin_NF[:, f]
    user_NP = torch.from_numpy(rows[f"{part}_user_RP"][request_N])
    for p in range(len(sizes["user"])):
        columns[f"user_{p}"] = user_NP[:, p]
    mask_NT = torch.from_numpy(rows[f"{part}_mask_RT"][request_N])
    candidate_N1K = torch.from_numpy(rows[f"{part}_field_NK"][chosen_N])[:, None]
    event_NTK = torch.from_numpy(rows[f"{part}_event_RTK"][request_N])
    item_NTK = torch.cat([(event_NTK + 1) * mask_NT[..., None], candidate_N1K + 1], dim=1)
    items = {name: item_NTK[..., k].reshape(-1) for k, name in enumerate(sizes["fields"])}
    return columns, items, mask_NT.float()


def trained(model: torch.nn.Module, rows: dict[str, np.ndarray], sizes: dict, epochs: int) -> float:
    """Train by the model's own steps; returns rows a second of processor time, without the time of building batches."""
    model._max_gradient_norm = 10.0
    model._batch_index = 0
    starts = np.searchsorted(rows["train_request_N"], np.arange(len(rows["train_user_RP"]) + 1))
    seconds = 0.0
    count = 0
    best_auc = -1.0
    best: dict[str, torch.Tensor] = {}
    for order_R in rows["order_ER"][:epochs]:
        model.train()
        for part in np.array_split(order_R, -(-len(order_R) // sizes["batch"]["requests"])):
            chosen_N = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in part])
            data = batch(rows, sizes, "train", chosen_N)
            start_s = time.thread_time()
            model.train_step(data)
            seconds += time.thread_time() - start_s
            count += len(chosen_N)
        auc = roc_auc_score(rows["stop_label_N"], scored(model, rows, sizes, "stop"))
        sys.stderr.write(f"{type(model).__name__}: AUC {auc:.4f} after an epoch\n")
        if auc > best_auc:
            best_auc = auc
            best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return count / seconds


@torch.no_grad()
def scored(model: torch.nn.Module, rows: dict[str, np.ndarray], sizes: dict, part: str) -> np.ndarray:
    """Log-odds of all rows of a part, [N]."""
    model.eval()
    count = len(rows[f"{part}_label_N"])
    p = [
        model(batch(rows, sizes, part, np.arange(start, min(start + SCORED_ROWS, count))))["y_pred"].reshape(-1)
        for start in range(0, count, SCORED_ROWS)
    ]
    return torch.logit(torch.cat(p).double(), eps=1e-9).numpy()


@torch.no_grad()
def milliseconds(model: torch.nn.Module, rows: dict[str, np.ndarray], sizes: dict) -> float:
    """Median processor time of scoring `CANDIDATES` rows of one request, given as tensors."""
    model.eval()
    starts = np.searchsorted(rows["score_request_N"], np.arange(len(rows["score_user_RP"]) + 1))
    times = []
    for r in range(0, len(starts) - 1, max(1, len(starts) // 60)):
        chosen_N = starts[r] + np.arange(CANDIDATES) % (starts[r + 1] - starts[r])
        data = batch(rows, sizes, "score", chosen_N)
        start_s = time.thread_time()
        model(data)
        times.append(time.thread_time() - start_s)
    return 1000 * float(np.median(times))


if __name__ == "__main__":
    main()
