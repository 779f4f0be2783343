"""Backbone: a causal language model with words, codes and objects as input and codes as output.

The body is a Hugging Face causal LM whose attention can be replaced (`leadre.lm.exact` compares it with its own forward
pass); its word embeddings stay frozen. The code rows, which are also the embeddings of the codes, replace the head: at
each level only the rows of that level are scored.

Letters: B sequences, T positions, K keys (cached ones first), D width, L levels, S code rows, O objects.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leadre.errors import InputError
from leadre.lm import attention, bodies, exact
from leadre.lm.layout import Layout
from leadre.lm.pointer import Pointer, PointerSources
from leadre.lm.runner import make_runner

LOGIT_SCALE = 0.1  # code rows have the norm of word embeddings; unscaled logits would saturate the softmax at init
WORD_SCALE = 0.3  # the embeddings were not trained as a head for fewer layers: unscaled logits saturate the softmax
WEIGHTS, FACTS, BODY = "model.safetensors", "backbone.json", "body"


class Backbone(nn.Module):
    """The body of a causal LM with ``S`` code rows; made by `create` or `load`."""

    words_VD: Tensor
    objects_OL: Tensor
    head_VD: Tensor | None

    def __init__(
        self, body: Any, words: bodies.Words, layout: Layout, codes_OL: np.ndarray[Any, Any], *, pointer: bool
    ) -> None:
        super().__init__()
        words_VD = words.rows_VD
        assert len(words_VD) == layout.words, f"{len(words_VD)} word rows for {layout.words} words"
        self.layout = layout
        self.body = body
        self.embed_scale = words.scale
        self.max_positions = bodies.max_positions(body.config)
        body.set_attn_implementation(attention.NAME)
        self.codes_SD = nn.Parameter(torch.zeros(layout.codes, words_VD.shape[1]))
        self.bias_S = nn.Parameter(torch.zeros(layout.codes))
        self.pointer = Pointer(words_VD.shape[1]) if pointer else None
        self.departure = 1.0  # from the prior, as a share of what was learnt (`tune.departure`)
        self.register_buffer("words_VD", words_VD, persistent=False)
        self.register_buffer("head_VD", words.head_VD, persistent=False)
        self.register_buffer("objects_OL", torch.from_numpy(layout.rows(codes_OL)), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.codes_SD.device

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, D] of IDs of the layout, in the code rows' type; an object is the sum of its codes."""
        layout = self.layout
        words = F.embedding(ids_BT.clamp(max=layout.words - 1), self.words_VD).to(self.codes_SD.dtype)
        rows = ids_BT - layout.words
        codes = F.embedding(rows.clamp(0, layout.codes - 1), self.codes_SD)
        levels_BTL = self.objects_OL[(rows - layout.codes).clamp(min=0)]
        objects = F.embedding(levels_BTL, self.codes_SD).sum(-2)
        coded = torch.where((rows < layout.codes)[..., None], codes, objects)
        rows_BTD = torch.where((rows < 0)[..., None], words, coded)
        return rows_BTD if self.embed_scale == 1 else rows_BTD * self.embed_scale

    def forward(
        self, ids_BT: Tensor, positions_BT: Tensor, mask_BNK: Tensor, causal_until: int, cache: Any = None
    ) -> Tensor:
        """Hidden states [B, T, D] in the type of the code rows: float32, unless the model is float64.

        The first ``causal_until`` positions attend causally: they are the threads. ``mask_BNK`` (bool) selects the keys
        that each of the other N = T - causal_until positions attends to: the cached ones first, then these T. ``cache``
        is a transformers Cache, to which the call appends these T keys, or None; its keys have the positions from 0 on.
        InputError for a position that the body lacks.
        """
        self.check_length(int(positions_BT.max()) + 1)
        with precision(self.device):
            hidden = self.states(ids_BT, positions_BT, mask_BNK, causal_until, cache)
        return hidden.to(self.codes_SD.dtype)  # autocast leaves bfloat16

    def states(
        self, ids_BT: Tensor, positions_BT: Tensor, mask_BNK: Tensor, causal_until: int, cache: Any = None
    ) -> Tensor:
        """`forward` in the precision of the caller."""
        hidden: Tensor = self.body(
            inputs_embeds=self.embed(ids_BT),
            position_ids=positions_BT,
            attention_mask=mask_BNK[:, None],
            past_key_values=cache,
            use_cache=cache is not None,
            causal_until=causal_until,
            positions_BT=positions_BT,
        ).last_hidden_state
        return hidden

    def check_length(self, positions: int) -> None:
        """InputError for a prompt of so many positions, codes included, if the body has fewer."""
        if self.max_positions is not None and positions > self.max_positions:
            raise InputError(
                f"a prompt of {positions} positions: the backbone has {self.max_positions}; lower --short-tokens, "
                "--long-tokens or --long-items, or take another backbone"
            )

    def train(self, mode: bool = True) -> Backbone:
        """Like `nn.Module.train`; the body stays in evaluation mode.

        It has no dropout: training computes what serving computes, and a resumed run takes the steps of an undisturbed
        one.
        """
        super().train(mode)
        self.body.eval()
        return self

    def logits(self, hidden_ND: Tensor, level: int) -> Tensor:
        """Scores float32 [N, sizes[level]] of the codes of one level; other rows are not computed."""
        start, end = self.layout.offsets[level : level + 2]
        return hidden_ND @ self.codes_SD[start:end].T * LOGIT_SCALE + self.bias_S[start:end]

    def word_logits(self, hidden_ND: Tensor) -> Tensor:
        """Scores [N, V] of all words; the frozen head is that of the causal LM, most often the embeddings."""
        use_bfloat16 = self.codes_SD.dtype == torch.float32 and has_bfloat16(self.device)
        dtype = torch.bfloat16 if use_bfloat16 else hidden_ND.dtype
        head_VD = self.words_VD if self.head_VD is None else self.head_VD
        scores = hidden_ND.to(dtype) @ head_VD.to(dtype).T
        return scores.to(hidden_ND.dtype) * WORD_SCALE

    def log_p(
        self,
        hidden_ND: Tensor,
        level: int,
        prior_NC: Tensor,
        sources: PointerSources | None,
        thread_N: Tensor,
        pointer_bias_NT: Tensor,
    ) -> Tensor:
        """Log-probabilities float32 [N, sizes[level]] of the codes of one level, normalised over the live codes.

        Training and serving both compute probabilities of codes here. ``prior_NC`` (`Trie.log_prior`: -inf for codes
        without a live object) is added to the scores. ``sources``, ``thread_N`` and ``pointer_bias_NT`` are arguments
        of `Pointer.mix`; a backbone without pointer ignores them.
        """
        log_p_NC = self.head_log_p(hidden_ND, level, prior_NC)
        if self.pointer is not None and sources is not None:
            log_p_NC = self.pointer.mix(log_p_NC, hidden_ND, sources, thread_N, pointer_bias_NT, level)
        return log_p_NC if self.departure == 1 else depart(prior_NC, log_p_NC, self.departure)

    def head_log_p(self, hidden_ND: Tensor, level: int, prior_NC: Tensor) -> Tensor:
        """`log_p` without the pointer: it depends on the prompt through the hidden state alone."""
        kept = self.logits(hidden_ND, level) + prior_NC
        log_p_NC = kept - torch.logsumexp(kept, dim=-1, keepdim=True)
        return torch.where(prior_NC > -torch.inf, log_p_NC, -torch.inf)  # a row with nothing live would be nan

    def sources(self, hidden_BTD: Tensor, ids_BT: Tensor) -> PointerSources | None:
        """Positions of the threads ``ids_BT`` [B, T] that the pointer may copy; None without a pointer."""
        if self.pointer is None:
            return None
        objects_BT = ids_BT - self.layout.words - self.layout.codes
        starts = torch.tensor(self.layout.offsets[:-1], device=ids_BT.device)
        codes_BTL = self.objects_OL[objects_BT.clamp(min=0)] - starts
        codes_BTL = torch.where((objects_BT >= 0)[..., None], codes_BTL, -1)
        return self.pointer.sources(hidden_BTD, codes_BTL, ids_BT)


def precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 matrix products if they are fast on this processor, else float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def depart(prior_NC: Tensor, log_p_NC: Tensor, departure: float) -> Tensor:
    """Log-probabilities [N, C] at a share ``departure`` of the way from the prior to ``log_p_NC``: a geometric mean.

    ``prior_NC`` need not be normalised; where it is -inf, both are.
    """
    is_live_NC = prior_NC > -torch.inf
    scores_NC = torch.where(is_live_NC, prior_NC + departure * (log_p_NC - prior_NC), -torch.inf)
    return torch.where(is_live_NC, scores_NC - torch.logsumexp(scores_NC, dim=-1, keepdim=True), -torch.inf)


@lru_cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones on this device (AVX512-BF16 or AMX; Ampere and later)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capability = torch.backends.cpu.get_cpu_capability()
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return capability.startswith("AVX512") and "avx512_bf16" in flags


def pick_device() -> torch.device:
    """CUDA if there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def create(
    folder: Path, layout: Layout, codes_OL: np.ndarray[Any, Any], *, layers: Sequence[int] | int, pointer: bool
) -> Backbone:
    """A backbone from a Hugging Face folder of safetensors, cut to ``layers``; code rows are zero until `init_codes`.

    ``layers``: 0 keeps all, n > 0 keeps the first n, a sequence keeps exactly those, in order. InputError if the model
    lacks such layers or words, or if training or search would differ from the model's own forward pass.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with exact.refusals(str(folder)):
        kind = AutoConfig.from_pretrained(folder).model_type
    with exact.refusals(kind):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        words = bodies.read_words(model, layout.words)
        body = model.base_model
    bodies.cut_depth(body, layers)
    with exact.refusals(kind):
        own = exact.own_states(body, ids_BT=exact.sequences(layout.words))
        body.set_input_embeddings(nn.Identity())
        backbone = Backbone(body, words, layout, codes_OL, pointer=pointer)
        runner = make_runner(body, torch.float32)
        exact.check(body, layout.words, own, backbone.embed, backbone.states, runner)
        reloaded = bodies.reloaded(body)
        exact.check_reloaded(own, exact.own_states(reloaded, backbone.embed(exact.sequences(layout.words))))
    return backbone


