"""House rules a linter does not know. Reads text and syntax only."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("ldm", "basicsr_deg", "scripts", "tests", "main.py")
FILES = [
    file
    for top in TOPS
    for file in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))
    if file.exists()
]
SOURCES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
PRODUCT = [name for name in SOURCES if not name.startswith("tests/")]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8
# Folders of one machine; put together here so that this file does not hold what it looks for.
MACHINE_FOLDERS = ["home", "root", "work", "Users", "mnt", "opt", "data", "tmp"]
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:" + "|".join(MACHINE_FOLDERS) + r")/")
# Always said with their module, as in config.load and checkpoint.load, like json.load and pickle.load.
VERBS = {"load", "save", "read"}


def public_homes(trees) -> dict[str, list[str]]:
    """Where each public class or function of a module's top level is defined."""
    homes = defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTION)) and not node.name.startswith("_"):
                homes[node.name].append(f"{name}:{node.lineno}")
    return homes


def functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTION))


def parameters(function) -> int:
    """Parameters a caller can name, without self or cls."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_a_public_name_is_defined_once():
    rooms = {name: tree for name, tree in TREES.items() if name.startswith(("ldm/", "basicsr_deg/"))}
    homes = public_homes(rooms)
    twice = {name: places for name, places in homes.items() if len(places) > 1 and name not in VERBS}
    assert not twice, twice
    assert all(len({p.split(":")[0] for p in homes[name]}) == len(homes[name]) for name in VERBS & homes.keys())


@pytest.mark.parametrize("name", PRODUCT)
def test_verbs_are_called_through_their_module(name):
    imports = (node for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom))
    package = name.removesuffix("/__init__.py").replace("/", ".")
    bare = [a.name for n in imports for a in n.names if a.name in VERBS and not n.module.startswith(f"{package}.")]
    assert not bare, f"{name}: import the module and call module.{bare[0]}"


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_short(name):
    lines = SOURCES[name].count("\n")
    assert lines <= MAX_FILE, f"{name} has {lines} lines, expected at most {MAX_FILE}"


@pytest.mark.parametrize("name", PRODUCT)
def test_functions_are_short(name):
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(TREES[name])}
    assert not {k: v for k, v in long.items() if v > MAX_FUNCTION}, f"{name}: expected at most {MAX_FUNCTION} lines"


@pytest.mark.parametrize("name", [name for name in PRODUCT if not name.startswith("ldm/nets/")])
def test_functions_have_few_parameters(name):
    many = {f.name: parameters(f) for f in functions(TREES[name]) if parameters(f) > MAX_PARAMETERS}
    assert not many, f"{name}: expected at most {MAX_PARAMETERS} parameters, got {many}"


@pytest.mark.parametrize("name", SOURCES)
def test_no_path_of_one_machine(name):
    found = [line for line in SOURCES[name].splitlines() if MACHINE_PATH.search(line)]
    assert not found, f"{name}: absolute path in {found[0].strip()!r}"


@pytest.mark.parametrize("name", PRODUCT)
def test_nothing_is_left_unfinished(name):
    found = re.findall(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b", SOURCES[name])
    assert not found, f"{name}: {found}"


@pytest.mark.parametrize("name", [name for name in PRODUCT if name.startswith("ldm/")])
def test_no_caught_error_is_dropped(name):
    handlers = (node for node in ast.walk(TREES[name]) if isinstance(node, ast.ExceptHandler))
    silent = [h.lineno for h in handlers if h.type is None or all(isinstance(n, ast.Pass) for n in h.body)]
    assert not silent, f"{name}: bare or empty except in lines {silent}"


def test_tests_have_names_of_their_own():
    names = [Path(name).name for name in SOURCES if name.startswith("tests/") and Path(name).name.startswith("test_")]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})


def test_the_rules_see_what_they_look_for():
    sources = {"a.py": "def f(): ...\nclass _P: ...", "b.py": "def f(self, a, *, b): ...\nclass _P: ..."}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    assert public_homes(trees) == {"f": ["a.py:1", "b.py:1"]}
    assert parameters(trees["b.py"].body[0]) == 2
    assert MACHINE_PATH.search("x = '/" + "home/me/x'") and not MACHINE_PATH.search("a/home/b ../shared/work/x")


def test_every_file_stands_in_the_list_of_files():
    listed = (ROOT / "docs" / "FILES.md").read_text(encoding="utf-8")
    names = [Path(name).name for name in PRODUCT if not name.endswith("__init__.py")]
    assert not [name for name in names if not re.search(rf"(?<![\w]){re.escape(name)}", listed)]


def test_every_quirk_that_is_named_is_listed():
    listed = set(
        re.findall(r"^\| (B\d+) \|", (ROOT / "docs" / "RELEASED.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    texts = [*SOURCES.values(), *(file.read_text(encoding="utf-8") for file in (ROOT / "configs").rglob("*.yaml"))]
    named = {name for text in texts for name in re.findall(r"(?<![\w.-])(B\d{1,2})(?![\w.])", text)}
    assert named and named <= listed, named - listed
