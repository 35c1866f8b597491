"""Workers that are played by threads, for tests of the supervisor."""

import json
import os
import threading
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from milbench.trials.store import Store
from tests.builders.results import finished


class Actor:
    """Stands for a worker process; its script gets (pipe, store) and returns an exit code."""

    def __init__(self, script, pipe, kept):
        self.exitcode, self.killed, self._script = None, False, script
        self.pipe = Connection(os.dup(pipe.fileno()))  # the supervisor closes the one it passes
        self._kept = kept

    def start(self):
        threading.Thread(target=self._play, daemon=True).start()

    def _play(self):
        try:
            setup = self.pipe.recv()
            code = self._script(self.pipe, Store(setup.settings.results, setup.writer))
        except EOFError:
            code = 0
        if self._script in HOLDS_ITS_PIPE:
            self._kept.append(self.pipe)
        else:
            self.pipe.close()
        if code is not None:
            self.exitcode = code

    def kill(self):
        self.killed, self.exitcode = True, -9

    def close(self):
        assert self.exitcode is not None


class Stage:
    """A context for the supervisor that hires these, one after the other, and the last again and again."""

    Pipe = staticmethod(Pipe)

    def __init__(self, *scripts):
        self.scripts, self.hired, self.kept = deque(scripts), [], []

    def Process(self, target, args, daemon):  # noqa: N802 - as multiprocessing calls it
        script = self.scripts.popleft() if len(self.scripts) > 1 else self.scripts[0]
        self.hired.append(Actor(script, args[0], self.kept))
        return self.hired[-1]


def say(pipe, **message):
    os.write(pipe.fileno(), b"\n" + json.dumps(message).encode() + b"\n")


HOLDS_ITS_PIPE = set()  # scripts that end with their pipe open, in a child


def take(pipe):
    job, _ = pipe.recv()
    say(pipe, said="started", trial=job.spec.trial_id)
    return job


def serve(pipe, store):
    """A worker as it should be."""
    while True:
        one(pipe, store)


def one(pipe, store, end=0):
    """One trial well done, and then the end."""
    job = take(pipe)
    store.write(finished(job.spec))
    say(pipe, said="done", trial=job.spec.trial_id)
    return end
