"""Control policies: an actor and a critic that read observations, and how actions are drawn from the actor's output."""

from __future__ import annotations

import copy
import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unipg.arguments import CheckedArguments
from unipg.critics.networks import ActionValues, Body, Corrector, Decoder, Lagged, Network
from unipg.errors import InputError, missing_package, nearest, one_line
from unipg.estimator.likelihoods import Reading, placed, read_off
from unipg.estimator.parts import Reduce
from unipg.hub import in_home
from unipg.networks.corrections import Correction
from unipg.networks.denoisers import Denoiser
from unipg.networks.encoders import Channels, Encoder, Flat, Observation, alike, encoder_from, observation_of
from unipg.networks.perceptron import (
    ACTIVATIONS,
    Activation,
    Ensemble,
    HostFunction,
    Initialisation,
    Perceptron,
    Routed,
    Stepped,
    WithSpread,
)
from unipg.policies.actions import Actions, BoxActions, DiscreteActions, GreedyActions, Kind, LatentActions, SpreadActions
from unipg.policies.base import Policy
from unipg.policies.mixtures import COMPONENTS, Evaluated, MixtureActions
from unipg.policies.named import ACTOR, CORRECTION, DECODER, ROUTER, VALUES, NamedNetworks, build_networks
from unipg.policies.normalization import RunningNormalizer
from unipg.policies.now import CRITIC
from unipg.policies.spaces import actions_from, actions_of, described, told
from unipg.policies.transforms import correcting, decoding
from unipg.policies.weights import nonfinite
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    import gymnasium

Actor = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""`actor(observation [N,O] float32, noise [N,…] or None)`: an action [N] or [N,A] for each observation; the most likely one for None."""


Outward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`outward(observation [N,O] float32, action)`: the environments' own actions [N,…]."""


