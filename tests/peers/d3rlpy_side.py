"""What d3rlpy makes of weights and transitions that `test_d3rlpy.py` hands over: `python d3rlpy_side.py IN.npz OUT.npz`.

It runs in d3rlpy's own environment. Losses are d3rlpy's own functions; only what it draws is replaced by the given numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.torch_utility import TorchMiniBatch

DOUBLE = torch.float64


def main(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name, hidden = str(given["algorithm"]), [int(size) for size in given["hidden"]]
    encoder = d3rlpy.models.VectorEncoderFactory(hidden)
    settings: dict[str, Any] = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder, "gamma": float(given["discount"])}
    kinds = {"iql": d3rlpy.algos.IQLConfig, "td3_bc": d3rlpy.algos.TD3PlusBCConfig, "cql": d3rlpy.algos.CQLConfig}
    own: dict[str, dict[str, Any]] = {
        "iql": {"value_encoder_factory": encoder},
        "td3_bc": {},
        "cql": {"n_action_samples": int(given.get("draws", 1)), "alpha_learning_rate": 0.0},
    }
    algo = kinds[name](**settings, **own[name]).create(device=False)
    size = given["action"].shape[1]
    algo.create_impl(given["observation"].shape[1:], size)
    impl = algo.impl
    modules = impl._modules
    nets = {"actor": modules.policy, "q": modules.q_funcs, "q_lagged": modules.targ_q_funcs}
    if name == "iql":
        nets["v"] = modules.value_func
    if name == "td3_bc":
        nets["actor_lagged"] = modules.targ_policy
    for net_name, net in nets.items():
        net.double()
        with torch.no_grad():
            for number, parameter in enumerate(parameters_of(net)):
                parameter.copy_(torch.from_numpy(given[f"{net_name}/{number}"]))
    if name == "iql":  # ours has log std 0 there
        with torch.no_grad():
            modules.policy._logstd.data = torch.full((1, size), float(np.log(5 / 2)), dtype=DOUBLE)
    column = {key: torch.from_numpy(given[key]) for key in ("observation", "next_observation", "action", "reward", "terminated")}
    rows = len(column["action"])
    batch = TorchMiniBatch(
        observations=column["observation"],
        actions=column["action"],
        rewards=column["reward"].reshape(-1, 1),
        next_observations=column["next_observation"],
        next_actions=column["action"],
        returns_to_go=torch.zeros(rows, 1, dtype=DOUBLE),
        terminals=column["terminated"].double().reshape(-1, 1),
        intervals=torch.ones(rows, 1, dtype=DOUBLE),
        device="cpu",
    )
    normal = iter([torch.from_numpy(given[key]) for key in ("drawn", "drawn_after") if key in given])
    torch.distributions.Normal.rsample = lambda self, shape=(): self.loc + self.scale * next(normal)  # type: ignore[method-assign]
    if "smoothing" in given:
        torch.randn = lambda shape, device: torch.from_numpy(given["smoothing"]).reshape(shape)
    if "evenly" in given:
        torch.Tensor.uniform_ = lambda self, low, high: torch.from_numpy(given["evenly"]).reshape(self.shape)  # type: ignore[method-assign]
    target = impl.compute_target(batch)
    critic = impl.compute_critic_loss(batch, target).critic_loss
    critic.backward()
    found = {"critic": critic.detach().numpy()}
    found |= {f"q/{number}": parameter.grad.numpy().copy() for number, parameter in enumerate(parameters_of(modules.q_funcs))}
    if name == "iql":
        found |= {f"v/{number}": parameter.grad.numpy().copy() for number, parameter in enumerate(parameters_of(modules.value_func))}
    if name != "cql":
        modules.policy.zero_grad()
        loss = impl.compute_actor_loss(batch, modules.policy(batch.observations)).actor_loss
        loss.backward()
        found |= {f"actor/{number}": parameter.grad.numpy() for number, parameter in enumerate(parameters_of(modules.policy))}
    return found


def parameters_of(net: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """Weights and biases in the order of layers, without a standard deviation that is a parameter."""
    for name, parameter in net.named_parameters():
        if name != "_logstd":
            yield parameter


if __name__ == "__main__":
    place, out = sys.argv[1:]
    np.savez(out, **main(dict(np.load(place))))
