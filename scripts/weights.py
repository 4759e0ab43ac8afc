"""List, check and download the weight files of the model families. Nothing is downloaded unless you ask for it.

vsr-weights list
vsr-weights download mgldvsr                       # all files of a family, into weights/mgldvsr
vsr-weights download stablevsr/raft_large --yes    # one file, without a question
vsr-weights check mgldvsr --folder weights/mgldvsr

HF_ENDPOINT names a mirror of the Hugging Face Hub. Without a network, `list` says what to put where.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm import config
from ldm.engine.assemble import family_cards, read_model, used_files, weight_files
from ldm.weights import record
from ldm.weights.download import DownloadError, Fetched, NotFound, fetch
from ldm.weights.origins import HUB, Origin, is_inside
from scripts.command import Parser, exit_status, progress_bar, tell

PROGRAM = "weights.py"
FOLDER = Path("weights")  # FOLDER/FAMILY unless --folder names another
OFFLINE = ("1", "true", "yes", "on")
WHOLE_HASH = 64  # hexadecimal digits; of some files only the first eight are known, from their names
DOCUMENT_SIZE = 1 << 20  # bytes of a JSON file beside weights, at most about


@dataclass(frozen=True)
class Choice:
    """One file of a family: whether the family's own settings need it, and its source."""

    family: str
    source: Origin
    needed: bool

    @property
    def name(self) -> str:
        return f"{self.family}/{self.source.name}"


def choices_of(card: Path) -> tuple[list[Choice], list[str]]:
    """Return the files of a family, and the JSON files that lie beside them."""
    settings, found = read_model(card), []
    used = used_files(settings)
    for entry in weight_files(settings):
        if entry.source:
            needed = entry in used and not (entry.optional or entry.spare)
            found.append(Choice(str(settings["family"]), Origin.of(entry), needed))
    documents = [str(path) for path in config.plain(settings.get("documents") or {}).values()]
    return found, [path for path in documents if is_inside(path)]


@functools.cache
def catalogue() -> dict[str, tuple[list[Choice], list[str]]]:
    """Return family -> its files and JSON files, of the families that name sources."""
    families = ((card.parent.name, choices_of(card)) for card in family_cards())
    return {name: chosen for name, chosen in families if chosen[0] and name == chosen[0][0].family}


def arguments(words: list[str] | None = None):
    parser = Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | check | download")
    listed = "list all files: size, licence, where they are and where to put them"
    commands.add_parser("list", help=listed, prog=f"{PROGRAM} list", description=listed)
    for name, text in (("check", "compare files with their known or recorded hashes"), ("download", "download files")):
        command = commands.add_parser(name, help=text, prog=f"{PROGRAM} {name}", description=text)
        command.add_argument("name", help="a family, or FAMILY/FILE as `list` prints it")
        command.add_argument("--folder", type=Path, help="folder of the weights (default: weights/FAMILY)")
    command.add_argument("--all", action="store_true", help="also the files that only some settings need")
    command.add_argument("--yes", action="store_true", help="do not ask before the download")
    args = parser.parse_args(words)
    args.folder = getattr(args, "folder", None)
    return args


def find_choices(name: str, *, optional: bool) -> tuple[list[Choice], list[str]]:
    """Return the files that a name stands for, and their JSON files. Raises ValueError for an unknown name."""
    families = catalogue()
    family, slash, file = name.partition("/")
    if family not in families and not slash:
        family, file = next((one for one in families if file_named(families[one][0], name)), family), name
    if family not in families or (file and not file_named(families[family][0], file)):
        known = [*families, *(choice.name for choices, _ in families.values() for choice in choices)]
        raise ValueError(f"got {name!r}, expected one of {', '.join(known)}")
    choices, documents = families[family]
    if file:
        return file_named(choices, file), []
    return [choice for choice in choices if choice.needed or optional], documents


def file_named(choices: Iterable[Choice], file: str) -> list[Choice]:
    return [choice for choice in choices if choice.source.name == file]


def size_text(size: int) -> str:
    if not size:
        return "size unknown"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def show_list() -> int:
    for family, (choices, documents) in catalogue().items():
        tell(f"{family}: put the files into one folder, {FOLDER / family}, for --weights {FOLDER / family}")
        for choice in choices:
            show(choice)
        for path in documents:
            tell(f"    {path}: from {choices[0].source.place}")
    return 0


