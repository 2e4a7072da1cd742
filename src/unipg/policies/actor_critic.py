"""Control policies: an actor and a critic that read observations, and how actions are drawn from the actor's output."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from unipg.errors import InputError, missing_package, nearest
from unipg.estimator.likelihoods import Reading, categorical_log_prob, gaussian_log_prob, placed, read_off
from unipg.policies.base import Policy
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    import gymnasium

Activation = Literal["tanh", "relu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}
_ON_THE_HOST: dict[str, Callable[[np.ndarray], np.ndarray]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}

Actor = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""`actor(observation [N,O] float32, noise [N,…] or None)`: an action [N] or [N,A] for each observation; the most likely one for None."""


class Controller(Policy):
    """A policy that acts on observations, one step at a time; what environments ask of it."""

    @abstractmethod
    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,…] everything random in that many steps of an `Actor`, drawn at once."""

    @abstractmethod
    def actor(self) -> Actor:
        """The policy as it is now, as a function on the host. A function of its arguments alone: all that is random is in `noise`."""

    @abstractmethod
    def environment_action(self, action: np.ndarray) -> np.ndarray:
        """What the environments are given: `action` in their own shape, bounds and numbering."""

    def value(self, observation: Tensor) -> Tensor:
        """[N] the critic's value of each observation [N,O], without graph. Only where `has_value`."""
        raise InputError(f"{type(self).__name__} has no critic; take an algorithm that reads no values, or a policy with a critic")


