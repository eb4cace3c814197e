"""MkDocs hook: publishes the Markdown pages outside docs/ and rewrites links between all pages.

Links in the sources are relative to the repository, so that they work where the files are read.
The site has a flat list of pages. A link to a file that the site does not contain becomes text.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Repository path of each page outside docs/, and its name in the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "benchmarks/README.md": "benchmark-scripts.md",
    "clients/python/README.md": "python-client.md",
    "deploy/README.md": "kubernetes.md",
    "deploy/TESTING.md": "deployment-tests.md",
    "deploy/monitoring/runbook.md": "runbook.md",
    "model/bundled/README.md": "bundled-model.md",
    "model/bundled_student/README.md": "bundled-student.md",
    "tests/README.md": "tests.md",
    "training/RESULTS.md": "results.md",
    "training/recipes/README.md": "recipes.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"[a-z]+:|#")
log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/ to the site."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links from repository paths to site paths, outside of code blocks."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(match: re.Match[str]) -> str:
        text, target = match.groups()
        if EXTERNAL.match(target):
            return match[0]
        name, hash_sign, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", source, target)
        if path in PAGES:
            return f"[{text}]({PAGES[path]}{hash_sign}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{hash_sign}{anchor})"
        return text

    parts = FENCE.split(markdown)
    return "".join(part if FENCE.match(part) else LINK.sub(rewrite, part) for part in parts)
