"""Commands and links of the README and the documentation: every command parses, every link leads somewhere."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import urllib.parse
from functools import cache
from pathlib import Path

import pytest
import torch

from ldm import video
from ldm.engine.assemble import family_cards, read_model
from ldm.engine.flags import flags_of

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md",
    *(file for top in ("docs", "configs", "assets", "comfyui") for file in sorted((ROOT / top).rglob("*.md"))),
]  # fmt: skip
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python (?:scripts/\w+|main)\.py|vsr-[a-z]+) [^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|<(https?://[^>\s]+)>")
GENERATED = {"docs/SETTINGS.md", "docs/CONTRIBUTING.md", "docs/SECURITY.md", "docs/CHANGELOG.md"}  # docs/hooks.py
COMMANDS = {"vsr-upscale": "scripts/upscale.py", "vsr-train": "main.py"}
PROGRAMS = ("make", "pip", "source", "export", "docker", "conda", "mkdocs", "git", "pytest", "curl", "mkdir", "cp")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCRIPTS = [ROOT / "main.py", *sorted((ROOT / "scripts").glob("*.py"))]
USAGE = re.compile(r"^(?:python (?:scripts/\w+|main)\.py|vsr-[a-z]+)\b.*")
PATH = re.compile(r"(?:configs|scripts|assets|comfyui|docs|tests)/[\w./-]+")
FOREIGN = ("pip", "docker", "torchrun", "conda", "mkdocs", "pytest")  # programs with flags of their own
HELD = [ROOT / file for file in ("Makefile", "pyproject.toml")]


def commands():
    """(page, command) of every line of a shell block and every command within a line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                yield page, line
        for line in INLINE.findall(text):
            yield page, line


