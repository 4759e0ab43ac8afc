"""Claims: one owner at a time, and what a process that ends without releasing its claim leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ldm.engine import claims
from ldm.engine.claims import ClaimError, holder, take
from ldm.engine.sharing import share

OTHER = json.dumps({"process": 7, "host": "elsewhere", "machine": "another", "locked": True})


@pytest.fixture
def place(tmp_path):
    return tmp_path / "clip.mp4"


def claim_of(place, number=1, age=0.0, content=OTHER):
    """The claim of a process on another machine, whose last heartbeat was `age` seconds ago."""
    path = place.with_name(f".{place.name}.claim-{number}")
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_process_has_a_claim_at_a_time(place):
    with take(place), take(place.with_name("other.mp4")):
        assert take(place) is None
        assert holder(place).startswith(f"process {os.getpid()} on ")
    assert not list(place.parent.iterdir())
    take(place).release()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_the_claim_of_a_killed_process_is_free_at_once(place):
    program = "import sys, time, pathlib; from ldm.engine.claims import take; claim = take(pathlib.Path(sys.argv[1]));"
    words = [sys.executable, "-c", f"{program} print(1, flush=True); time.sleep(60)", str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert take(place) is None
        process.kill()
    with take(place) as claim:
        assert claim.number == 2
    assert not list(place.parent.iterdir())


def test_heartbeats_decide_between_machines(place):
    claim_of(place, age=claims.STALE - 30)
    assert take(place) is None and holder(place) == "process 7 on elsewhere"
    claim_of(place, age=claims.STALE + 30)
    with take(place) as claim:
        assert claim.number == 2 and take(place) is None


@pytest.mark.skipif(claims.fcntl is None, reason="no locks on this system")
def test_a_lock_counts_more_than_an_old_heartbeat(place):
    with take(place):
        os.utime(place.with_name(f".{place.name}.claim-1"), (0, 0))
        assert take(place) is None


@pytest.mark.parametrize("content", ["", "{", "[" * 3000, "[1]"])
def test_an_unreadable_claim_ages_too(place, content):
    claim_of(place, content=content)
    assert take(place) is None and holder(place) == "another process"
    claim_of(place, content=content, age=claims.STALE + 1)
    take(place).release()


def test_a_link_is_not_a_claim(place):
    path = claim_of(place)
    path.unlink()
    path.symlink_to(place.with_name("elsewhere"))
    with pytest.raises(ClaimError, match="cannot be claimed"):
        take(place)
    assert not place.with_name("elsewhere").exists()


def test_an_abandoned_claim_has_one_heir(place):
    """Many threads find it at the same time; the lock is per open file, so that threads are like processes."""
    claim_of(place, age=claims.STALE + 30)
    start, made = threading.Barrier(8), []

    def heir():
        start.wait()
        made.append(take(place))

    threads = [threading.Thread(target=heir) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and [claim.number for claim in made if claim] == [2]


def test_an_owner_notices_that_it_lost_its_claim(place, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    claim = take(place)
    claim.check()
    later = claim_of(place, 2)
    deadline = time.monotonic() + 5
    with pytest.raises(ClaimError, match="has taken over"):
        while time.monotonic() < deadline:
            claim.check()
            time.sleep(0.01)
    claim.release()
    assert later.exists()


def test_a_heartbeat_keeps_a_claim_young(place, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with take(place):
        path = place.with_name(f".{place.name}.claim-1")
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 60


def test_free_items_are_taken_and_held_ones_are_left(tmp_path):
    abandoned = [claim_of(tmp_path / "b")]
    done = []

    def work(item, claim):
        done.append(item)
        if item == "c":  # the owner of b dies meanwhile
            os.utime(abandoned[0], (0, 0))
        return item != "a"

    with take(tmp_path / "d"):
        assert share("abcd", work, place=tmp_path.joinpath) == (1, ["d"])
    assert done == ["a", "c", "b"]
