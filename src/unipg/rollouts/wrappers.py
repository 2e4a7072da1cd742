"""Gymnasium wrappers that keep running statistics: what an environment sees through must not differ between training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError

if TYPE_CHECKING:
    import gymnasium

PASSES = frozenset(
    {
        *("Autoreset", "ClipAction", "ClipReward", "HumanRendering", "NormalizeReward", "OrderEnforcing", "PassiveEnvChecker"),
        *("RecordEpisodeStatistics", "RecordVideo", "RenderCollection", "RescaleAction", "TimeLimit", "TransformAction", "TransformReward"),
    }
)
"""Gymnasium's wrappers that leave observations as they are."""


def take_normalizers(environments: gymnasium.vector.VectorEnv, name: str) -> bool:
    """Switches off every NormalizeObservation of `environments`, which give plain observations from then on; whether there was any.

    Errors: `InputError` where something around the wrapper reads its observations, and for foreign wrappers with running statistics.
    """
    found = False
    for layers in _layers(environments):
        outside: list[Any] = []
        for layer in layers:
            if "obs_rms" in vars(layer):
                reader = next((outer for outer in outside if not _is_gymnasiums(outer, PASSES)), None)
                ours = _is_gymnasiums(layer, {"NormalizeObservation"})
                if not ours or reader is not None:
                    why = f"inside of {type(reader).__name__}" if ours else "an unknown normaliser of observations"
                    raise InputError(
                        f"environment '{name}' is wrapped by {type(layer).__name__}, {why}: its running statistics are in no saved model "
                        "and not shared with evaluations; accepted: an environment without it, and controller.normalize_observations: true"
                    )
                _switch_off(layer, layer.obs_rms)
                found = True
            outside.append(layer)
    return found


def show_own_rewards(environments: gymnasium.vector.VectorEnv) -> None:
    """Switches off every NormalizeReward: evaluations measure the environment's own rewards."""
    for layers in _layers(environments):
        for layer in layers:
            if _is_gymnasiums(layer, {"NormalizeReward"}):
                _switch_off(layer, layer.return_rms)


def _switch_off(layer: Any, statistics: Any) -> None:
    """What it gives is then (x − 0) / sqrt(1)."""
    layer.update_running_mean = False
    statistics.mean = statistics.mean * 0
    statistics.var = statistics.var * 0 + (1 - layer.epsilon)


def _layers(environments: Any) -> Iterator[list[Any]]:
    """The wrappers of each environment, from the outside to the inside, those of the array of environments before its own."""
    outer: list[Any] = []
    while "env" in vars(environments):
        outer.append(environments)
        environments = environments.env
    for environment in vars(environments).get("envs", [environments]):
        inner: list[Any] = []
        while "env" in vars(environment):
            inner.append(environment)
            environment = environment.env
        yield outer + inner


def _is_gymnasiums(layer: Any, names: frozenset[str] | set[str]) -> bool:
    return type(layer).__module__.startswith("gymnasium.") and type(layer).__name__ in names
