"""What the commands share: progress bars, exit status, and output on the terminal."""

import logging
import os
import subprocess
import sys

import pytest
import rich.progress

from scripts import command


def test_a_bar_starts_at_the_step_of_an_earlier_run(monkeypatch):
    seen = []
    note = lambda self, task, **known: seen.append((task, *known.values()))  # noqa: E731
    monkeypatch.setattr(rich.progress.Progress, "update", note)
    with command.progress_bar("clip") as report:
        for call in [("sampling", 5, 9), ("decoding", 3, 7), ("sampling", 6, 9), ("decoding", 4, None)]:
            report(*call)
    shown = [line for line in seen if line[0] > 0]  # 0 is that of the whole, hidden by any other
    assert shown == [(1, 5, 9), (2, 3, 7), (1, 6, 9), (2, 4, None)]


def test_a_finished_line_is_taken_by_the_next_clip(monkeypatch):
    seen = []
    note = lambda self, task, **known: seen.append((task, *known.values()))  # noqa: E731
    monkeypatch.setattr(rich.progress.Progress, "update", note)
    with command.progress_bar("degrading") as report:
        for call in [("a", 1, 2), ("a", 2, 2), ("b", 1, 5), ("b", 5, 5), ("c", 1, 1)]:
            report(*call)
    assert {line[0] for line in seen if line[0] > 0} == {1}


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (lambda: int("x"), 2, "tool.py: invalid literal for int() with base 10: 'x'\n"),
        (lambda: (_ for _ in ()).throw(ValueError("one\ntwo")), 2, "tool.py: one\n"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), 130, "tool.py: stopped\n"),
    ],
)
def test_an_error_is_one_line_and_a_status(capsys, work, status, said):
    raising = work if status in (0, 3) or "literal" in said else lambda: next(work())
    assert command.exit_status("tool.py", raising, stopped="stopped") == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "lists", "overrides"),
    [
        (["--a", "x", "m.p=1"], ["x"], ["m.p=1"]),
        (["--a", "ours=x", "m.p=1", "+m.q=2"], ["ours=x"], ["m.p=1", "+m.q=2"]),
        (["m.p=1", "--a", "x"], ["x"], ["m.p=1"]),
        (["--a", "x", "ours=y"], ["x", "ours=y"], []),
    ],
)
def test_overrides_after_an_option_are_overrides(words, lists, overrides):
    parser = command.Parser("tool.py", "text")
    parser.add_argument("--a", nargs="+", default=[])
    args = parser.parse_with_overrides(words, named=("a",))
    assert (args.a, args.overrides, args.words) == (lists, overrides, words)


def test_options_of_paths_leave_every_override(tmp_path):
    parser, odd = command.Parser("tool.py", "text"), tmp_path / "a=b"
    odd.touch()
    parser.add_argument("--a", nargs="+", default=[])
    words = ["--a", "x.yaml", str(odd), "seed=1", "+init.0.file=" + str(tmp_path)]
    args = parser.parse_with_overrides(words, ("a",))
    assert (args.a, args.overrides) == (words[1:3], words[3:])


def test_mistakes_in_the_code_keep_their_traceback():
    with pytest.raises(KeyError):
        command.exit_status("tool.py", lambda: {}["x"])


def test_messages_stay_in_their_line(capsys):
    def work():
        logging.getLogger("scripts.tool").warning("a\x1b[2J\nb")
        command.tell("c\rd")
        raise ValueError("e\x1bf")

    assert command.exit_status("tool.py", work) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("c\\rd\n", "tool.py: a\\x1b[2J\\nb\ntool.py: e\\x1bf\n")


def test_each_command_of_a_process_logs_under_its_own_name(capsys):
    log = logging.getLogger("scripts.tool")
    for program, level in (("one.py", logging.INFO), ("two.py", logging.WARNING)):
        command.exit_status(program, lambda: log.warning("careful") or log.info("result"), level=level)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("result\n", "one.py: careful\ntwo.py: careful\n")


def test_a_message_of_debug_shows_its_traceback(capsys):
    def work():
        log = logging.getLogger("scripts.tool")
        log.debug("where", exc_info=ValueError("wrong"))

    command.exit_status("tool.py", work, level=logging.DEBUG)
    assert capsys.readouterr().err.splitlines() == ["tool.py: where", "ValueError: wrong"]


def test_an_interruption_with_a_message_shows_it(capsys):
    def work():
        raise KeyboardInterrupt("resume by --resume run")

    assert command.exit_status("tool.py", work, stopped="stopped") == 130
    assert capsys.readouterr().err == "tool.py: resume by --resume run\n"


def test_the_work_continues_without_a_reader_of_stdout(tmp_path):
    done = tmp_path / "done"
    code = f"""
import logging, pathlib
from scripts import command
def work():
    for number in range(3):
        command.tell(number)
        logging.getLogger("ldm").info("step")
    pathlib.Path({str(done)!r}).touch()
raise SystemExit(command.exit_status("tool.py", work, level=logging.INFO))
"""
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr, done.exists()) == (0, "", True)
