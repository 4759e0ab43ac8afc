"""Rules of the project that no linter checks. Reads text and syntax only."""

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPS = ("ldm", "basicsr_deg", "scripts", "tests", "main.py")
FILES = [
    file
    for top in TOPS
    for file in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))
    if file.exists()
]
SOURCES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}
PRODUCT = [name for name in SOURCES if not name.startswith("tests/")]
DISTRIBUTIONS = {  # module: the distribution that has it, where names differ
    "PIL": "pillow",
    "markupsafe": "MarkupSafe",
    "cv2": "opencv-python-headless",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "pytorch_lightning": "pytorch-lightning",
    "DISTS_pytorch": "DISTS-pytorch",
    "yaml": "PyYAML",
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8
# Folders of one machine, put together here so that this file does not contain such a path.
MACHINE_FOLDERS = ["home", "root", "work", "Users", "mnt", "opt", "data", "tmp"]
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:" + "|".join(MACHINE_FOLDERS) + r")/")
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
OWN = ("self", "cls")
PUBLIC_UNDERSCORES = {"_replace", "_exit", "_core"}  # of named tuples, os and numpy
PRIVATE_STILL = {  # tests that still use private names; the list only shrinks
    "tests/metrics/test_niqe.py",
    "tests/metrics/test_video_quality.py",
    "tests/scripts/test_benchmark.py",
    "tests/training/test_callbacks.py",
    "tests/training/test_stage_one.py",
}
# Words of a private dialect, one pattern per line, in a file that these tests do not search.
DIALECT = (ROOT / "tests" / "dialect.txt").read_text(encoding="utf-8").split("\n")
DIALECT_WORD = re.compile(r"\b(?:" + "|".join(filter(None, DIALECT)) + r")\b", re.IGNORECASE)
WRITTEN = ("README.md", "CHANGELOG.md", "docs/**/*.md", "configs/**/*.yaml", "assets/**/*.yaml", "assets/**/*.md")
# Always called through their module, as in config.load and checkpoint.load, like json.load and pickle.load.
VERBS = {"load", "save", "read"}


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax of each file; read when a test asks, since every process of a run collects all tests."""
    return {name: ast.parse(source) for name, source in SOURCES.items()}


def public_homes(modules) -> dict[str, list[str]]:
    """Return where each public class or function at the top level of a module is defined."""
    homes = defaultdict(list)
    for name, tree in modules.items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTION)) and not node.name.startswith("_"):
                homes[node.name].append(f"{name}:{node.lineno}")
    return homes


def functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTION))


def parameters(function) -> int:
    """Return the number of parameters without self and cls."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_a_public_name_is_defined_once():
    rooms = {name: tree for name, tree in trees().items() if name.startswith(("ldm/", "basicsr_deg/"))}
    homes = public_homes(rooms)
    twice = {name: places for name, places in homes.items() if len(places) > 1 and name not in VERBS}
    assert not twice, twice
    assert all(len({p.split(":")[0] for p in homes[name]}) == len(homes[name]) for name in VERBS & homes.keys())


def test_verbs_are_called_through_their_module():
    bare = []
    for name in PRODUCT:
        package = name.removesuffix("/__init__.py").replace("/", ".")
        imports = [node for node in ast.walk(trees()[name]) if isinstance(node, ast.ImportFrom)]
        names = [a.name for n in imports for a in n.names if not n.module.startswith(f"{package}.")]
        bare += [f"{name}: import the module and call module.{verb}" for verb in names if verb in VERBS]
    assert not bare


def test_files_are_short():
    lengths = {name: source.count("\n") for name, source in SOURCES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE}


def test_functions_are_short():
    lengths = {f"{name}:{f.name}": f.end_lineno - f.lineno + 1 for name in PRODUCT for f in functions(trees()[name])}
    assert not {place: lines for place, lines in lengths.items() if lines > MAX_FUNCTION}


def test_functions_have_few_parameters():
    names = [name for name in PRODUCT if not name.startswith("ldm/nets/")]
    counts = {f"{name}:{f.name}": parameters(f) for name in names for f in functions(trees()[name])}
    assert not {place: count for place, count in counts.items() if count > MAX_PARAMETERS}


def lines_with(pattern: re.Pattern, texts: dict[str, str]) -> list[str]:
    """`file:line: text` of every line in which the pattern occurs."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine():
    assert not lines_with(MACHINE_PATH, SOURCES)


def test_nothing_is_left_unfinished():
    assert not lines_with(UNFINISHED, {name: SOURCES[name] for name in PRODUCT})


def test_no_caught_error_is_dropped():
    silent = [
        f"{name}:{node.lineno}"
        for name in PRODUCT
        if name.startswith("ldm/")
        for node in ast.walk(trees()[name])
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(isinstance(line, ast.Pass) for line in node.body))
    ]
    assert not silent, "bare or empty except"


def private_names(tree) -> list[str]:
    """Names with one leading underscore that are imported, or read from something other than self or cls."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in OWN):
            found.append(node.attr)
    return [name for name in found if re.match(r"_[^_]", name) and name not in PUBLIC_UNDERSCORES]


def test_tests_use_public_names():
    found = {name: private_names(tree) for name, tree in trees().items() if name.startswith("tests/")}
    assert not {name: names for name, names in found.items() if names and name not in PRIVATE_STILL}


def test_no_word_of_a_private_dialect():
    written = [file for pattern in WRITTEN for file in sorted(ROOT.glob(pattern))]
    texts = SOURCES | {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in written}
    assert not lines_with(DIALECT_WORD, texts)


def test_tests_have_names_of_their_own():
    names = [Path(name).name for name in SOURCES if name.startswith("tests/") and Path(name).name.startswith("test_")]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})


def test_the_rules_see_what_they_look_for():
    sources = {"a.py": "def f(): ...\nclass _P: ...", "b.py": "def f(self, a, *, b): ...\nclass _P: ..."}
    modules = {name: ast.parse(source) for name, source in sources.items()}
    assert public_homes(modules) == {"f": ["a.py:1", "b.py:1"]}
    assert parameters(modules["b.py"].body[0]) == 2
    assert lines_with(DIALECT_WORD, {"a.py": "one\n# Read it an" + "ew", "b.py": "renewed"}) == [
        "a.py:2: # Read it an" + "ew"
    ]
    assert private_names(ast.parse("from a import _b\nself._c\nd._e._f\n__g__")) == ["_b", "_f", "_e"]
    assert MACHINE_PATH.search("x = '/" + "home/me/x'") and not MACHINE_PATH.search("a/home/b ../shared/work/x")


def test_every_imported_package_is_declared():
    """As a dependency or an extra of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    declared = {re.split(r"[><=]", word)[0] for word in re.findall(r'"([\w.<>=-]+)"', text)}
    tops = {
        name.split(".")[0]
        for file in PRODUCT
        for node in ast.walk(trees()[file])
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    foreign = tops - set(sys.stdlib_module_names) - {"ldm", "basicsr_deg", "scripts"}
    assert {"torch", "cv2"} <= foreign
    assert not {name for name in foreign if DISTRIBUTIONS.get(name, name) not in declared}


def test_every_quirk_that_is_named_is_listed():
    listed = set(
        re.findall(r"^\| (B\d+) \|", (ROOT / "docs" / "RELEASED.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    texts = [*SOURCES.values(), *(file.read_text(encoding="utf-8") for file in (ROOT / "configs").rglob("*.yaml"))]
    named = {name for text in texts for name in re.findall(r"(?<![\w.-])(B\d{1,2})(?![\w.])", text)}
    assert named and named <= listed, named - listed
