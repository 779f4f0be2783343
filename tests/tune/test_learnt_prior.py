"""`leadre tune --learnt-prior true` on the synthetic market: fine-tuning, preferences, lists and the model server."""

import asyncio
import time

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main
from leadre.data import histories
from leadre.data.moment import of_requests
from leadre.generate.channels import fitted
from leadre.lm import counts_fit, counts_networks
from leadre.semid import codebook as codebooks
from leadre.serve.ipc.messages import GenerateRequest
from leadre.serve.processes.model_server import ModelServer
from leadre.serve.processes.new_objects import NewObjects
from leadre.store.contract import ProfileEvent
from leadre.tune import model as saved

STAGES = (
    ("data", "--source world --world-users 60 --world-ads 60 --world-contents 12"),
    ("semid", "--levels 8,6 --collisions 24"),
    ("tune", "--layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2 --batch-tokens 800"),
    ("generate", "--split train --users 8 --step generate-negatives"),
    ("tune dpo", "--on-policy true --users 8 --max-steps 1 --batch-tokens 800 --validate-every 2"),
    ("generate", "--users 8 --model dpo"),
)


@pytest.fixture(scope="module")
def work(tiny_encoder, tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    own = {
        "semid": f" --encoder {tiny_encoder}",
        "tune": f" --backbone {tiny_llama} --learnt-prior true --aux-share 0.2",
    }
    for verb, flags in STAGES:
        flags = f"{flags}{own.get(verb, '')} --work {folder} --run r --threads 1"
        assert main([*verb.split(), *flags.split()]) == 0
    return folder / "r"


@pytest.fixture(scope="module")
def parents(work):
    return artifact.read(work / "data", artifact.TABLES), artifact.read(work / "semid", artifact.CODEBOOK)


@pytest.mark.parametrize("step", ["tune-sft", "tune-dpo"])
def test_a_model_carries_its_prior(work, parents, step):
    tables, codebook = parents
    model = artifact.read(work / step, artifact.MODEL)
    logs = histories.load(tables)
    live = saved.load_prior(logs, codebooks.load(codebook), model, training=True)
    channel = counts_networks.load(work / "channels" / "counts_network")
    for moment in list(of_requests(logs))[:: len(logs.request_user_R) // 20]:
        if moment.at_us < live.from_us:
            continue
        network = channel.network(moment)
        scores = network.scores(moment).astype(float)
        expected = np.exp(scores - scores.max()) * (
            1.0 if live.value_O is None else live.value_O[moment.inventory.objects]
        )
        np.testing.assert_allclose(live.weights(moment, moment.inventory.objects), expected)


def test_evaluation_reads_the_network_that_tuning_fitted(work, parents, monkeypatch):
    tables, _ = parents

    def fit(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(counts_fit, "fit", fit)
    folder = work / "channels" / "counts_network"
    channel = fitted.load(folder, "counts_network", histories.load(tables), tables, seed=0, threads=1)
    assert channel.fitted.from_us > 0


def test_nothing_is_learnt_or_listed_before_the_counts_end(work, parents):
    tables, codebook = parents
    loaded = saved.load(
        tables, codebooks.load(codebook), artifact.read(work / "tune-sft", artifact.MODEL), training=True
    )
    at_us_R = loaded.threads.logs.request_at_us_R
    from_us = loaded.live.from_us
    assert at_us_R.min() < from_us <= at_us_R[loaded.threads.train_R].min()
    listed = pl.read_parquet(work / "generate-negatives" / "lists.parquet")["request"].to_numpy()
    assert len(listed) and at_us_R[listed].min() >= from_us


def test_the_model_server_weighs_by_user_as_lists_do(work, parents):
    """A request of a user of the log gets the ranking and the scores of `answer_one`; so does one with a new object."""
    tables, codebook = parents
    model = artifact.read(work / "tune-sft", artifact.MODEL)
    searcher = saved.load(tables, codebooks.load(codebook), model, training=False).searcher()
    logs = searcher.threads.logs
    users = logs.users["user_id"].to_list()
    with ModelServer(tables, codebook, model, beam=64) as server:
        objects = np.arange(0, len(server.objects), 2)
        tops = []
        for r in logs.requests_of(histories.TEST)[::9].tolist():
            history = searcher.threads.moments[r].history
            names = list(server.objects)
            recent = [
                ProfileEvent(names[o], int(at), "ad" if domain == histories.AD else "content", int(value))
                for o, at, domain, value in zip(
                    history.object_E, history.at_us_E, history.domain_E, history.value_nanos_E, strict=True
                )
            ]
            now_us = int(logs.request_at_us_R[r])
            eligible = np.packbits(np.isin(np.arange(len(names)), objects)).tobytes()
            user_id = users[int(logs.request_user_R[r])]
            request = GenerateRequest(user_id, recent, now_us, eligible, 10, time.monotonic() + 600)
            reply = asyncio.run(server.answer(request))
            moment = server.moment(user_id, recent, now_us, np.isin(np.arange(len(names)), objects))
            ranked = searcher.answer_one(moment, "all", 64)
            assert reply.objects == ranked.objects[:10].tolist()
            np.testing.assert_allclose(reply.log_p, ranked.log_p[:10], atol=0.02)  # batches round differently
            tops.append(reply.objects[0])
        assert len(set(tops)) > 1
        before = len(server.object_ids)
        server.add(NewObjects(["new"], np.array([[7, 5, 23]], np.int32)))
        both = server.moment(user_id, recent, now_us, np.isin(np.arange(before + 1), [*objects, before]))
        weights = server._weights(both)
        assert len(weights) == before + 1 and weights[-1] == np.median(weights[objects]) > 0
        assert not np.delete(weights, [*objects, before]).any()


@pytest.mark.parametrize("flags", ["--affinity true", "--prior false"])
def test_two_priors_at_once_are_refused(tmp_path, capsys, flags):
    assert main(["tune", "--learnt-prior", "true", "--work", str(tmp_path), *flags.split()]) == 2
    assert "needs --prior true --affinity false" in capsys.readouterr().err


def test_a_sequence_prior_needs_the_learnt_one(tmp_path, capsys):
    assert main(["tune", "--sequence-prior", "true", "--work", str(tmp_path)]) == 2
    assert "set --learnt-prior true" in capsys.readouterr().err