def show(choice: Choice) -> None:
    """Print name, size, licence, place and hash of a file."""
    source = choice.source
    needed = "needed" if choice.needed else "for some settings"
    how = "" if source.addresses() else " (by hand)"
    suffixes = dict.fromkeys(source.saved_as(address) for address in source.addresses())
    target = " or ".join(suffixes) or source.target
    tell(f"  {choice.name} ({needed}, about {size_text(source.size)}): {target}")
    known = source.sha256 or "unknown"
    digits = f"{known}..." if source.sha256 and len(source.sha256) < WHOLE_HASH else known
    tell(f"    from {source.place}{how}; licence: {source.licence}; SHA-256: {digits}")


# ---- check


def check(choices: list[Choice], folder: Path) -> int:
    """Print the state of every file; 2 if one differs or a needed one is missing."""
    files, bad = record.read_record(folder), False
    for choice in choices:
        path = present(choice.source, folder)
        name = path.relative_to(folder).as_posix() if path else choice.source.target
        found = record.check_file(path or folder / name, choice.source.sha256, files.get(name, {}))
        bad |= found.state == record.DIFFERENT or (found.state == record.ABSENT and choice.needed)
        tell(f"{choice.name}: {found.text}")
    return 2 if bad else 0


def present(source: Origin, folder: Path) -> Path | None:
    """Return the path of a file that is in the folder."""
    names = dict.fromkeys([source.target, *(source.saved_as(address) for address in source.addresses())])
    return next((folder / name for name in names if (folder / name).is_file()), None)


# ---- download


def download(choices: list[Choice], documents: list[str], folder: Path, *, endpoint: str, sure: Callable) -> int:
    """Download what is missing, after showing the licences and asking `sure(question)`; the exit status.

    Raises ValueError or OSError. Files that a person must fetch are named at the end, with status 2.
    """
    missing = [choice for choice in choices if present(choice.source, folder) is None]
    by_hand = [choice for choice in missing if not choice.source.addresses(endpoint)]
    wanted = [choice for choice in missing if choice not in by_hand]
    documents = [path for path in documents if not (folder / path).is_file()] if choices else []
    for choice in choices:
        if choice not in missing:
            tell(f"{choice.name}: there already ({present(choice.source, folder)})")
    if wanted or documents:
        for choice in wanted:
            show(choice)
        total = sum(choice.source.size for choice in wanted)
        if not sure(f"Download about {size_text(total)} into {folder}, under these licences?"):
            tell("nothing downloaded")
            return 2
        for choice in wanted:
            download_file(choice.source, choice.source.addresses(endpoint), folder)
        for path in documents:
            document = Origin(path, path, licence=choices[0].source.licence, size=DOCUMENT_SIZE)
            download_file(document, choices[0].source.beside(path, endpoint), folder, name=path)
    for choice in by_hand:
        source = choice.source
        what = f"save it as {folder / source.target} with its suffix"
        tell(f"{choice.name}: fetch it by hand from {source.place} and {what}")
    return 2 if any(choice.needed for choice in by_hand) else 0


def download_file(source: Origin, addresses: list[str], folder: Path, *, name: str = "") -> Fetched:
    """Download a file from the first address that has it, and record its hash. Raises DownloadError."""
    for number, address in enumerate(addresses, 1):
        target = name or source.saved_as(address)
        try:
            with progress_bar(target) as report:
                fetched = fetch(
                    address,
                    folder / target,
                    size=source.size,
                    sha256=source.sha256,
                    report=lambda done, total, report=report, target=target: report(target, done, total),
                )
        except NotFound:
            if number == len(addresses):
                raise
            continue
        known = record.read_record(folder).get(target, {}).get("first_sha256")
        record.add_to_record(folder, target, fetched, source.licence)
        state = "as the server states" if fetched.stated else "recorded, not verified"
        state = "as published" if source.sha256 else state
        tell(f"{folder / target}: {size_text(fetched.size)}, SHA-256 {fetched.sha256} ({state})")
        if known and known != fetched.sha256:
            tell(f"{folder / target}: differs from the file of the first download (SHA-256 {known})")
        return fetched
    raise DownloadError(f"{source.name}: no address is known; see `list`")


def ask(question: str) -> bool:
    """Ask on the terminal. Raises ValueError where there is none."""
    if not sys.stdin.isatty():
        raise ValueError("got no terminal to ask on, expected --yes, which accepts the licences above")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def run(args) -> int:
    if args.command == "list":
        return show_list()
    choices, documents = find_choices(args.name, optional=args.command == "check" or args.all)
    folder = args.folder or FOLDER / choices[0].family
    if args.command == "check":
        return check(choices, folder)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE:
        places = "; ".join(f"{choice.source.place} -> {folder / choice.source.target}" for choice in choices)
        raise ValueError(f"got HF_HUB_OFFLINE, so nothing is downloaded; elsewhere, copy {places}")
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    return download(choices, documents, folder, endpoint=endpoint, sure=(lambda question: True) if args.yes else ask)


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped="interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
