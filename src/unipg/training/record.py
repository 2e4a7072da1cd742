"""`run.json`: what ran, on what machine and versions, and how it ended."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unipg.algorithms.base import Algorithm
from unipg.files import write_file
from unipg.policies.base import Policy
from unipg.training.collapse import Finding
from unipg.training.folder import untouched
from unipg.training.observer import Stopped
from unipg.training.observers import last_and_best
from unipg.training.recipe import Recipe
from unipg.training.trainer import Trainer

PACKAGES = ("unipg", "torch", "transformers", "tokenizers", "reasoning-gym", "gymnasium", "peft", "datasets", "bm25s", "numpy")


class RunRecord:
    """Keeps `run.json`: what ran, on what, and how it ended."""

    trainer: Trainer | None = None

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        algorithm: Algorithm,
        policy: Policy,
        command: str,
        device: torch.device,
        *,
        continues: bool = False,
        writes: bool = True,
    ) -> None:
        self.path, self.writes = folder / "run.json", writes
        before = earlier(self.path) if continues else {}
        parameters = list(policy.module.parameters())
        self.content: dict[str, Any] = {
            "name": folder.name,
            "algorithm": algorithm.name,
            "status": "running",
            "seed": recipe.seed,
            "started": before.get("started") or _now(),
            "resumed": [*before.get("resumed", []), _now()] if before else [],
            "command": command or " ".join(sys.argv),
            "iterations": recipe.training.iterations,
            "policy": {
                "parameters": sum(p.numel() for p in parameters),
                "trained": sum(p.numel() for p in parameters if p.requires_grad),
                "critic": sum(p.numel() for p in policy.critic_parameters),
            },
            "versions": versions(),
            "machine": {
                "cpu": cpu_name(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            },
            "warnings": [],
        }

    def follow(self, trainer: Trainer) -> None:
        """Keeps what the trainer warns of, and how long it has trained."""
        self.trainer = trainer
        self.content["warnings"] = [dataclasses.asdict(finding) for finding in trainer.watch.found]
        trainer.watch.listeners.append(self._warned)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Writes the record now, and again with the outcome."""
        status = "failed"
        self._write()
        try:
            yield
            status = "finished"
        except (Stopped, KeyboardInterrupt):
            status = "interrupted"
            raise
        finally:
            if self.trainer is not None and self.trainer.ended:
                self.content["ended_early"] = self.trainer.ended
            if measured := last_and_best(self.path.parent):
                self.content["evaluations"] = measured
            seconds = round(self.trainer.seconds, 3) if self.trainer else 0.0
            self.content |= {"status": status, "finished": _now(), "seconds": seconds}
            self._write()

    def _warned(self, finding: Finding) -> None:
        self.content["warnings"].append(dataclasses.asdict(finding))
        self._write()

    def _write(self) -> None:
        if self.writes:
            write_file(self.path, json.dumps(self.content, indent=1), untouched)


def earlier(path: Path) -> dict[str, Any]:
    """The record of a run that is continued; empty where there is none, or none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