class Controller(Policy):
    """A policy that acts on observations, one step at a time; what environments ask of it."""

    normalizes: bool = False
    """Whether it keeps running statistics of its observations itself."""
    how_evaluated: str = ""
    """What `noise_of_evaluation` comes to, where there are several ways."""

    def flatten(self, observation: Any) -> np.ndarray:
        """[N,…] observations of N environments, in their own form, as they are stored and as `actor` reads them: one array."""
        return np.ascontiguousarray(observation, np.float32).reshape(len(observation), -1)

    def flatten_one(self, observation: Any) -> np.ndarray:
        """[…] an observation by itself."""
        return self.flatten(np.array(observation)[None])[0]

    def outside(self, observation: np.ndarray) -> np.ndarray | None:
        """[…] of […,O] as stored: observations that their space does not have, as far as numbers that count say; None where none are."""
        return None

    def told(self, observation: np.ndarray) -> str:
        """Of one that is `outside`: which number is, and what is accepted."""
        raise ValueError(f"{type(self).__name__} counts nothing")

    @abstractmethod
    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,…] everything random in that many steps of an `Actor`, drawn at once."""

    def noise_of_evaluation(self, rows: int, source: torch.Generator) -> np.ndarray | None:
        """[rows,…] what an `Actor` takes at a step of an evaluation; None: the most likely actions."""
        return None

    @abstractmethod
    def actor(self) -> Actor:
        """The policy as it is now, as a function on the host. A function of its arguments alone: all that is random is in `noise`."""

    @abstractmethod
    def environment_action(self, action: np.ndarray) -> np.ndarray:
        """What the environments are given: `action` in their own shape, bounds and numbering."""

    def outward(self) -> Outward:
        """What the environments are given, as a function on the host of the policy as it is now: `environment_action`, and before it
        whatever lies between the policy's actions and theirs."""
        return lambda observation, action: self.environment_action(action)

    def value(self, observation: Tensor) -> Tensor:
        """[N] the critic's value of each observation [N,O], without graph. Only where `has_value`."""
        raise InputError(f"{type(self).__name__} has no critic; take an algorithm that reads no values, or a policy with a critic")

    def values(self, observation: Tensor) -> Tensor:
        """[N,K] the values of the critic's members, without graph; of one that has none its only value."""
        return self.value(observation).unsqueeze(-1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


class _Seeing(Perceptron):
    """A perceptron behind an encoder that learns, its own."""

    def __init__(self, encoder: Encoder, sizes: Sequence[int], **settings: Any) -> None:
        super().__init__([encoder.size, *sizes], **settings)
        self.encoder = encoder

    def last_hidden(self, x: Tensor) -> Tensor:
        return super().last_hidden(self.encoder(x))

    def on_the_host(self, *, live: bool = False, beside: Perceptron | None = None) -> HostFunction:
        see, rest = self.encoder.on_the_host(), super().on_the_host(live=live, beside=beside)
        return lambda x: rest(see(x))


class _Networks(nn.Module):
    """Actor, critic, for real actions the Gaussian's state-independent log_std [A], and what they see observations through."""

    log_std: nn.Parameter | None
    actor: Perceptron | Routed | Stepped

    def __init__(
        self,
        actor: Perceptron | Routed | Stepped,
        critic: Perceptron | None,
        log_std: Tensor | None,
        flat: Flat | None,
        normalizer: RunningNormalizer | None,
        more: Mapping[str, nn.Module],
        decoder: Denoiser | None = None,
        correction: Correction | None = None,
    ) -> None:
        super().__init__()
        self.actor = actor
        self.decoder = decoder
        self.correction = correction
        self.critic = critic
        self.flat = flat
        self.normalizer = normalizer
        if more:
            self.more = nn.ModuleDict(more)
        self.register_parameter("log_std", None if log_std is None else nn.Parameter(log_std))

    def forward(self, observation: Tensor, value: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[N,…] as `seen` to the actor's output [N,n] or [N,A], log_std [A], and what the critic says [N,K·C] if asked."""
        return self.actor(observation), self.log_std, self.critic(observation) if value and self.critic is not None else None

    def seen(self, observation: Tensor) -> Tensor:
        """[N,…] stored observations as actor and critic read them: images as they are, else [N,O], one-hot and normalised."""
        observation = observation if self.flat is None else self.flat(observation)
        return observation if self.normalizer is None else self.normalizer(observation)


class ActorCritic(NamedNetworks, Controller):
    """Separate multilayer perceptrons for the actor and the critic of states, over flattened observations [O], of images each behind its
    own encoder; and what else an algorithm asks for by name (`networks`), built to the same sizes.

    `observation`: the shape of vectors, or what `networks.observation_of` gives of a space.


    `heads`: (K, C), the members of the critic of states, heads on one trunk, and what each says, its value first; `value` is the mean of
    theirs.
    `critic`: whether there is one of states. Of greedy actions the actor is the network of values by which they are chosen, `q`.
    `init`: `torch`, as nn.Linear is made; or orthogonal, with gain sqrt(2) inside, 0.01 at the actor's head and 1 at critics', biases 0
    (Huang et al. 2022, "The 37 implementation details of PPO", detail 2). `seed` decides the initial weights; the global generator is not
    touched.

    `networks` may have a `decoder` (`critics.Decoder`) where actions are latent: it lies between them and the environment's, reads
    observations in units of statistics of its own, and is saved with what acting needs. So has and is a `correction` (`critics.Corrector`),
    which is added to real actions of any kind.

    `normalize`: both read observations in units of their running statistics (`RunningNormalizer`), which follow the batches that the policy
    is trained on, one behind: within a collection and the updates on it they stand still, so that log-probabilities are of one policy.

    `steps`: an actor of its own, with a log_std of its own, for each of so many steps of an episode (`networks.Stepped`; of `spread`
    actions), by the names `actor_0`, `actor_1` …; networks by step that an algorithm asks for are named in the same way.
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
        critic: bool = True,
        heads: tuple[int, int] = (1, 1),
        init: Initialisation = "orthogonal",
        networks: Mapping[str, Network] | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.observation = observation if isinstance(observation, dict) else {"type": "vector", "shape": list(observation)}
        self._sizes: dict[str, Any] = {
            "hidden": tuple(hidden),
            "activation": activation,
            "log_std": log_std,
            "critic": critic,
            "heads": heads,
        }
        self._sizes |= {"init": init, "networks": networks, "steps": steps}
        """What it was made with, but for spaces and seed."""
        self.actions = actions
        self.hidden = tuple(hidden)
        self.steps = steps
        self.activation = activation
        self.init: Initialisation = init
        self.has_value = critic
        self.heads = heads if critic else (1, 1)
        self.counts_actions = isinstance(actions, DiscreteActions)
        self.actions_per_step = actions.size if isinstance(actions, BoxActions) else actions.outputs

        def encoder(source: torch.Generator) -> Encoder:
            return encoder_from(self.observation, source, init=init)

        def network(
            name: str, outputs: int, gain: float, hidden: Sequence[int] = hidden, source: torch.Generator | None = None
        ) -> Perceptron:
            source = source or generator(seed, name)
            settings: dict[str, Any] = {"activation": activation, "init": init, "gain": gain, "source": source}
            seeing, sizes = encoder(source), [*hidden, outputs]
            return Perceptron([seeing.size, *sizes], **settings) if isinstance(seeing, Flat) else _Seeing(seeing, sizes, **settings)

        self.encoder = encoder(generator(seed, ACTOR))
        flat = self.encoder if isinstance(self.encoder, Flat) else None
        self.inputs = self.encoder.size
        if normalize and flat is None:
            raise InputError("controller.normalize_observations is true, but images are divided by 255 already; accepted: false, null")
        seen = None if flat is not None else encoder
        alike: Callable[[torch.Generator], nn.Module] | None = None
        if not isinstance(actions, GreedyActions | MixtureActions):
            alike = partial(network, ACTOR, actions.outputs, 0.01, hidden)
        body = Body(self.inputs, self.actions_per_step, self.counts_actions, self.hidden, activation, init, seen, alike)
        own: dict[str, nn.Module | None] = {}
        if isinstance(actions, GreedyActions):
            own[VALUES] = own[ACTOR] = (networks or {}).get(VALUES, ActionValues()).build(body, generator(seed, VALUES))
        if steps is not None:
            if type(actions) is not SpreadActions or flat is None or not flat.plain or normalize or critic:
                raise InputError(
                    "a controller of its own for each step reads vectors as they are, draws real actions of kind spread, and has no critic "
                    "of states; accepted: such an environment, controller.normalize_observations: false"
                )
            sizes, sources = [self.inputs - 1, *hidden, actions.size], [generator(seed, f"{ACTOR}_{step}") for step in range(steps)]
            each = [Perceptron(sizes, activation=activation, init=init, shrunk=0.1, source=source) for source in sources]
            own[ACTOR] = Stepped([WithSpread(network, log_std) for network in each])
        for name, out, gain in ((ACTOR, actions.outputs, 0.01), (CRITIC, math.prod(heads), 1.0)):
            if name not in own and (name == ACTOR or critic):
                own[name] = network(name, out, gain)
        if isinstance(actions, MixtureActions):
            trunk = cast("Perceptron", own[ACTOR])
            router = network(ROUTER, actions.components, 0.01, ())
            if actions.router_reads == "trunk":
                settings: dict[str, Any] = {"init": init, "gain": 0.01, "source": generator(seed, ROUTER)}
                router = Perceptron([trunk.sizes[-2], actions.components], **settings)
            own |= {ACTOR: Routed(trunk, router, actions.router_reads), ROUTER: router}
        if networks and DECODER in networks:
            if not isinstance(actions, LatentActions):
                raise InputError(f"a decoder reads what latent actions are, but these are '{actions.kind}'; accepted: kind latent")
            own[DECODER] = networks[DECODER].build(body, generator(seed, DECODER))
        if networks and CORRECTION in networks:
            own[CORRECTION] = networks[CORRECTION].build(body, generator(seed, CORRECTION))
        spread = torch.full((actions.outputs,), log_std) if actions.has_log_std else None
        more = build_networks(networks or {}, own, body, seed, spread)
        self.lags = {name: network.of for name, network in (networks or {}).items() if isinstance(network, Lagged)}
        self._first: dict[str, list[nn.Parameter]] = {}
        self.modules = {name: module for name, module in own.items() if module is not None} | more
        self.modules |= {
            f"{name}_{step}": network
            for name, module in self.modules.items()
            if isinstance(module, Stepped)
            for step, network in enumerate(module.networks)
        }
        self.normalizes = normalize
        self.has_densities = actions.densities
        self.has_kl = actions.has_kl
        self.has_entropy = actions.has_entropy
        self.how_evaluated = actions.how_evaluated
        normalizer = RunningNormalizer(self.inputs) if normalize else None
        acting, judging = cast("tuple[Perceptron | Routed | Stepped, Perceptron | None]", (self.modules[ACTOR], own.get(CRITIC)))
        before = None if flat is None or flat.plain else flat
        self._decoder = cast("Denoiser | None", own.get(DECODER))
        self.correction = cast("Correction | None", own.get(CORRECTION))
        """What is added to its actions, once that has seen data, in every environment that it acts in."""
        self.module: _Networks = _Networks(acting, judging, spread, before, normalizer, more, self._decoder, self.correction)
        self.exploration: float | None = None
        """What `Actions.draw` reads as its `std`, of kinds whose exploration is no part of the distribution; None for their own."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}  # one memo: names and module share
        return twin

    @property
    def called(self) -> str:
        return f"a controller of kind '{self.actions.kind}'"

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """See `Policy.evaluate`. Observations are [B,T,O], or [B,T,…] with O entries; an observation of another size is an `InputError`."""
        if readings and type(self.actions) is not DiscreteActions:
            raise InputError(
                f"{type(readings[0]).__name__} reads distributions over Discrete actions, not over {type(self.actions).__name__}"
            )
        flat = self._seen(batch)
        shape, everywhere = batch.mask.shape, batch.full
        action = batch.action.reshape(batch.mask.numel(), *batch.action.shape[2:])
        if not everywhere:
            action = action[batch.mask.reshape(-1)]
        output, log_std, said = self.module(flat, value)
        log_prob, entropies = self.actions.log_prob(output, log_std, action, entropy)

        def finished(tensor: Tensor) -> Tensor:
            return tensor.reshape(shape) if everywhere else placed(tensor, batch.mask)

        read: dict[Reading, dict[str, Tensor]] = {}
        if readings:
            states, projection = self._last_layer(flat)
            logits = output.new_zeros(*shape, output.shape[-1]).masked_scatter(batch.mask.unsqueeze(-1), output)
            read = read_off(logits, batch.action.long(), batch, readings, states, projection)
        entropies = finished(entropies) if entropy and entropies is not None else None
        if said is None or self.heads == (1, 1):
            return Evaluation(finished(log_prob), entropies, None if said is None else finished(said.squeeze(-1)), read)
        values = said.unflatten(-1, self.heads)
        values = values.new_zeros(*shape, *self.heads).index_put((batch.mask,), values)
        return Evaluation(finished(log_prob), entropies, values[..., 0].mean(-1), read, values)

    def members_values(self, observation: Tensor) -> Tensor:
        """[N,K,C] all that the critic of states says of observations as networks read them."""
        return self.network(CRITIC)(observation).unflatten(-1, self.heads)

    def _seen(self, batch: Trajectories) -> Tensor:
        """[N,…] the observations of the steps that count, as the networks read them."""
        observation = batch.require("observation", "ActorCritic")
        stored = self.encoder.stored.shape
        if math.prod(observation.shape[2:]) != math.prod(stored):
            raise InputError(f"observation is {list(observation.shape)} but the policy reads {math.prod(stored)} numbers per step [B,T,O]")
        live = batch.mask.reshape(-1)
        flat = observation.reshape(len(live), *stored)
        # those that do not count go before the network, not after: 0 · NaN is NaN, in the gradient too
        return self.module.seen(flat if batch.full else flat[live])

    def distributions(self, batch: Trajectories) -> tuple[Tensor, ...]:
        output, log_std, _ = self.module(self._seen(batch), False)
        return (output,) if log_std is None else (output, log_std)

    def kl(self, one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
        (output, log_std), (theirs, their_log_std) = ((*each, None)[:2] for each in (one, other))
        assert output is not None
        assert theirs is not None
        return self.actions.kl(output, log_std, theirs, their_log_std)

    def _last_layer(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """[N,H+1] and [n,H+1] whose product is the actor's output: the bias is the weight of a state that is always 1."""
        actor = cast("Perceptron", self.module.actor)
        hidden, last = actor.last_hidden(observation), cast("nn.Linear", actor.layers[-1])
        states = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        return states, torch.cat([last.weight, last.bias.unsqueeze(1)], 1)

    @property
    def networks(self) -> dict[str, list[nn.Parameter]]:
        found: dict[str, list[nn.Parameter]] = {}
        for name, module in self.modules.items():
            if isinstance(module, Stepped):
                continue  # its steps have names of their own
            if not any(module is self.modules[other] for other in found):  # the actor of greedy actions is their values
                found[name] = self.weights_of(name)
        return found

    @property
    def log_std(self) -> Tensor | None:
        return self.module.log_std

    def read(self, observation: Tensor) -> Tensor:
        """[N,O], or images [N,C,H,W], of stored observations [N,…] as the networks read them."""
        return self.module.seen(observation.reshape(len(observation), *self.encoder.stored.shape))

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        return self.actions.noise(steps, rows, source)

    def noise_of_evaluation(self, rows: int, source: torch.Generator) -> np.ndarray | None:
        return self.actions.noise_of_evaluation(rows, source)

    def check_draws(self, asked: str) -> None:
        """Refuses random actions of a policy whose exploration is the algorithm's, and not known here; `asked`: who wants them."""
        if isinstance(self.actions, GreedyActions) and self.exploration is None:
            raise InputError(f"{asked}, but the policy takes the best action by its values and draws none; accepted: without it")

    def actor(self, *, live: bool = False) -> Actor:
        """`live`: it follows the weights as they are stepped (float32 on the CPU), but for the statistics of observations."""
        network, log_std, draw = self.module.actor.on_the_host(live=live), self.module.log_std, self.actions.draw
        std = None if log_std is None else _array(log_std.exp())
        before = [stage.on_the_host() for stage in (self.module.flat, self.module.normalizer) if stage is not None]

        def drawn(output: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
            if std is None:
                return draw(output, self.exploration, noise)
            return draw(output, _array(log_std.exp()) if live and log_std is not None else std, noise)

        if not before:
            return lambda observation, noise: drawn(network(observation), noise)

        def act(observation: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
            for stage in before:
                observation = stage(observation)
            return drawn(network(observation), noise)

        return act

    def flatten(self, observation: Any) -> np.ndarray:
        return self.encoder.flatten(observation)

    def flatten_one(self, observation: Any) -> np.ndarray:
        return self.encoder.flatten_one(observation)

    def outside(self, observation: np.ndarray) -> np.ndarray | None:
        return self.encoder.outside(observation)

    def told(self, observation: np.ndarray) -> str:
        return self.encoder.told(observation)

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        if self.module.critic is None:
            return super().value(observation)
        if self.heads != (1, 1):
            return self.values(observation).mean(-1)
        return self.module.critic(self.module.seen(observation)).squeeze(-1)

    @torch.no_grad()
    def values(self, observation: Tensor) -> Tensor:
        return super().values(observation) if self.heads == (1, 1) else self.members_values(self.module.seen(observation))[..., 0]

    @property
    def must_observe(self) -> bool:
        return self.module.normalizer is not None and self.module.normalizer.empty

    @property
    def still(self) -> list[int]:
        return [] if self.module.normalizer is None else self.module.normalizer.still

    def observe(self, batch: Trajectories, total: Reduce) -> None:
        if self.module.normalizer is not None:
            observation = batch.require("observation", "ActorCritic")
            stored = observation.reshape(batch.mask.numel(), *self.encoder.stored.shape)[batch.mask.reshape(-1)]
            self.module.normalizer.update(stored if self.module.flat is None else self.module.flat(stored), total)

    def environment_action(self, action: np.ndarray) -> np.ndarray:
        return self.actions.for_environment(action)

    def outward(self) -> Outward:
        """See `Controller.outward`, `decoding` and `correcting`."""
        stages = [] if self._decoder is None else [decoding(self._decoder)]
        if self.correction is not None and bool(self.correction.fitted):
            assert isinstance(self.actions, BoxActions)
            stages.append(correcting(self.correction, self.actions))
        if not stages:
            return super().outward()
        encode = None if self.module.flat is None else self.module.flat.on_the_host()

        def give(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
            condition = observation if encode is None else encode(observation)
            for stage in stages:
                action = stage(condition, action)
            return self.actions.for_environment(action)

        return give

    @property
    def decoder(self) -> Denoiser | None:
        """What lies between its actions and the environment's, where anything does."""
        return self._decoder

    def condition(self, observation: Tensor) -> Tensor:
        """[N,O] stored observations as decoder and correction read them, in their own units."""
        flat = observation.reshape(len(observation), *self.encoder.stored.shape)
        return flat if self.module.flat is None else self.module.flat(flat)

    @torch.no_grad()
    def renew(self, names: Sequence[str], seed: int) -> None:
        """Draws networks anew by their names, as another seed makes them; with the actor what is known of observations is forgotten."""
        twin = type(self)(self.observation, self.actions, **self._sizes, normalize=self.normalizes, seed=seed)
        for name in names:
            if name == DECODER and self._decoder is not None:
                self._decoder.draw(generator(seed, DECODER))
                continue
            theirs = [*twin.weights_of(name), *twin.buffers_of(name)]
            for own, their in zip([*self.weights_of(name), *self.buffers_of(name)], theirs, strict=True):
                own.copy_(their)
        if ACTOR in names and self.module.normalizer is not None:
            for buffer in self.module.normalizer.buffers():
                buffer.zero_()

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` (the weights) and `config.json` (spaces, sizes, activation). `null` in a bound is no bound."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "policy": "actor_critic",
            "observation": self.observation,
            "actions": described(self.actions),
            "hidden": list(self.hidden),
            "activation": self.activation,
            "normalize_observations": self.normalizes,
        }
        config |= {} if self.has_value else {"critic": False}
        config |= {} if self.heads == (1, 1) else {"heads": list(self.heads)}
        config |= {} if self.steps is None else {"steps": self.steps}
        if isinstance(self.actions, GreedyActions):
            shape = next((m.members, m.channels) for m in self.module.actor.modules() if isinstance(m, Ensemble))
            config |= {} if shape == (1, 1) else {"values": list(shape)}
        if (decoder := self._decoder) is not None:
            config["decoder"] = {"process": decoder.process, "hidden": list(decoder.network.sizes[1:-1]), "steps": decoder.steps}
        config |= {} if self.correction is None else {"correction": self.correction.settings}
        weights = {name: tensor for name, tensor in self.module.state_dict().items() if not name.startswith(_MORE)}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def save_critic(self, folder: Path) -> None:
        """Writes the networks that acting does not need; nothing where there are none."""
        from safetensors.torch import save_file

        more = {name: t.detach().cpu().contiguous() for name, t in self.module.state_dict().items() if name.startswith(_MORE)}
        if more:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(more, folder / _NETWORKS)

    def load_critic(self, folder: Path) -> None:
        """Takes over what `save_critic` wrote of networks that this policy has too. `InputError` where they do not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (folder / _NETWORKS).is_file():
            return
        own = self.module.state_dict()
        try:
            given = load_file(folder / _NETWORKS)
            kept = ({_network_of(name) for name in given} & {_network_of(name) for name in own}) - {""}
            found = {name: tensor for name, tensor in given.items() if _network_of(name) in kept}
            if odd := {name for name in own if _network_of(name) in kept} ^ found.keys():
                where = "missing there" if (name := min(odd)) in own else "none of this policy's"
                raise InputError(f"the networks in '{folder}' cannot be taken over: '{name}' is {where}")
            self.module.load_state_dict(own | found)
            self.copy_lagged(but={name.removeprefix(_MORE).split(".")[0] for name in found})
        except (RuntimeError, SafetensorError) as error:
            raise InputError(f"the networks in '{folder}' cannot be taken over: {one_line(error)}") from error
        if wrong := nonfinite(found.items()):
            raise InputError(f"the networks in '{folder}' cannot be used: {wrong}")

    @classmethod
    def load(cls, folder: Path, networks: Mapping[str, Network] | None = None) -> ActorCritic:
        """The policy that `save` wrote, and new `networks` beside it. A missing or foreign file is an `InputError`, and so are weights that
        are not finite."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for name in (_CONFIG, _WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"{folder} holds no {name}; accepted: a folder that ActorCritic.save wrote")
        if not is_controller(folder):
            raise InputError(f"{folder / _CONFIG} does not describe an actor_critic policy")
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        networks = dict(networks or {})
        learns, corrects = DECODER in networks, CORRECTION in networks
        try:
            if "values" in config:
                networks = {VALUES: ActionValues(*config["values"]), **networks}
            if "decoder" in config:
                decoder = Decoder(**{**config["decoder"], "hidden": tuple(config["decoder"]["hidden"])})
                if learns and networks[DECODER] != decoder:
                    raise InputError(
                        f"the decoder in '{folder}' is {decoder}, but the algorithm asks for {networks[DECODER]}; accepted: that one, or "
                        "no controller.model"
                    )
                networks[DECODER] = decoder
            if "correction" in config and not corrects:
                networks[CORRECTION] = Corrector(**config["correction"])
            policy = cls(
                config["observation_shape"] if "observation_shape" in config else config["observation"],
                actions_from(**config["actions"]),
                hidden=tuple(config["hidden"]),
                activation=config["activation"],
                normalize=config.get("normalize_observations", False),
                critic=config.get("critic", True),
                heads=tuple(config.get("heads", (1, 1))),
                networks=networks,
                steps=config.get("steps"),
            )
            weights = load_file(folder / _WEIGHTS)
            more = (_MORE, *([] if "decoder" in config else [f"{DECODER}."]), *([f"{CORRECTION}."] if corrects else []))
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(more)}
            new = {name: tensor for name, tensor in policy.module.state_dict().items() if name.startswith(more)}
            policy.module.load_state_dict(weights | new)
            policy.copy_lagged()
            if policy.decoder is not None and not learns:
                policy.decoder.requires_grad_(False)  # whoever goes on with it acts through it as it is
        except KeyError as error:
            raise InputError(
                f"{folder / _CONFIG} has no {error}: it was written before actions were in units of their bounds; accepted: a newer model"
            ) from error
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"the controller in '{folder}' cannot be read: {one_line(error)}") from error
        if wrong := nonfinite(weights.items()):
            raise InputError(f"the controller in '{folder}' cannot be used: {wrong}")
        return policy


_MORE = "more."
"""What the names of weights begin with that acting does not need."""
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_NETWORKS = "networks.safetensors"


def _network_of(weight: str) -> str:
    """Which network a weight that acting does not need belongs to; empty for the others."""
    return weight.removeprefix(_MORE).split(".")[0] if weight.startswith(_MORE) else ""


def is_controller(folder: Path) -> bool:
    """Whether a folder holds what `ActorCritic.save` wrote."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("policy") == "actor_critic"


_WITHOUT_CHANCE = ("deterministic", "greedy")
"""Kinds of actions that have no probabilities."""


@dataclass(frozen=True)
class Wanted:
    """What an algorithm asks of a controller: kinds of actions that it can train, sizes where the recipe has none, and networks by name."""

    who: str = ""
    kinds: tuple[Kind, ...] = ()
    """The first that fits is the default; none: whatever gives probabilities."""
    hidden: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    init: Initialisation = "orthogonal"
    normalize: bool = False
    """Whether it reads observations in units of their statistics."""
    components: int = COMPONENTS
    """Of a mixture."""
    critic: bool = True
    """Whether there is a critic of states."""
    heads: tuple[int, int] = (1, 1)
    """Its members, and what each says."""
    steps: int | None = None
    """Of an episode, for each of which there is a policy of its own."""
    networks: Callable[[bool], Mapping[str, Network]] = lambda counted: {}
    """Beside the actor, by whether actions can be counted."""
    wraps: bool = False
    """Whether a saved policy of any of these kinds will do, and acts as it did."""

    def kind_of(self, asked: Kind, space: gymnasium.Space) -> Kind:
        """The kind of actions; `InputError` for one, or for a space, that the algorithm cannot train."""
        from gymnasium import spaces

        if not self.kinds:
            if self.who and asked in _WITHOUT_CHANCE:
                drawn = (kind for kind in get_args(Kind) if kind not in ("auto", *_WITHOUT_CHANCE))
                fits = f"{', '.join(drawn)}, auto" if isinstance(space, spaces.Box) else "auto"
                raise InputError(
                    f"controller.kind is '{asked}', whose actions have no probabilities; accepted for algorithm '{self.who}' here: {fits}"
                )
            return asked
        counted = ("auto", "greedy")
        real = tuple(kind for kind in get_args(Kind) if kind not in counted)
        fitting = [kind for kind in self.kinds if kind in (real if isinstance(space, spaces.Box) else counted)]
        if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) or not fitting:
            fits = " or ".join(
                name for name, some in (("Discrete", counted), ("a Box of real numbers", real)) if any(kind in some for kind in self.kinds)
            )
            raise InputError(f"the environment's actions are {space}; accepted for algorithm '{self.who}': {fits}")
        if asked == "auto":
            return fitting[0]
        if asked not in fitting:
            raise InputError(f"controller.kind is '{asked}'; accepted for algorithm '{self.who}' here: {', '.join(fitting)}, auto")
        return asked


@dataclass(frozen=True)
class ActorCriticRecipe(CheckedArguments):
    """An `ActorCritic`: its sizes, or a saved one to go on from; the spaces come from the environment."""

    hidden: list[int] | None = None
    """Width of each hidden layer, of the actor and of critics; an empty list makes them linear. null: the algorithm's own, or [64, 64]."""
    activation: Activation | None = None
    """tanh, relu or silu between the layers. null: the algorithm's own, or tanh."""
    log_std: float = 0.0
    """Logarithm of the Gaussian's initial standard deviation; read for real actions only. In units of half the distance between an
    action's bounds, where these are finite."""
    normalize_observations: bool | None = None
    """Whether the policy reads observations in units of their mean and standard deviation, running ones or those of a dataset, which it
    keeps and saves. null: as the algorithm does, and where the environment is wrapped by NormalizeObservation, in its place."""
    channels: Channels = "auto"
    """Where the channels of image observations (bytes with three axes) are: first, last, or auto, on the shorter one of these axes."""
    model: str | None = None
    """A folder with a saved controller, or a run folder: its weights, sizes and statistics are the start. Default: a new one."""
    kind: Kind = "auto"
    """gaussian, spread (its spread by state), bounded (its mean by tanh), bounded_spread (both by tanh), squashed (its draws by tanh),
    latent (tanh is the environment's), deterministic, greedy (the best by its value), mixture, squashed_mixture. auto: what the algorithm
    is for."""
    components: int | None = None
    """Gaussians of a mixture. null: the algorithm's own, or 4."""
    evaluated: Evaluated | None = None
    """Whose mean evaluations of a mixture play: that of the router's best component, or of one that it draws. null: best."""
    init: Literal["orthogonal", "torch"] | None = None
    """Weights at the start: orthogonal with biases 0, or as torch makes linear layers. null: the algorithm's own, or orthogonal."""

    def __post_init__(self) -> None:
        if self.model is not None:
            object.__setattr__(self, "model", in_home(self.model))
        if not all(isinstance(width, int) and width >= 1 for width in self.hidden or ()):
            raise InputError(f"controller.hidden is {self.hidden}; accepted: a list of layer widths of at least 1")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise InputError(f"controller.activation '{self.activation}' does not exist; {nearest(str(self.activation), ACTIVATIONS)}")
        if self.components is not None and self.components < 1:
            raise InputError(f"controller.components is {self.components}; accepted: 1 or more")
        if not math.isfinite(self.log_std):
            raise InputError(f"controller.log_std is {self.log_std}; accepted: a finite number")

    def build(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        seed: int,
        *,
        normalized: bool = False,
        wanted: Wanted | None = None,
    ) -> ActorCritic:
        """An untrained policy for the spaces of ONE environment, or the saved one that `model` names.

        Observations are a Box (of bytes with three axes: an image), Discrete, MultiDiscrete, MultiBinary or a Dict of these without images;
        actions Discrete, MultiDiscrete, MultiBinary, or a Box of real numbers. `normalized`: whether the environment had a running
        normaliser of its own, which the policy must then replace. `wanted`: what an algorithm asks for. Anything else is an `InputError`.
        """
        wanted = wanted or Wanted()
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
        kind = wanted.kind_of(self.kind, action_space)
        actions = actions_of(action_space, kind, **self._own(kind, wanted))
        networks = wanted.networks(isinstance(actions, DiscreteActions))
        if self.model is not None:
            own = self.kind == "auto" if wanted.wraps else not wanted.who and kind == "auto"  # nobody asks for another one
            asked = None if own else kind
            heads = wanted.heads if wanted.who and not wanted.wraps else None
            return self._saved(Path(self.model), observation, action_space, asked, normalized, networks, heads)
        if normalized and self.normalize_observations is None:
            warnings.warn(
                "the environment's NormalizeObservation is switched off, and the policy keeps the statistics in its place, for evaluations "
                "and the saved model too; controller.normalize_observations: true says the same without this warning",
                stacklevel=2,
            )
        asked_for = wanted.normalize and observation["type"] != "image"  # bytes are divided by 255 already
        return ActorCritic(
            observation,
            actions,
            hidden=tuple(wanted.hidden if self.hidden is None else self.hidden),
            activation=self.activation or wanted.activation,
            log_std=self.log_std,
            normalize=(normalized or asked_for) if self.normalize_observations is None else self.normalize_observations,
            critic=wanted.critic,
            heads=wanted.heads,
            init=self.init or wanted.init,
            networks=networks,
            steps=wanted.steps,
            seed=seed,
        )

    def _own(self, kind: Kind, wanted: Wanted) -> dict[str, Any]:
        """Settings of the kind of actions itself."""
        if kind in ("mixture", "squashed_mixture"):
            return {"components": self.components or wanted.components, "evaluated": self.evaluated or "best"}
        for name in ("components", "evaluated"):
            if self.model is None and (value := getattr(self, name)) is not None:
                raise InputError(f"controller.{name} is {value}, which is of mixtures; accepted: kind mixture or squashed_mixture, or null")
        return {}

    def _saved(
        self,
        folder: Path,
        observation: Observation,
        space: gymnasium.Space,
        kind: Kind | None,
        normalized: bool,
        networks: Mapping[str, Network],
        heads: tuple[int, int] | None,
    ) -> ActorCritic:
        if not folder.is_dir():
            raise InputError(f"controller.model '{folder}' is no folder; accepted: one that a control run wrote, or its model folder")
        policy = ActorCritic.load(folder / "model" if (folder / "model").is_dir() else folder, networks)
        if (folder / "critic").is_dir():
            policy.load_critic(folder / "critic")
        kind, own = kind or policy.actions.kind, policy.actions
        mixed = own if isinstance(own, MixtureActions) and kind == own.kind else None
        same = {"components": mixed.components, "evaluated": self.evaluated or mixed.evaluated} if mixed else {}
        actions = actions_of(space, kind, **same)
        if not alike(policy.observation, observation) or policy.actions != actions:
            raise InputError(
                f"the controller in '{folder}' reads observations {_shown(policy.observation)} and gives {told(policy.actions)}, but the "
                f"environment has {_shown(observation)} and {told(actions)}; accepted: a model of the same spaces, and its controller.kind"
            )
        if heads is not None and policy.has_value and policy.heads != heads:
            raise InputError(
                f"the critic in '{folder}' has {_headed(policy.heads)}, but algorithm.critic asks for {_headed(heads)}; accepted: the kind "
                "and the members that it was trained with, or no controller.model"
            )
        default = ActorCriticRecipe()
        has: dict[str, Any] = {"hidden": list(policy.hidden), "activation": policy.activation, "normalize_observations": policy.normalizes}
        has["components"] = getattr(policy.actions, "components", None)
        for name, value in {**has, "log_std": default.log_std}.items():
            given = getattr(self, name)
            if given not in (None, getattr(default, name), value):
                raise InputError(f"controller.{name} is {given}, but that of the model in '{folder}' counts; accepted: leave it out")
        if mixed:
            policy.actions, policy.how_evaluated = actions, actions.how_evaluated
        if normalized and not policy.normalizes:
            raise InputError(
                f"the environment is wrapped by NormalizeObservation, but the model in '{folder}' keeps no statistics; accepted: one that "
                "was trained with controller.normalize_observations"
            )
        policy.observation = policy.encoder.space = observation
        return policy


def _headed(heads: tuple[int, int]) -> str:
    return f"{heads[0]} member{'s' * (heads[0] > 1)} of {heads[1]} number{'s' * (heads[1] > 1)}"


def _shown(observation: Observation) -> Any:
    return observation["shape"] if observation["type"] == "vector" else observation
