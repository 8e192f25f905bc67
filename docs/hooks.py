"""MkDocs: add files from the repository's root to the site as pages. README.md is the home page."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)#:]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=for_site(text)))
    return files


def for_site(text: str) -> str:
    """Return a root page's text with its links adapted to the site: docs/X → X, and other pages by their names there.
    Links to files that are not on the site become plain text."""
    names = {source: name for name, source in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if target in names or target.startswith("docs/"):
            return f"{match['text']}({names.get(target) or target.removeprefix('docs/')}{match['anchor'] or ''})"
        return f"`{match['text'][1:-1]}`"

    text = re.sub(r'(src|srcset)="docs/', r'\1="', text)
    return _LINK.sub(link, text)