@torch.no_grad()
def init_codes(
    backbone: Backbone,
    centroids: Sequence[np.ndarray[Any, Any]],
    title_ids: Sequence[np.ndarray[Any, Any]],
    seed: int,
    known_O: np.ndarray[Any, Any] | None = None,
) -> None:
    """Set the code rows so that an object, the sum of its codes, points towards the mean word embedding of its title.

    ``centroids``: [sizes[l], Z] for each quantised level; ``title_ids``: the word IDs of each object's title. A ridge
    regression maps the centroids' space into the word space; it is fitted on the objects of the mask ``known_O``
    (None = all). Half of the power of each row is random, so that no two codes start equal; rows of the last level,
    which separates objects of equal text, are all random.
    """
    layout = backbone.layout
    generator = torch.Generator().manual_seed(seed)
    words_VD = backbone.words_VD.float().cpu()
    no_title_D = words_VD.mean(0)  # for objects without a title: the mean over no words is nan
    target_OD = torch.stack(
        [words_VD[torch.from_numpy(ids.astype(np.int64))].mean(0) if len(ids) else no_title_D for ids in title_ids]
    )
    levels_OL = backbone.objects_OL.cpu() - torch.tensor(layout.offsets[:-1])
    parts = [torch.from_numpy(level_CZ)[levels_OL[:, level]] for level, level_CZ in enumerate(centroids)]
    sums_OZ = torch.stack(parts).sum(0).float()
    if known_O is not None:
        known = torch.from_numpy(np.flatnonzero(known_O))
        target_OD = target_OD[known]
        sums_OZ = sums_OZ[known]
    middle_D = target_OD.mean(0)
    gram_ZZ = sums_OZ.T @ sums_OZ
    ridge = 1e-2 * gram_ZZ.diagonal().mean() * torch.eye(len(gram_ZZ))
    map_ZD = torch.linalg.solve(gram_ZZ + ridge, sums_OZ.T @ (target_OD - middle_D))
    scale = words_VD.std()
    rows = []
    for level, size in enumerate(layout.sizes):
        rows_CD = torch.randn(size, words_VD.shape[1], generator=generator) * scale
        if level < len(centroids):
            fitted = torch.from_numpy(centroids[level]).float() @ map_ZD
            fitted = (fitted - fitted.mean(0)) / (fitted - fitted.mean(0)).std().clamp(min=1e-6) * scale
            rows_CD = (fitted + rows_CD) * 0.5**0.5
        rows.append(rows_CD)
    backbone.codes_SD.copy_(torch.cat(rows))


