"""Pages of the site that are not files of docs/: those of the repository's root, and the settings from the code."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "configs/tiny/README.md",
    "assets/tiny/README.md", "assets/stablevsr_tiny/README.md", "assets/upscale_a_video_tiny/README.md",
    "assets/report/street.jpg", "assets/demo/compare.png",
)  # fmt: skip


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
        markdown = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    if "/" in page.file.src_uri:  # its links to the folder above are right in the site, too
        return markdown
    return re.sub(r"\]\(\.\./(?=assets/|configs/|[A-Z]+\.md)", "](", markdown)
