"""Engines: where trials run. An engine takes jobs and reports events; results go to the store by themselves."""

from milbench.engines.base import Done, Engine, Epoch, Event, Run, Started
from milbench.engines.local import run_local
from milbench.engines.ray import run_ray

__all__ = ["Done", "Engine", "Epoch", "Event", "Run", "Started", "run_local", "run_ray"]
