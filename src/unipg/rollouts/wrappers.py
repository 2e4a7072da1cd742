"""Wrappers of environments: anyone's, by dotted path; and Gymnasium's that keep running statistics, since what an environment is seen
through must not differ between training and evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError, one_line
from unipg.loading import callable_named
from unipg.settings import unknown_key

if TYPE_CHECKING:
    import gymnasium

PATH = "path"
"""Key of a wrapper's mapping that names it; every other one is an argument."""

PASSES = frozenset(
    {
        *("Autoreset", "ClipAction", "ClipReward", "HumanRendering", "NormalizeReward", "OrderEnforcing", "PassiveEnvChecker"),
        *("RecordEpisodeStatistics", "RecordVideo", "RenderCollection", "RescaleAction", "TimeLimit", "TransformAction", "TransformReward"),
    }
)
"""Gymnasium's wrappers that leave observations as they are."""


def check_wrappers(wrappers: Sequence[Any]) -> None:
    """Refuses entries that are neither a dotted path nor a mapping with one."""
    for number, entry in enumerate(wrappers):
        path = entry.get(PATH) if isinstance(entry, dict) else entry
        if not isinstance(path, str) or not path or (isinstance(entry, dict) and not all(isinstance(name, str) for name in entry)):
            raise InputError(f"environment.wrappers[{number}] is {entry!r}; accepted: package.module.Wrapper, or {{path: …, argument: …}}")


@dataclass(frozen=True)
class Wrap:
    """Puts one wrapper around an environment. Two of the same entry are equal, as environments are that can be made again."""

    place: str
    """Where it stands in the recipe, for errors."""
    path: str
    arguments: dict[str, Any]

    @property
    def wrapper(self) -> Callable[..., Any]:
        return callable_named(self.path, self.place, classes=True, fits=self._offered)

    def _offered(self, thing: Any) -> bool:
        """Whether it is a wrapper that its module defines, and has not only imported."""
        import gymnasium

        home = self.path.replace(":", ".").rpartition(".")[0]
        return isinstance(thing, type) and issubclass(thing, gymnasium.Wrapper) and f"{thing.__module__}.".startswith(f"{home}.")

    def __call__(self, environment: gymnasium.Env) -> gymnasium.Env:
        """Errors: `InputError` for an argument that does not exist, a wrapper that fails, and one that makes no environment."""
        import gymnasium

        wrapper = self.wrapper
        try:
            made = wrapper(environment, **self.arguments)
        except InputError:
            raise
        except Exception as error:  # whatever a foreign wrapper raises
            _check_arguments(wrapper, self.arguments, self.place)
            given = f" with {self.arguments}" if self.arguments else ""
            raise InputError(f"{self.place}: '{self.path}'{given} cannot be put around the environment: {one_line(error)}") from error
        if not isinstance(made, gymnasium.Env):
            raise InputError(
                f"{self.place}: '{self.path}' made a {type(made).__name__} of an environment; accepted: what makes another one"
            )
        return made


def wraps(wrappers: Sequence[Any]) -> list[Wrap]:
    """What puts each wrapper around one environment, the first innermost. Errors: `InputError` for a path that does not exist."""
    found = []
    for number, entry in enumerate(wrappers):
        path, arguments = (entry[PATH], {k: v for k, v in entry.items() if k != PATH}) if isinstance(entry, dict) else (entry, {})
        found.append(Wrap(f"environment.wrappers[{number}]", path, arguments))
        _ = found[-1].wrapper
    return found


def _check_arguments(wrapper: Callable[..., Any], arguments: dict[str, Any], place: str) -> None:
    """Refuses an argument that the wrapper has no name for; where its names cannot be read, nothing is known."""
    try:
        parameters = inspect.signature(wrapper).parameters
    except (TypeError, ValueError):
        return
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise unknown_key(f"{place}.{name}", list(parameters)[1:])


def take_normalizers(environments: gymnasium.vector.VectorEnv | gymnasium.Env, name: str) -> bool:
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


def show_own_rewards(environments: gymnasium.vector.VectorEnv | gymnasium.Env) -> None:
    """Switches off every NormalizeReward, and what a wrapper's own `show_own_rewards` does: evaluations measure the environment's own."""
    for layers in _layers(environments):
        for layer in layers:
            if "show_own_rewards" in vars(type(layer)):
                layer.show_own_rewards()
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
