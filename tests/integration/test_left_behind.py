"""A test run that is killed leaves no process of its tests behind."""

import subprocess
import sys
from pathlib import Path

from tests.reaper import marked
from tests.service import wait_until

RUN = """
import os, subprocess, sys, time
from tests.reaper import VARIABLE, nothing_left_behind
with nothing_left_behind():
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(child, start_new_session=True)
    print(os.environ[VARIABLE], flush=True)
    if len(sys.argv) == 1:
        time.sleep(600)
"""
ROOT = Path(__file__).parents[2]


def test_a_killed_run_leaves_nothing_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        mark = run.stdout.readline().strip()
        assert len(marked(mark)) == 1
        run.kill()

    wait_until(lambda: not marked(mark), seconds=30, what="the end of what it started")


def test_neither_does_one_that_ends() -> None:
    done = subprocess.run([sys.executable, "-c", RUN, "end"], cwd=ROOT, stdout=subprocess.PIPE, check=True)

    assert not marked(done.stdout.decode().strip())