@dataclass(frozen=True)
class DiscreteActions:
    """`n` actions, the actor's output their logits [N,n]. Trajectories hold the index in [0, n); the environment's starts at `start`."""

    n: int
    start: int = 0

    @property
    def outputs(self) -> int:
        return self.n

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,n] Gumbel: the argmax of logits + Gumbel noise is a draw from their softmax."""
        wait = torch.empty(steps, rows, self.n).exponential_(generator=source)
        return -wait.clamp_min(torch.finfo(wait.dtype).tiny).log().numpy()

    def draw(self, logits: np.ndarray, std: np.ndarray | None, noise: np.ndarray | None) -> np.ndarray:
        return (logits if noise is None else logits + noise).argmax(-1)

    def log_prob(self, logits: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        return categorical_log_prob(logits, action.long(), entropy=entropy)

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        return action + self.start if self.start else action


@dataclass(frozen=True)
class BoxActions:
    """Real actions of `shape`, flattened to [N,A]; the actor's output is the mean of a diagonal Gaussian whose log_std is a parameter.

    The Gaussian is not bounded: an action is clipped to `low` and `high` (`[A]`, flattened) only when it is given to the environment, and
    its log-probability is that of the unclipped one.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,A] standard normal."""
        return torch.randn(steps, rows, self.outputs, generator=source).numpy()

    def draw(self, mean: np.ndarray, std: np.ndarray | None, noise: np.ndarray | None) -> np.ndarray:
        assert std is not None
        return mean if noise is None else mean + std * noise

    def log_prob(self, mean: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        assert log_std is not None
        return gaussian_log_prob(mean, log_std.expand_as(mean), action.reshape(mean.shape).to(mean.dtype))

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        return action.clip(*self._bounds).reshape(len(action), *self.shape)


Actions = DiscreteActions | BoxActions


class _Perceptron(nn.Module):
    """Linear layers with an activation between them; orthogonal weights of gain sqrt(2) (the last layer: `gain`), biases 0."""

    def __init__(self, sizes: list[int], gain: float, activation: Activation, source: torch.Generator) -> None:
        super().__init__()
        self.activation = activation
        # skip_init: torch's own initialisation would draw from the global generator
        layers = [nn.utils.skip_init(nn.Linear, *size) for size in pairwise(sizes)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain if layer is layers[-1] else math.sqrt(2), generator=source)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        last = cast("nn.Linear", self.layers[-1])
        return linear(self.last_hidden(x), last.weight, last.bias)

    def last_hidden(self, x: Tensor) -> Tensor:
        """[N,H] what the last layer sees."""
        # plain functions: at these sizes a call of each layer's module costs as much as its product
        *hidden, last = cast("Iterable[nn.Linear]", self.layers)
        x, activation = x.to(last.weight.dtype), _ACTIVATIONS[self.activation]
        for layer in hidden:
            x = activation(linear(x, layer.weight, layer.bias))
        return x

    def on_the_host(self) -> Callable[[np.ndarray], np.ndarray]:
        """A copy of the layers in NumPy, float32: a few rows at a time cost a quarter of what they do through torch."""
        copies = [tuple(_array(p).copy() for p in (layer.weight.T, layer.bias)) for layer in cast("Iterable[nn.Linear]", self.layers)]
        (*hidden, last), activation = copies, _ON_THE_HOST[self.activation]

        def forward(x: np.ndarray) -> np.ndarray:
            for weight, bias in hidden:
                x = activation(x @ weight + bias)
            return x @ last[0] + last[1]

        return forward


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


class _Networks(nn.Module):
    """Actor, critic and, for real actions, the Gaussian's state-independent log_std [A]."""

    log_std: nn.Parameter | None

    def __init__(self, actor: _Perceptron, critic: _Perceptron, log_std: Tensor | None) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.register_parameter("log_std", None if log_std is None else nn.Parameter(log_std))

    def forward(self, observation: Tensor, value: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[N,O] to the actor's output [N,n] or [N,A], log_std [A], and the value [N] if asked."""
        return self.actor(observation), self.log_std, self.critic(observation).squeeze(-1) if value else None


class ActorCritic(Controller):
    """Separate multilayer perceptrons for the actor and the critic, over flattened observations [O].

    Initialisation: orthogonal, with gain sqrt(2) inside, 0.01 at the actor's head and 1 at the critic's, biases 0 (Huang et al. 2022, "The
    37 implementation details of PPO", detail 2). `seed` decides the initial weights; the global generator is not touched.
    """

    memoryless = True
    has_value = True

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        actions: Actions,
        *,
        hidden: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        log_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.observation_shape = tuple(observation_shape)
        self.actions = actions
        self.hidden = tuple(hidden)
        self.activation = activation
        self.inputs = math.prod(self.observation_shape)
        actor = _Perceptron([self.inputs, *hidden, actions.outputs], 0.01, activation, generator(seed, "actor"))
        critic = _Perceptron([self.inputs, *hidden, 1], 1.0, activation, generator(seed, "critic"))
        spread = torch.full((actions.outputs,), log_std) if isinstance(actions, BoxActions) else None
        self.module: _Networks = _Networks(actor, critic, spread)

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """See `Policy.evaluate`. Observations are [B,T,O], or [B,T,…] with O entries; an observation of another size is an `InputError`."""
        if readings and not isinstance(self.actions, DiscreteActions):
            raise InputError(f"{type(readings[0]).__name__} reads distributions over actions that can be counted; these are real numbers")
        observation = batch.require("observation", "ActorCritic")
        shape = batch.mask.shape
        if math.prod(observation.shape[2:]) != self.inputs:
            raise InputError(f"observation is {list(observation.shape)} but the policy reads {self.inputs} numbers per step [B,T,O]")
        live, everywhere = batch.mask.reshape(-1), batch.full
        flat = observation.reshape(len(live), self.inputs)
        action = batch.action.reshape(len(live), *batch.action.shape[2:])
        if not everywhere:  # before the network, not after: 0 · NaN is NaN, in the gradient too
            flat, action = flat[live], action[live]
        output, log_std, values = self.module(flat, value)
        log_prob, entropies = self.actions.log_prob(output, log_std, action, entropy)

        def finished(tensor: Tensor) -> Tensor:
            return tensor.reshape(shape) if everywhere else placed(tensor, batch.mask)

        read: dict[Reading, dict[str, Tensor]] = {}
        if readings:
            states, projection = self._last_layer(flat)
            logits = output.new_zeros(*shape, output.shape[-1]).masked_scatter(batch.mask.unsqueeze(-1), output)
            read = read_off(logits, batch.action.long(), batch, readings, states, projection)
        return Evaluation(finished(log_prob), finished(entropies) if entropy else None, None if values is None else finished(values), read)

    def _last_layer(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """[N,H+1] and [n,H+1] whose product is the actor's output: the bias is the weight of a state that is always 1."""
        hidden, last = self.module.actor.last_hidden(observation), cast("nn.Linear", self.module.actor.layers[-1])
        states = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        return states, torch.cat([last.weight, last.bias.unsqueeze(1)], 1)

    @property
    def networks(self) -> list[list[nn.Parameter]]:
        critic = list(self.module.critic.parameters())
        actor = [*self.module.actor.parameters(), *([] if self.module.log_std is None else [self.module.log_std])]
        return [[p for p in network if p.requires_grad] for network in (actor, critic)]

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        return self.actions.noise(steps, rows, source)

    def actor(self) -> Actor:
        network, log_std, draw = self.module.actor.on_the_host(), self.module.log_std, self.actions.draw
        std = None if log_std is None else _array(log_std.exp())
        return lambda observation, noise: draw(network(observation), std, noise)

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        return self.module.critic(observation).squeeze(-1)

    def environment_action(self, action: np.ndarray) -> np.ndarray:
        return self.actions.for_environment(action)

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` (the weights) and `config.json` (spaces, sizes, activation). `null` in a bound is no bound."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "policy": "actor_critic",
            "observation_shape": list(self.observation_shape),
            "actions": _described(self.actions),
            "hidden": list(self.hidden),
            "activation": self.activation,
        }
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}, folder / _WEIGHTS)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ActorCritic:
        """The policy that `save` wrote. A missing or foreign file is an `InputError`."""
        from safetensors.torch import load_file

        for name in (_CONFIG, _WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"{folder} holds no {name}; accepted: a folder that ActorCritic.save wrote")
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if config.get("policy") != "actor_critic":
            raise InputError(f"{folder / _CONFIG} does not describe an actor_critic policy")
        actions = _actions(**config["actions"])
        policy = cls(tuple(config["observation_shape"]), actions, hidden=tuple(config["hidden"]), activation=config["activation"])
        policy.module.load_state_dict(load_file(folder / _WEIGHTS))
        return policy


_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


def _described(actions: Actions) -> dict[str, Any]:
    """What `_actions` reads; a bound that is infinite, which JSON has no word for, is null."""
    if isinstance(actions, DiscreteActions):
        return {"type": "discrete", "n": actions.n, "start": actions.start}
    low, high = ([b if math.isfinite(b) else None for b in bounds] for bounds in (actions.low, actions.high))
    return {"type": "box", "shape": list(actions.shape), "low": low, "high": high}


def _actions(type: str, **values: Any) -> Actions:
    if type == "discrete":
        return DiscreteActions(**values)
    low, high = (tuple(limit if b is None else b for b in values[side]) for side, limit in (("low", -math.inf), ("high", math.inf)))
    return BoxActions(tuple(values["shape"]), low, high)


@dataclass(frozen=True)
class ActorCriticRecipe:
    """Sizes of an `ActorCritic`; the spaces come from the environment."""

    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Width of each hidden layer, of the actor and of the critic; an empty list makes both linear."""
    activation: Activation = "tanh"
    log_std: float = 0.0
    """Logarithm of the Gaussian's initial standard deviation, in units of the action; read for real actions only."""

    def __post_init__(self) -> None:
        if not all(isinstance(width, int) and width >= 1 for width in self.hidden):
            raise InputError(f"controller.hidden is {self.hidden}; accepted: a list of layer widths of at least 1")
        if self.activation not in _ACTIVATIONS:
            raise InputError(f"controller.activation '{self.activation}' does not exist; {nearest(str(self.activation), _ACTIVATIONS)}")
        if not math.isfinite(self.log_std):
            raise InputError(f"controller.log_std is {self.log_std}; accepted: a finite number")

    def build(self, observation_space: gymnasium.Space, action_space: gymnasium.Space, seed: int) -> ActorCritic:
        """An untrained policy for the spaces of ONE environment.

        Observations must be a Box; actions Discrete, or a Box of real numbers. Anything else is an `InputError`.
        """
        try:
            from gymnasium import spaces
        except ModuleNotFoundError as absent:
            raise missing_package("gymnasium", "control", "a control policy") from absent
        if not isinstance(observation_space, spaces.Box):
            raise InputError(
                f"the environment's observations are {observation_space}; accepted: a Box (gymnasium's FlattenObservation makes one)"
            )
        actions: Actions
        if isinstance(action_space, spaces.Discrete):
            actions = DiscreteActions(int(action_space.n), int(action_space.start))
        elif isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
            low, high = (tuple(float(b) for b in bound.reshape(-1)) for bound in (action_space.low, action_space.high))
            actions = BoxActions(tuple(action_space.shape), low, high)
        else:
            raise InputError(f"the environment's actions are {action_space}; accepted: Discrete, or a Box of real numbers")
        return ActorCritic(
            observation_space.shape, actions, hidden=tuple(self.hidden), activation=self.activation, log_std=self.log_std, seed=seed
        )
