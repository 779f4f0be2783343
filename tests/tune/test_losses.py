"""Losses against hand-worked numbers."""

import math

import pytest
import torch

from leadre.tune import losses


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_likelihood_of_an_id_is_the_product_over_its_levels():
    log_p = [logs([0.5, 0.25, 0.25], [0.1, 0.2, 0.7]), logs([0.9, 0.1], [0.3, 0.7])]
    found = losses.log_likelihood(log_p, torch.tensor([[0, 1], [2, 0]]))
    assert found.exp().tolist() == pytest.approx([0.5 * 0.1, 0.7 * 0.3])


def test_sft_is_a_weighted_mean_of_surprise():
    log_p_N = logs([0.5, 0.25, 0.125])[0]
    assert losses.sft(log_p_N, torch.ones(3)).item() == pytest.approx(2 * math.log(2))
    assert losses.sft(log_p_N, torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(math.log(2))
    assert losses.sft(log_p_N, torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(7 / 4 * math.log(2))
    scaled = losses.sft(log_p_N, torch.tensor([6.0, 3.0, 3.0]))
    assert scaled.item() == pytest.approx(7 / 4 * math.log(2))  # only the proportions count


def test_the_gradient_pushes_the_target_up_and_the_other_live_codes_down():
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss = losses.sft(losses.log_likelihood([scores.log_softmax(1)], torch.tensor([[1]])), torch.ones(1))
    loss.backward()
    assert scores.grad.tolist()[0] == pytest.approx([1 / 3, -2 / 3, 1 / 3])
