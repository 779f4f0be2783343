"""The departure from the prior: between prior and model, chosen by the loss of validation requests."""

import numpy as np
import pytest
import torch

from leadre.data.histories import VALID
from leadre.lm import backbone as backbones
from leadre.lm.backbone import depart
from leadre.tune import departure, losses, sft

from .test_sft import untrained

TOKENS = 800


@pytest.fixture
def backbone(small):
    return untrained(small).eval()


@pytest.fixture
def windows(small):
    return small.threads().serving(small.logs.requests_of(VALID))


def test_ends_are_the_prior_and_the_model_and_all_between_are_distributions():
    prior = torch.tensor([[2.0, 1.0, -torch.inf, 0.5], [0.0, -torch.inf, -torch.inf, -torch.inf]])
    log_p = torch.log_softmax(torch.tensor([[0.1, 3.0, -torch.inf, 1.0], [5.0, *[-torch.inf] * 3]]), 1)
    torch.testing.assert_close(depart(prior, log_p, 1.0), log_p)
    torch.testing.assert_close(depart(prior, log_p, 0.0), torch.log_softmax(prior, 1))
    middle = depart(prior, log_p, 0.5)
    torch.testing.assert_close(middle.exp().sum(1), torch.ones(2))
    assert torch.equal(middle == -torch.inf, prior == -torch.inf)
    assert not depart(torch.full((1, 3), -torch.inf), torch.full((1, 3), -torch.inf), 0.5).isnan().any()


def test_losses_of_both_ends(small, backbone, windows):
    examples = small.examples()
    figures = departure.choose(backbone, examples, windows, 10**6)
    batch = examples.batch([window for part in examples.packed(windows, 10**6) for window in part])
    backbone.departure = 1.0
    with torch.no_grad():
        own = losses.sft(losses.log_likelihood(sft.level_log_p(backbone, batch), batch.targets_NL), batch.weights_N)
    prior = losses.log_likelihood([torch.log_softmax(p, 1) for p in batch.priors], batch.targets_NL)
    assert figures[1.0] == pytest.approx(own.item(), rel=1e-4)
    assert figures[0.0] == pytest.approx(losses.sft(prior, batch.weights_N).item(), rel=1e-4)
    assert "alone" in departure.text(figures, 0.5)


def test_a_model_of_noise_is_left_out(small, backbone, windows):
    with torch.no_grad():
        backbone.codes_SD.mul_(1000)
        backbone.pointer.start_gate(-20.0)
    figures = departure.choose(backbone, small.examples(), windows, TOKENS)
    assert backbone.departure == min(figures, key=figures.get) < 0.5
    assert figures[0.0] < figures[1.0]


def test_without_validation_requests_a_model_stays_as_trained(small, backbone):
    assert departure.choose(backbone, small.examples(), [], TOKENS) == {}
    assert backbone.departure == 1.0


def test_a_saved_model_keeps_its_departure(small, backbone, windows, tmp_path):
    backbone.departure = 0.375
    backbones.save(backbone, tmp_path)
    loaded = backbones.load(tmp_path, small.live.codes_OL)
    assert loaded.departure == 0.375
    batch = small.examples().batch(windows[:1])
    with torch.no_grad():
        for ours, theirs in zip(sft.level_log_p(backbone, batch), sft.level_log_p(loaded, batch), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
