"""Pages of the site that are not files under docs/: the root's pages, and the references made from code.

MkDocs calls the functions ``on_*`` at their events (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

import reference_cli
import reference_http
from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from leadre.serve import run_openapi

ROOT = Path(__file__).parents[2]
# A page outside docs/, seen from the root of the repository -> its page of the site.
PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "README.md": "index.md",
    "bench/RESULTS.md": "bench.md",
    "clients/prebid/README.md": "prebid.md",
}


class RepositoryLinks(Treeprocessor):  # type: ignore[misc]  # Markdown ships no types
    """Links of a page as it is in the repository -> links of the site.

    A link to a file that the site does not have (code, a config) keeps its text alone.
    """

    # Set before each page is converted: its place in the site, and in the repository.
    page = ""
    source = ""

    def run(self, root: Element) -> None:
        for element in root.iter():
            if element.tag == "a":
                target = self.target(element.attrib.get("href", ""))
                if target is None:
                    element.tag = "span"
                    del element.attrib["href"]
                else:
                    element.attrib["href"] = target
            elif element.tag == "img":
                element.attrib["src"] = self.target(element.attrib["src"]) or element.attrib["src"]

    def target(self, link: str) -> str | None:
        """The link from the page; None for a file of the repository that is no page."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path:
            return link
        name = posixpath.normpath(posixpath.join(posixpath.dirname(self.source), parts.path))
        page = PAGES.get(name, name.removeprefix("docs/"))
        if page == name or (ROOT / name).is_dir():
            return None if (ROOT / name).exists() else link
        return parts._replace(path=posixpath.relpath(page, posixpath.dirname(self.page) or ".")).geturl()


LINKS = RepositoryLinks()


class RepositoryLinksExtension(Extension):  # type: ignore[misc]
    """Runs `RepositoryLinks` before MkDocs checks the links."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(LINKS, "repository_links", 10)


def on_config(config: MkDocsConfig) -> None:
    """Have every page pass `RepositoryLinks`."""
    config.markdown_extensions.append(RepositoryLinksExtension())


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are not under docs/."""
    for source, page in PAGES.items():
        if (ROOT / source).exists() and files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    descriptions = run_openapi.descriptions()
    generated = {"reference/cli.md": reference_cli.page(), "reference/http.md": reference_http.page(descriptions)}
    for name, description in descriptions.items():
        generated[f"reference/openapi/{name}.json"] = json.dumps(description, indent=2)
    for page, content in generated.items():
        files.append(File.generated(config, page, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Note the page whose links are converted next."""
    LINKS.page = page.file.src_uri
    path = page.file.abs_src_path
    LINKS.source = Path(path).relative_to(ROOT).as_posix() if path else f"docs/{LINKS.page}"
    return markdown
