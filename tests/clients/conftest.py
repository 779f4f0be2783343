"""The publisher's page and its browser."""

from __future__ import annotations

import shutil

import pytest

from ..npm import CLIENT, installed, run


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """Runs a script of the client in Node: (script, flags, environment) -> what it prints.

    The sources are copied, so that npm's files stay out of the repository.
    """
    folder = tmp_path_factory.mktemp("client") / "prebid"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (folder / "node_modules").symlink_to(installed() / "node_modules")
    run("node", "build.mjs", at=folder)
    return lambda *command, **environment: run("node", *command, at=folder, **environment)