def usages():
    """(script, command) of every line of a script's summary that is a command, without its remark."""
    for script in SCRIPTS:
        for line in (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines():
            if USAGE.match(line):
                yield script, re.split(r" {4,}", line)[0]


def words_of(line):
    """The words of a command without comments and variables; none for an empty line."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return words


def parse(words):
    """Parse a command of this project with its own parser."""
    script = COMMANDS.get(words[0]) or f"scripts/{words[0].removeprefix('vsr-')}.py"
    rest = words[1:]
    if words[0] == "python":
        script, rest = words[1], words[2:]
    if ">" in rest:
        rest = rest[: rest.index(">")]
    if "..." in rest or rest == ["--help"]:
        assert (ROOT / script).is_file()
        return
    missing = [path for word in rest for path in PATH.findall(word) if not (ROOT / path).exists()]
    assert not [path for path in missing if "FAMILY" not in path], f"no such files: {missing}"
    parser = getattr(module_of(script), "arguments", None)
    if rest or parser:
        parser(rest)


def module_of(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def test_every_command_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    faults, count = [], 0
    for page, line in [*commands(), *usages()]:
        words = words_of(line)
        if not words or any(word.startswith("[") for word in words):  # a form, with optional words in brackets
            continue
        if words[0] == "torchrun":
            words = ["python", *words[words.index("main.py") :]]
        if words[0].startswith("vsr-") or words[:1] == ["python"] and words[1].endswith(".py"):
            count += 1
            try:
                parse(words)
            except (Exception, SystemExit) as error:
                faults.append(f"{page.relative_to(ROOT)}: {line}: {error!r}")
        elif words[0] not in (*PROGRAMS, "python", "cd"):
            faults.append(f"{page.relative_to(ROOT)}: {line}: unknown program {words[0]}")
    assert not faults, "\n".join(faults)
    assert count > 90


def test_every_target_of_make_and_every_extra_exists():
    make, project = (file.read_text(encoding="utf-8") for file in HELD)
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert "mkdocs build --strict\n" in make  # with --quiet, MkDocs takes no warning for an error
    targets = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)`", text))
    assert targets and targets <= set(re.findall(r"^([a-z-]+):", make, re.MULTILINE))
    extras = {name for found in re.findall(r"-e '?\.\[([\w,-]+)\]", text) for name in found.split(",")}
    assert extras and extras <= set(re.findall(r"^([\w-]+) = \[", project, re.MULTILINE))


@cache
def known_flags():
    """The flags of all commands, and those that the families of models add."""
    scripts = [*SCRIPTS, ROOT / "assets" / "demo" / "make_clip.py"]
    sources = "\n".join(script.read_text(encoding="utf-8") for script in scripts)
    families = [read_model(card) for card in family_cards()]
    ours = {f"--{name}" for settings in families for name in flags_of(settings)}
    others = {"--user", "--index-url"}  # of docker and pip
    return {"--help", *others, *re.findall(r"\"(--[a-z][\w-]*)\"", sources), *ours}


def test_every_flag_in_a_sentence_exists():
    faults = []
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):  # which also names what was
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`]+)`", text):
            if span.split()[0] not in FOREIGN:
                flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span)) - known_flags()
                faults += [f"{page.relative_to(ROOT)}: {flag} in {span}" for flag in sorted(flags)]
    assert not faults, "\n".join(faults)


def test_examples_in_python_name_what_exists():
    """Imports of the examples, and what they take from modules of this project."""
    count = 0
    for page in PAGES:
        for block in PYTHON.findall(page.read_text(encoding="utf-8")):
            count += 1
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == [], page.name
    assert count > 2


@pytest.mark.slow  # runs the model
def test_the_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    with video.open_writer(tmp_path / "in.mp4", size=(16, 16)) as writer:
        writer.write(torch.zeros(3, 16, 16))
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(compile(block, "README.md", "exec"), values)
    assert values["sr"].shape == (1, 3, 64, 64) and values["lq"].shape == (1, 3, 16, 16)


def headings(page):
    """The anchors of a page as the site makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    texts = [re.sub(r"[^\w\s-]", "", line.replace("`", "")).strip().lower() for line in lines]
    return {re.sub(r"[-\s]+", "-", text) for text in texts}


def well_formed(link):
    """Whether a link to elsewhere has the form of an address; whether it answers is not asked."""
    address = urllib.parse.urlsplit(link)
    host = re.fullmatch(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+", address.netloc)
    return bool(host or address.scheme == "mailto") and not link.endswith((".", ",", "("))


def test_every_link_leads_somewhere():
    faults = []
    for page in PAGES:
        for link in map("".join, LINK.findall(page.read_text(encoding="utf-8"))):
            if link.startswith(("https://", "mailto:")):
                faults += [] if well_formed(link) else [f"{page.relative_to(ROOT)}: {link}: no address"]
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            inside = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
            if not inside or not (target.exists() or inside in GENERATED):
                faults.append(f"{page.relative_to(ROOT)}: {link}")
            elif anchor and target.suffix == ".md" and anchor not in headings(target):
                faults.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
    assert not faults, faults


def test_every_file_that_is_named_exists():
    """Paths of the repository in code spans."""
    span = re.compile(r"`((?:scripts|configs|docs|ldm|basicsr_deg|tests|assets|comfyui)/[a-z][\w./-]+\.\w+)`")
    named = {(page.name, path) for page in PAGES for path in span.findall(page.read_text(encoding="utf-8"))}
    missing = {(page, path) for page, path in named if not (ROOT / path).exists() and path not in GENERATED}
    placeholders = re.compile(r"/(?:FAMILY|NAME)\b")
    assert len(named) > 20 and not {pair for pair in missing if not placeholders.search(pair[1])}


def test_the_faq_answers_thirty_questions():
    text = (ROOT / "docs" / "FAQ.md").read_text(encoding="utf-8")
    assert sorted(map(int, re.findall(r"^### (\d+)\. ", text, re.MULTILINE))) == list(range(1, 31))


def test_settings_have_the_defaults_of_the_code():
    from ldm.engine.jobs import JobOptions
    from scripts import document_settings

    text = document_settings.page()
    assert f"| `save_every` | `{JobOptions().save_every}` |" in text
    assert "| `method.params.sampling.params.noise_level` | `120` |" in text
    assert "| `--ddpm_steps` | positive int | `50`" in text


def test_the_versions_of_the_citation_and_the_nodes_are_that_of_the_package():
    import ldm

    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ldm.__version__}\n" in text
    nodes = (ROOT / "comfyui" / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{ldm.__version__}"\n' in nodes


@pytest.mark.slow  # builds the site
def test_the_site_builds_without_a_warning(tmp_path):
    if any(importlib.util.find_spec(name) is None for name in ("material", "mkdocs", "mkdocstrings")):
        pytest.skip("no mkdocs here; make extras")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "SETTINGS.html", "FAQ.html", "API.html", "CHANGELOG.html"} <= pages
    loaded = re.compile(r"""<(?:script|img)[^>]+src=["']?https?:|<link[^>]+(?:stylesheet|preload)[^>]+https?:""")
    assert not [page for page in pages if loaded.search((tmp_path / "site" / page).read_text(encoding="utf-8"))]
