"""A finished run of a small market: lists of the model and of two channels, made by the verbs."""

import pytest

import leadre
from leadre.__main__ import main


def verb(name: str, work, flags: str = "", run: str = "served") -> int:
    return main([*name.split(), "--work", str(work), "--run", run, "--threads", "1", *flags.split()])


@pytest.fixture(scope="session")
def folder(work, tmp_path_factory):
    """The run `served` in a folder of its own, with `generate` and `evaluate` for eight users."""
    own = tmp_path_factory.mktemp("own")
    (own / "served").mkdir()
    for step in ("data", "semid", "tune-sft"):
        (own / "served" / step).symlink_to(work / "served" / step)
    assert verb("generate", own, "--users 8") == 0
    assert verb("evaluate", own, "--channels item_knn,als --resamples 10 --fusion false") == 0
    return own / "served"


@pytest.fixture(scope="session")
def run(folder):
    return leadre.load(folder)


@pytest.fixture(scope="session")
def request_of(run):
    """Row of a request in the log -> the request of the API."""
    import polars as pl

    frame = pl.read_parquet(run.path / "data" / "requests.parquet").sort("user_id", "at", "request_id")
    requests = {request.request_id: request for split in ("train", "valid", "test") for request in run.requests(split)}
    return [requests[request_id] for request_id in frame["request_id"]]
