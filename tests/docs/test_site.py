"""The built site: all pages, all options and routes, and nothing from another host."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leadre import config
from leadre.serve import run_openapi

from ..clients.conftest import installed, run
from .pages import ROOT

# The value of src or href of a tag that a browser loads at once, and an address in CSS.
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", re.I)
STYLED = re.compile(r"(?:@import\s*|url\()[\"']?((?:https?:)?//[^\"')]+)", re.I)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def outside(folder: Path) -> list[str]:
    """Addresses of other hosts that a browser would load for the pages of a folder."""
    pages = [path.read_text(encoding="utf-8") for path in folder.rglob("*.html")]
    styles = [path.read_text(encoding="utf-8") for path in folder.rglob("*.css")]
    return [url for text in pages for url in LOADED.findall(text)] + [
        url for text in [*pages, *styles] for url in STYLED.findall(text)
    ]


def test_pages_load_nothing_from_another_host(site) -> None:
    assert len(list(site.rglob("*.html"))) > 15
    assert outside(site) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://unpkg.com/x.js"></script>'),
        ("a.html", "<link rel=stylesheet href=//fonts.example/a.css>"),
        ("a.html", '<img alt="" src="http://a.example/b.png">'),
        ("a.html", "<style>a { background: url(https://a.example/b.png) }</style>"),
        ("a.css", '@import "https://fonts.example/a.css";'),
    ],
)
def test_address_of_another_host_is_detected(tmp_path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert len(outside(tmp_path)) == 1


def test_root_pages_keep_their_links(site) -> None:
    architecture = (site / "architecture.html").read_text()
    assert 'href="glossary.html"' in architecture
    assert "contributing.html" in architecture, "the navigation"
    serving = (site / "serving.html").read_text()
    assert 'href="bench.html"' in serving and "../bench" not in serving


def test_every_option_and_route_is_in_the_reference(site) -> None:
    cli = (site / "reference" / "cli.html").read_text()
    for section, module in config.VERBS.items():
        assert f'id="leadre-{section}"' in cli
        for row in config.describe(importlib.import_module(module).Config):
            assert f"<code>--{row.field.replace('_', '-')}</code>" in cli
    http = (site / "reference" / "http.html").read_text()
    for name, description in run_openapi.descriptions().items():
        assert json.loads((site / "reference" / "openapi" / f"{name}.json").read_text()) == description
        for path in description["paths"]:
            assert f" {path}<" in http


@pytest.mark.slow
def test_pages_fit_a_phone_and_search_works_from_a_folder(site, tmp_path) -> None:
    shutil.copy(Path(__file__).parent / "visit.mjs", tmp_path)
    shutil.copy(ROOT / "clients" / "prebid" / "browser.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed() / "node_modules")
    report = json.loads(run("node", "visit.mjs", str(site), "propensity", at=tmp_path))
    assert report.pop("pages") > 15 and report.pop("hits") > 0
    assert report == {"wide": [], "errors": [], "outside": []}