def randomise(backbone: Backbone, seed: int) -> None:
    """Initialise the weights of the body at random, by the model's own initialiser (for control runs)."""
    torch.manual_seed(seed)
    for tensor in (*backbone.body.parameters(), *backbone.body.buffers()):
        vars(tensor).pop("_is_hf_initialized", None)  # set by from_pretrained; initialisers leave such weights alone
    backbone.body.apply(backbone.body._init_weights)


@torch.no_grad()
def randomise_words(backbone: Backbone, seed: int) -> None:
    """Replace the word embeddings by random ones of the same mean and spread (for control runs)."""
    generator = torch.Generator().manual_seed(seed)
    words_VD = backbone.words_VD.float().cpu()
    random_VD = torch.randn(words_VD.shape, generator=generator) * words_VD.std() + words_VD.mean()
    backbone.words_VD.copy_(random_VD)


def freeze(backbone: Backbone, *, body: bool, codes: bool) -> None:
    """Exclude the body, or the code rows and their biases, from training."""
    frozen = (*(backbone.body.parameters() if body else ()), *((backbone.codes_SD, backbone.bias_S) if codes else ()))
    for parameter in frozen:
        parameter.requires_grad_(False)


def save(backbone: Backbone, folder: Path) -> None:
    """Write body, code rows and word embeddings as safetensors into ``folder``, with the facts that `load` needs."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    state["words_VD"] = backbone.words_VD.cpu()
    if backbone.head_VD is not None:
        state["head_VD"] = backbone.head_VD.cpu()
    save_file(state, folder / WEIGHTS)
    backbone.body.config.save_pretrained(folder / BODY)
    facts = {
        "words": backbone.layout.words,
        "sizes": backbone.layout.sizes,
        "pointer": backbone.pointer is not None,
        "embed_scale": backbone.embed_scale,
        "departure": backbone.departure,
    }
    (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def load(folder: Path, codes_OL: np.ndarray[Any, Any]) -> Backbone:
    """A saved backbone; ``codes_OL`` may have objects that are newer than the training (new ads)."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    layout = Layout(facts["words"], tuple(facts["sizes"]))
    state = load_file(folder / WEIGHTS)
    scale = facts.get("embed_scale", 1.0)  # models of earlier releases had none
    words = bodies.Words(state.pop("words_VD"), scale, state.pop("head_VD", None))
    backbone = Backbone(bodies.empty(folder / BODY), words, layout, codes_OL, pointer=facts["pointer"])
    backbone.load_state_dict(state)
    backbone.departure = facts.get("departure", 1.0)  # of earlier releases: as trained
    return backbone.eval()
