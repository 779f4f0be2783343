"""Losses against hand-worked numbers."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from leadre.tune import losses

BETA = 0.3


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_likelihood_of_an_id_is_the_product_over_its_levels():
    log_p = [logs([0.5, 0.25, 0.25], [0.1, 0.2, 0.7]), logs([0.9, 0.1], [0.3, 0.7])]
    log_likelihood = losses.log_likelihood(log_p, torch.tensor([[0, 1], [2, 0]]))
    assert log_likelihood.exp().tolist() == pytest.approx([0.5 * 0.1, 0.7 * 0.3])
    by_level = losses.by_level(log_p, torch.tensor([[0, 1], [2, 0]]))
    assert by_level.exp().flatten().tolist() == pytest.approx([0.5, 0.1, 0.7, 0.3])


def test_sft_is_a_weighted_mean_of_negative_log_likelihoods():
    log_p_N = logs([0.5, 0.25, 0.125])[0]
    assert losses.sft(log_p_N, torch.ones(3)).item() == pytest.approx(2 * math.log(2))
    assert losses.sft(log_p_N, torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(math.log(2))
    assert losses.sft(log_p_N, torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(7 / 4 * math.log(2))
    scaled = losses.sft(log_p_N, torch.tensor([6.0, 3.0, 3.0]))
    assert scaled.item() == pytest.approx(7 / 4 * math.log(2))  # only the proportions count


def test_gradient_raises_the_target_and_lowers_the_other_live_codes():
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss = losses.sft(losses.log_likelihood([scores.log_softmax(1)], torch.tensor([[1]])), torch.ones(1))
    loss.backward()
    assert scores.grad.tolist()[0] == pytest.approx([1 / 3, -2 / 3, 1 / 3])


def test_levels_are_shared_up_to_the_first_different_code():
    chosen = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    rejected = torch.tensor(
        [[1, 2, 4], [1, 5, 3], [6, 2, 3], [1, 2, 3]]
    )  # an equal code after a different one is not shared
    expected = [[True, True, False], [True, False, False], [False, False, False], [True, True, True]]
    assert losses.shared_levels(chosen, rejected).tolist() == expected


def pairs(*, seed=0, count=5, shared=None):
    """(chosen, rejected, and both under the reference): log-probabilities [count, 3], equal at shared levels."""
    generator = torch.Generator().manual_seed(seed)
    drawn = -4 * torch.rand(4, count, 3, generator=generator, dtype=torch.float64)
    if shared is not None:
        drawn[1] = torch.where(shared, drawn[0], drawn[1])
        drawn[3] = torch.where(shared, drawn[2], drawn[3])
    return [log_p.requires_grad_() for log_p in drawn.unbind()]


def plain(count):
    return {"beta": BETA, "margins_N": torch.zeros(count), "weights_N": torch.ones(count)}


def test_dpo_by_hand():
    """The chosen rises from .1 to .2, the rejected falls from .3 to .1: the odds between them grow sixfold."""
    now = (logs([0.2, 1.0]), logs([0.5, 0.2]))
    before = (logs([0.5, 0.2]), logs([0.5, 0.6]))
    loss, reward = losses.dpo(*now, *before, **plain(1))
    assert reward.item() == pytest.approx(BETA * math.log(6))
    assert loss.item() == pytest.approx(math.log(1 + 6**-BETA))
    untouched, nothing = losses.dpo(*before, *before, **plain(1))
    assert untouched.item() == pytest.approx(math.log(2)) and nothing.item() == 0


def test_simpo_by_hand():
    loss, reward = losses.simpo(logs([0.5, 0.4]), logs([0.1, 0.5]), **plain(1))
    assert reward.item() == pytest.approx(BETA * math.log(4))
    assert loss.item() == pytest.approx(math.log(1 + 4**-BETA))


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_loss_has_margins_and_weights(loss):
    log_p = pairs()[: 4 if loss == "dpo" else 2]
    margins = torch.tensor([0, 0.5, 1, 0, 0.2])
    weights = torch.tensor([1, 2, 0, 0.5, 1])
    value, rewards = getattr(losses, loss)(*log_p, beta=BETA, margins_N=margins, weights_N=weights)
    nll = [
        math.log1p(math.exp(margin - reward)) for reward, margin in zip(rewards.tolist(), margins.tolist(), strict=True)
    ]
    expected = sum(w * s for w, s in zip(weights.tolist(), nll, strict=True)) / 4.5
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_shared_levels_get_no_gradient_and_the_others_keep_theirs():
    """The loss is the same: shared levels cancel, so stopping them leaves the other gradients unchanged."""
    shared = torch.tensor([[True, True, False], [True, False, False], [False] * 3, [True, False, False], [False] * 3])
    stopped = pairs(shared=shared)
    whole = pairs(shared=shared)
    policy = [losses.without_shared(log_p, shared) for log_p in stopped[:2]]
    loss, _ = losses.dpo(*policy, *stopped[2:], **plain(5))
    expected, _ = losses.dpo(*whole, **plain(5))
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    expected.backward()
    for without, full in zip(stopped[:2], whole[:2], strict=True):
        assert torch.all(without.grad[shared] == 0) and torch.all(full.grad[shared] != 0)
        torch.testing.assert_close(without.grad[~shared], full.grad[~shared])
    torch.testing.assert_close(whole[0].grad + whole[1].grad, torch.zeros(5, 3, dtype=torch.float64))


def trl_loss(chosen_NL, rejected_NL, reference_chosen_NL, reference_rejected_NL):
    """(loss, reward margin) by the method of `trl`'s trainer, called on a stub with the attributes that it reads."""
    from trl.trainer.dpo_trainer import DPOTrainer

    count, levels = chosen_NL.shape
    policy = torch.cat([chosen_NL, rejected_NL]).detach()
    zeros = torch.zeros_like(policy)

    def model(**_):
        return SimpleNamespace(log_probs=policy, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    metrics = {"eval": defaultdict(list)}
    single = SimpleNamespace(device="cpu", gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=single,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        beta=BETA,
        _metrics=metrics,
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros(2 * count, levels + 1, dtype=torch.int64),
        "completion_mask": torch.ones(2 * count, levels + 1, dtype=torch.int64),
        "ref_chosen_logps": reference_chosen_NL.detach().sum(1),
        "ref_rejected_logps": reference_rejected_NL.detach().sum(1),
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss.item(), metrics["eval"]["rewards/margins"][0]


@pytest.mark.parametrize("seed", range(3))
def test_dpo_equals_that_of_trl(seed):
    log_p = pairs(seed=seed, count=7)
    loss, rewards = losses.dpo(*log_p, **plain(7))
    expected, margin = trl_loss(*log_p)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert rewards.mean().item() == pytest.approx(margin, rel=1e-9)
