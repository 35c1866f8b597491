"""A Ray cluster that is played by threads, for tests of the engine above it."""

import threading
from types import SimpleNamespace


class Lost(Exception):  # noqa: N818 - stands for Ray's
    """A worker's process or node is gone."""


class Wrapped(Exception):  # noqa: N818 - stands for Ray's
    """An error that a task raised, as Ray hands it on."""

    def __init__(self, cause):
        super().__init__(f"somewhere far away: {cause}")
        self.cause = cause


class Cluster:
    """What the engine uses of the module `ray`.

    Args:
        fates: one for each task in turn, the last again and again: called with what runs the worker; "node" is lost when it raises.
        nodes: their resources.
    """

    def __init__(self, *fates, nodes=({"CPU": 2.0},)):
        self.fates, self.begun, self.options, self.canceled, self.ended = list(fates), 0, None, [], False
        self._nodes = nodes

    def is_initialized(self):
        return False

    def init(self, **how):
        if how["address"]:
            raise ConnectionError("Could not find any running Ray instance")

    def shutdown(self):
        self.ended = True

    def put(self, thing):
        return thing

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda *given: self._task(function, given))

    def nodes(self):
        return [{"Alive": True, "Resources": one} for one in self._nodes]

    def _task(self, function, given):
        fate = self.fates.pop(0) if len(self.fates) > 1 else self.fates[0]
        self.begun += 1
        task = SimpleNamespace(error=None, thread=None)

        def play():
            try:
                fate(lambda: function(*given))
            except Lost as error:
                task.error = error
            except Exception as error:
                task.error = Wrapped(error)

        task.thread = threading.Thread(target=play, daemon=True)
        task.thread.start()
        return task

    def wait(self, tasks, num_returns, timeout):
        for task in tasks:
            task.thread.join(timeout / len(tasks))
        done = [task for task in tasks if not task.thread.is_alive()]
        return done, [task for task in tasks if task not in done]

    def get(self, task):
        if task.error:
            raise task.error

    def cancel(self, task):
        self.canceled.append(task)
