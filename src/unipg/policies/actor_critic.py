"""Control policies: an actor and a critic that read observations, and how actions are drawn from the actor's output."""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unipg.errors import InputError, missing_package, nearest, one_line
from unipg.estimator.likelihoods import Reading, placed, read_off
from unipg.estimator.parts import Reduce
from unipg.networks.encoders import Channels, Encoder, Flat, Observation, encoder_from, observation_of
from unipg.networks.perceptron import ACTIVATIONS, Activation, Perceptron
from unipg.policies.actions import Actions, DiscreteActions, actions_from, actions_of, described
from unipg.policies.base import Policy
from unipg.policies.normalization import RunningNormalizer
from unipg.policies.weights import nonfinite
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    import gymnasium

Actor = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""`actor(observation [N,O] float32, noise [N,…] or None)`: an action [N] or [N,A] for each observation; the most likely one for None."""


class Controller(Policy):
    """A policy that acts on observations, one step at a time; what environments ask of it."""

    normalizes: bool = False
    """Whether it keeps running statistics of its observations itself."""

    def flatten(self, observation: Any) -> np.ndarray:
        """[N,…] observations of N environments, in their own form, as they are stored and as `actor` reads them: one array."""
        return np.ascontiguousarray(observation, np.float32).reshape(len(observation), -1)

    def flatten_one(self, observation: Any) -> np.ndarray:
        """[…] an observation by itself."""
        return self.flatten(np.array(observation)[None])[0]

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


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


class _Seeing(Perceptron):
    """A perceptron behind an encoder that learns, its own."""

    def __init__(self, encoder: Encoder, sizes: Sequence[int], **settings: Any) -> None:
        super().__init__([encoder.size, *sizes], **settings)
        self.encoder = encoder

    def last_hidden(self, x: Tensor) -> Tensor:
        return super().last_hidden(self.encoder(x))

    def on_the_host(self) -> Callable[[np.ndarray], np.ndarray]:
        see, rest = self.encoder.on_the_host(), super().on_the_host()
        return lambda x: rest(see(x))


class _Networks(nn.Module):
    """Actor, critic, for real actions the Gaussian's state-independent log_std [A], and what they see observations through."""

    log_std: nn.Parameter | None

    def __init__(
        self, actor: Perceptron, critic: Perceptron, log_std: Tensor | None, flat: Flat | None, normalizer: RunningNormalizer | None
    ) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.flat = flat
        self.normalizer = normalizer
        self.register_parameter("log_std", None if log_std is None else nn.Parameter(log_std))

    def forward(self, observation: Tensor, value: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[N,…] as `seen` to the actor's output [N,n] or [N,A], log_std [A], and the value [N] if asked."""
        return self.actor(observation), self.log_std, self.critic(observation).squeeze(-1) if value else None

    def seen(self, observation: Tensor) -> Tensor:
        """[N,…] stored observations as actor and critic read them: images as they are, else [N,O], one-hot and normalised."""
        observation = observation if self.flat is None else self.flat(observation)
        return observation if self.normalizer is None else self.normalizer(observation)


class ActorCritic(Controller):
    """Separate multilayer perceptrons for the actor and the critic, over flattened observations [O]; of images each behind its own encoder.

    `observation`: the shape of vectors, or what `networks.observation_of` gives of a space.

    Initialisation: orthogonal, with gain sqrt(2) inside, 0.01 at the actor's head and 1 at the critic's, biases 0 (Huang et al. 2022, "The
    37 implementation details of PPO", detail 2). `seed` decides the initial weights; the global generator is not touched.

    `normalize`: both read observations in units of their running statistics (`RunningNormalizer`), which follow the batches that the policy
    is trained on, one behind: within a collection and the updates on it they stand still, so that log-probabilities are of one policy.
    """

    memoryless = True
    has_value = True

    def __init__(
        self,
        observation: Sequence[int] | Observation,
        actions: Actions,
        *,
        hidden: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        log_std: float = 0.0,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        self.observation = observation if isinstance(observation, dict) else {"type": "vector", "shape": list(observation)}
        self.actions = actions
        self.hidden = tuple(hidden)
        self.activation = activation

        def network(name: str, outputs: int, gain: float) -> tuple[Encoder, Perceptron]:
            source = generator(seed, name)
            encoder, sizes = encoder_from(self.observation, source, init="orthogonal"), [*hidden, outputs]
            settings: dict[str, Any] = {"activation": activation, "init": "orthogonal", "gain": gain, "source": source}
            if isinstance(encoder, Flat):
                return encoder, Perceptron([encoder.size, *sizes], **settings)
            return encoder, _Seeing(encoder, sizes, **settings)

        self.encoder, actor = network("actor", actions.outputs, 0.01)
        _, critic = network("critic", 1, 1.0)
        flat = self.encoder if isinstance(self.encoder, Flat) else None
        if normalize and flat is None:
            raise InputError("controller.normalize_observations is true, but images are divided by 255 already; accepted: false, null")
        spread = torch.full((actions.outputs,), log_std) if actions.has_log_std else None
        self.normalizes = normalize
        self.has_densities = actions.densities
        self.module: _Networks = _Networks(
            actor, critic, spread, None if flat is None or flat.plain else flat, RunningNormalizer(self.encoder.size) if normalize else None
        )

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """See `Policy.evaluate`. Observations are [B,T,O], or [B,T,…] with O entries; an observation of another size is an `InputError`."""
        if readings and type(self.actions) is not DiscreteActions:
            raise InputError(
                f"{type(readings[0]).__name__} reads distributions over Discrete actions, not over {type(self.actions).__name__}"
            )
        observation = batch.require("observation", "ActorCritic")
        shape = batch.mask.shape
        stored = self.encoder.stored.shape
        if math.prod(observation.shape[2:]) != math.prod(stored):
            raise InputError(f"observation is {list(observation.shape)} but the policy reads {math.prod(stored)} numbers per step [B,T,O]")
        live, everywhere = batch.mask.reshape(-1), batch.full
        flat = observation.reshape(len(live), *stored)
        action = batch.action.reshape(len(live), *batch.action.shape[2:])
        if not everywhere:  # before the network, not after: 0 · NaN is NaN, in the gradient too
            flat, action = flat[live], action[live]
        flat = self.module.seen(flat)
        output, log_std, values = self.module(flat, value)
        log_prob, entropies = self.actions.log_prob(output, log_std, action, entropy)

        def finished(tensor: Tensor) -> Tensor:
            return tensor.reshape(shape) if everywhere else placed(tensor, batch.mask)

        read: dict[Reading, dict[str, Tensor]] = {}
        if readings:
            states, projection = self._last_layer(flat)
            logits = output.new_zeros(*shape, output.shape[-1]).masked_scatter(batch.mask.unsqueeze(-1), output)
            read = read_off(logits, batch.action.long(), batch, readings, states, projection)
        entropies, values = (None if each is None else finished(each) for each in (entropies if entropy else None, values))
        return Evaluation(finished(log_prob), entropies, values, read)

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
        before = [stage.on_the_host() for stage in (self.module.flat, self.module.normalizer) if stage is not None]
        if not before:
            return lambda observation, noise: draw(network(observation), std, noise)

        def act(observation: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
            for stage in before:
                observation = stage(observation)
            return draw(network(observation), std, noise)

        return act

    def flatten(self, observation: Any) -> np.ndarray:
        return self.encoder.flatten(observation)

    def flatten_one(self, observation: Any) -> np.ndarray:
        return self.encoder.flatten_one(observation)

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        return self.module.critic(self.module.seen(observation)).squeeze(-1)

    @property
    def must_observe(self) -> bool:
        return self.module.normalizer is not None and self.module.normalizer.empty

    def observe(self, batch: Trajectories, total: Reduce) -> None:
        if self.module.normalizer is not None:
            observation = batch.require("observation", "ActorCritic")
            stored = observation.reshape(batch.mask.numel(), *self.encoder.stored.shape)[batch.mask.reshape(-1)]
            self.module.normalizer.update(stored if self.module.flat is None else self.module.flat(stored), total)

    def environment_action(self, action: np.ndarray) -> np.ndarray:
        return self.actions.for_environment(action)

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` (the weights) and `config.json` (spaces, sizes, activation). `null` in a bound is no bound."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "policy": "actor_critic",
            "observation": self.observation,
            "actions": described(self.actions),
            "hidden": list(self.hidden),
            "activation": self.activation,
            "normalize_observations": self.normalizes,
        }
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}, folder / _WEIGHTS)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ActorCritic:
        """The policy that `save` wrote. A missing or foreign file is an `InputError`, and so are weights that are not finite."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for name in (_CONFIG, _WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"{folder} holds no {name}; accepted: a folder that ActorCritic.save wrote")
        if not is_controller(folder):
            raise InputError(f"{folder / _CONFIG} does not describe an actor_critic policy")
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        try:
            policy = cls(
                config["observation_shape"] if "observation_shape" in config else config["observation"],
                actions_from(**config["actions"]),
                hidden=tuple(config["hidden"]),
                activation=config["activation"],
                normalize=config.get("normalize_observations", False),
            )
            weights = load_file(folder / _WEIGHTS)
            policy.module.load_state_dict(weights)
        except KeyError as error:
            raise InputError(
                f"{folder / _CONFIG} has no {error}: it was written before actions were in units of their bounds; accepted: a newer model"
            ) from error
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"the controller in '{folder}' cannot be read: {one_line(error)}") from error
        if wrong := nonfinite(weights.items()):
            raise InputError(f"the controller in '{folder}' cannot be used: {wrong}")
        return policy


_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


def is_controller(folder: Path) -> bool:
    """Whether a folder holds what `ActorCritic.save` wrote."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("policy") == "actor_critic"


@dataclass(frozen=True)
class ActorCriticRecipe:
    """An `ActorCritic`: its sizes, or a saved one to go on from; the spaces come from the environment."""

    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Width of each hidden layer, of the actor and of the critic; an empty list makes both linear."""
    activation: Activation = "tanh"
    """Between the layers."""
    log_std: float = 0.0
    """Logarithm of the Gaussian's initial standard deviation; read for real actions only. In units of half the distance between an
    action's bounds, where these are finite."""
    normalize_observations: bool | None = None
    """Whether the policy reads observations in units of their running mean and standard deviation, which it keeps and saves. null: where
    the environment is wrapped by NormalizeObservation, whose place it then takes."""
    channels: Channels = "auto"
    """Where the channels of image observations (bytes with three axes) are: first, last, or auto, on the shorter one of these axes."""
    model: str | None = None
    """A folder with a saved controller, or a run folder: its weights, sizes and statistics are the start. Default: a new one."""

    def __post_init__(self) -> None:
        if not all(isinstance(width, int) and width >= 1 for width in self.hidden):
            raise InputError(f"controller.hidden is {self.hidden}; accepted: a list of layer widths of at least 1")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"controller.activation '{self.activation}' does not exist; {nearest(str(self.activation), ACTIVATIONS)}")
        if not math.isfinite(self.log_std):
            raise InputError(f"controller.log_std is {self.log_std}; accepted: a finite number")

    def build(
        self, observation_space: gymnasium.Space, action_space: gymnasium.Space, seed: int, *, normalized: bool = False
    ) -> ActorCritic:
        """An untrained policy for the spaces of ONE environment, or the saved one that `model` names.

        Observations are a Box (of bytes with three axes: an image), Discrete, MultiDiscrete, MultiBinary or a Dict of these without images;
        actions Discrete, MultiDiscrete, MultiBinary, or a Box of real numbers. `normalized`: whether the environment had a running
        normaliser of its own, which the policy must then replace. Anything else is an `InputError`.
        """
        if find_spec("gymnasium") is None:
            raise missing_package("gymnasium", "control", "a control policy")
        observation = observation_of(observation_space, self.channels)
        if self.channels != "auto" and observation["type"] != "image":
            raise InputError(f"controller.channels is '{self.channels}', but the environment's observations are no images; accepted: auto")
        if normalized and self.normalize_observations is False:
            raise InputError(
                "controller.normalize_observations is false, but the environment is wrapped by NormalizeObservation, whose statistics are "
                "in no saved model and not shared with evaluations; accepted: true, null, or an environment without that wrapper"
            )
        actions = actions_of(action_space)
        if self.model is not None:
            return self._saved(Path(self.model), observation, actions, normalized)
        if normalized and self.normalize_observations is None:
            warnings.warn(
                "the environment's NormalizeObservation is switched off, and the policy keeps the statistics in its place, for evaluations "
                "and the saved model too; controller.normalize_observations: true says the same without this warning",
                stacklevel=2,
            )
        return ActorCritic(
            observation,
            actions,
            hidden=tuple(self.hidden),
            activation=self.activation,
            log_std=self.log_std,
            normalize=normalized if self.normalize_observations is None else self.normalize_observations,
            seed=seed,
        )

    def _saved(self, folder: Path, observation: Observation, actions: Actions, normalized: bool) -> ActorCritic:
        if not folder.is_dir():
            raise InputError(f"controller.model '{folder}' is no folder; accepted: one that a control run wrote, or its model folder")
        policy = ActorCritic.load(folder / "model" if (folder / "model").is_dir() else folder)
        if (policy.observation, policy.actions) != (observation, actions):
            raise InputError(
                f"the controller in '{folder}' reads observations {_shown(policy.observation)} and gives {policy.actions}, but the "
                f"environment has {_shown(observation)} and {actions}"
            )
        default = ActorCriticRecipe()
        has = {"hidden": list(policy.hidden), "activation": policy.activation, "normalize_observations": policy.normalizes}
        for name, value in {**has, "log_std": default.log_std}.items():
            given = getattr(self, name)
            if given not in (getattr(default, name), value):
                raise InputError(f"controller.{name} is {given}, but that of the model in '{folder}' counts; accepted: leave it out")
        if normalized and not policy.normalizes:
            raise InputError(
                f"the environment is wrapped by NormalizeObservation, but the model in '{folder}' keeps no statistics; accepted: one that "
                "was trained with controller.normalize_observations"
            )
        return policy


def _shown(observation: Observation) -> Any:
    return observation["shape"] if observation["type"] == "vector" else observation
