"""RQ-VAE: a small autoencoder whose latent is quantised residually (TIGER, arXiv 2305.05065; arXiv 2203.01941).

Three measures prevent unused codes: the autoencoder warms up unquantised, so that k-means starts the centroids in a
trained latent space; a code without recent use moves to a residual far from all centroids; and batches are a large part
of the catalogue.

Letters: N vectors, B batch, D width of the vectors, Z width of the latent, C codes of a level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from leadre import progress
from leadre.semid import rkmeans
from leadre.semid.quantiser import Floats, Layers, Quantiser

COMMITMENT = 0.25  # beta of VQ-VAE: weight of the pull of the encoder towards the centroids
BATCH = 512
RESET_EVERY = 50  # steps without use after which a code is dead
REPORT_EVERY = 20


def fit(
    vectors_ND: Floats,
    sizes: Sequence[int],
    seed: int,
    *,
    hidden: int = 256,
    latent: int = 64,
    steps: int = 1200,
    learning_rate: float = 1e-3,
) -> Quantiser:
    """RQ-VAE of `vectors_ND` (float32 [N, D]) with `sizes[l]` codes at level l; `hidden` and `latent` are layer widths.

    Same vectors and seed, same bytes: it trains on one CPU thread. A level gets no more codes than there are distinct
    residuals at the start of the centroids, with a message to the user.
    """
    rkmeans.check(vectors_ND, sizes)
    with _reproducible(seed) as random:
        x_ND = torch.from_numpy(np.unique(np.asarray(vectors_ND, dtype=np.float32), axis=0))
        width = x_ND.shape[1]
        encoder = _mlp(width, hidden, latent)
        decoder = _mlp(latent, hidden, width)
        weights = [*encoder.parameters(), *decoder.parameters()]
        warm = steps // 4
        with progress.track("RQ-VAE, steps", steps) as advance:
            optimiser = torch.optim.Adam(weights, lr=learning_rate)
            for step, x_BD in enumerate(_batches(x_ND, warm, random)):
                loss = _squared(decoder(encoder(x_BD)) - x_BD)
                _descend(optimiser, loss)
                _show(advance, step, f"warm-up, squared error {loss.item():.4f}")
            with torch.no_grad():
                start = rkmeans.fit(encoder(x_ND).numpy(), sizes, seed)
            centroids = [nn.Parameter(torch.from_numpy(level.copy())) for level in start.centroids]
            optimiser = torch.optim.Adam([*weights, *centroids], lr=learning_rate)
            used = [torch.zeros(len(level), dtype=torch.bool) for level in centroids]
            for step, x_BD in enumerate(_batches(x_ND, steps - warm, random)):
                loss, error, residuals = _losses(x_BD, encoder, decoder, centroids, used)
                _descend(optimiser, loss)
                # no resets in the last fifth, so that moved codes converge
                if (step + 1) % RESET_EVERY == 0 and step < (steps - warm) * 0.8:
                    _revive(centroids, used, residuals, random)
                _show(advance, step, f"squared error {error:.4f}")
    return Quantiser(
        centroids=tuple(level.detach().numpy().copy() for level in centroids),
        encoder=_layers(encoder),
        decoder=_layers(decoder),
    )


def _losses(
    x_BD: Tensor, encoder: nn.Module, decoder: nn.Module, centroids: Sequence[Tensor], used: Sequence[Tensor]
) -> tuple[Tensor, float, list[Tensor]]:
    """(loss, squared error of the reconstruction, residual [B, Z] at the input of each level); marks the codes used.

    Loss: squared error of the reconstruction, and per level the distance of the centroid to the residual (moves the
    centroid) and COMMITMENT times the same (moves the encoder). Means over the batch, sums over the width.
    """
    z_BZ = encoder(x_BD)
    left_BZ = z_BZ
    total_BZ = torch.zeros_like(z_BZ)
    pull = z_BZ.new_zeros(())
    residuals = []
    for centroids_CZ, used_C in zip(centroids, used, strict=True):
        residuals.append(left_BZ.detach())
        with torch.no_grad():
            code_B = ((centroids_CZ**2).sum(1) - 2 * left_BZ @ centroids_CZ.T).argmin(1)
            used_C[code_B] = True
        near_BZ = centroids_CZ[code_B]
        pull = pull + _squared(near_BZ - left_BZ.detach()) + COMMITMENT * _squared(left_BZ - near_BZ.detach())
        total_BZ = total_BZ + near_BZ.detach()
        left_BZ = left_BZ - near_BZ.detach()
    through_BZ = z_BZ + (total_BZ - z_BZ).detach()  # straight-through: the decoder's gradient reaches the encoder whole
    error = _squared(decoder(through_BZ) - x_BD)
    return error + pull, error.item(), residuals


def _revive(
    centroids: Sequence[Tensor], used: Sequence[Tensor], residuals: Sequence[Tensor], random: torch.Generator
) -> None:
    """Move every unused code to a residual of the last batch, far ones more likely; then reset the use marks."""
    for centroids_CZ, used_C, left_BZ in zip(centroids, used, residuals, strict=True):
        dead = torch.nonzero(~used_C)[:, 0]
        if len(dead):
            distance_B = torch.cdist(left_BZ, centroids_CZ.detach()[used_C]).amin(1) ** 2 + 1e-12
            chosen = torch.multinomial(distance_B, len(dead), replacement=len(dead) > len(distance_B), generator=random)
            with torch.no_grad():
                centroids_CZ[dead] = left_BZ[chosen]
        used_C.zero_()


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out))


def _layers(mlp: nn.Sequential) -> Layers:
    linear = [module for module in mlp if isinstance(module, nn.Linear)]
    return tuple((m.weight.detach().T.contiguous().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear)


def _batches(x_ND: Tensor, steps: int, random: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches; every vector comes once before one comes twice."""
    order = torch.randperm(len(x_ND), generator=random)
    size = min(BATCH, len(x_ND))
    at = 0
    for _ in range(steps):
        if at + size > len(order):
            order = torch.randperm(len(x_ND), generator=random)
            at = 0
        yield x_ND[order[at : at + size]]
        at += size


def _squared(difference: Tensor) -> Tensor:
    return (difference**2).sum(-1).mean()


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward([loss])  # Tensor.backward is untyped in some releases of torch
    optimiser.step()


def _show(advance: progress.Advance, step: int, note: str) -> None:
    advance(1, note=note if step % REPORT_EVERY == 0 else "")


@contextmanager
def _reproducible(seed: int) -> Iterator[torch.Generator]:
    """One thread (several sum in another order) and a seeded generator; restores the previous settings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)
