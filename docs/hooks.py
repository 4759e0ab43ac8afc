"""Pages of the site that are not files of docs/: those of the repository's root, and the settings from the code."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "assets/report/street.jpg", "assets/demo/compare.png")


def on_files(files, config):
    """Add the pages."""
    sys.path.insert(0, str(ROOT))
    from scripts.document_settings import page

    for name in COPIED:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "SETTINGS.md", content=page()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links that are right in the repository into links of the site."""
    if page.file.src_uri in COPIED:
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./(?=assets/|[A-Z]+\.md)", "](", markdown)
