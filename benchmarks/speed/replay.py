"""SAC, TD3 and DQN: steps per CPU-second beside Stable-Baselines3, and beside a bare loop of the same arithmetic.

    python benchmarks/speed/replay.py [--peers PYTHON] [--cases sac-256,td3-64] [--repeats 5] [--each N] [--quick]

All sides have one environment, one thread and the settings of Stable-Baselines3's defaults, but for what a case says: networks of 2 x 256
or 2 x 64 with ReLU, batches of 256 and an update after every step (SAC, TD3), batches of 64 and an update after every fourth step (DQN).
Ours is a run as `unipg train` makes it, Stable-Baselines3's its `learn`, and the bare loop the same arithmetic written down plainly, around
Gymnasium's environment, with torch's optimisers. They take turns (`turns.py`). That losses and gradients are equal on the same tensors is
in `tests/peers/`; learning curves are in `benchmarks/claims/control_curves.py`.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from control import ROOT
from turns import Benchmark, Case, Turn, main

DISCOUNT, TAU, WARMUP = 0.99, 0.005, 100
CASES = {
    "sac-256": Case("sac", 256, 500, 1.2, 1 / 1.10),
    "td3-256": Case("td3", 256, 500, 1.2, 1 / 1.10),
    "sac-64": Case("sac", 64, 1000, 1.7, 1 / 1.08),
    "td3-64": Case("td3", 64, 1000, 1.7, 1 / 1.08),
    "dqn": Case("dqn", 64, 5000, 2.5, 1 / 1.08),
}
ENVIRONMENTS = {"sac": "Pendulum-v1", "td3": "Pendulum-v1", "dqn": "CartPole-v1"}


def ours(case: Case, turns: int, turn: Turn) -> None:
    from unipg.algorithms import algorithm_named
    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.training.feeds.replay import ReplayRecipe
    from unipg.training.observer import Observer
    from unipg.training.run import wanted_of
    from unipg.training.trainer import Trainer, TrainingRecipe

    class Turns(Observer):
        def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
            turn()

    experience = EnvironmentRecipe(ENVIRONMENTS[case.algorithm], 1, case.each, vectorized=False).build(0)
    experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    algorithm = algorithm_named(case.algorithm)()
    controller = ActorCriticRecipe(hidden=[case.hidden, case.hidden])
    policy = controller.build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    dqn = case.algorithm == "dqn"
    replay = ReplayRecipe(batch=64 if dqn else 256, warmup=WARMUP, updates_per_step=0.25 if dqn else 1.0)
    training = TrainingRecipe(iterations=turns, save_every=turns)
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(algorithm, policy, experience, folder=Path(scratch, "run"), training=training, replay=replay, observer=Turns())
        run.train()


def stable_baselines3(case: Case, turns: int, turn: Turn) -> None:
    import gymnasium
    import numpy
    import stable_baselines3 as peer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor

    class Turns(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % case.each == 0:
                turn()
            return True

    settings: dict[str, Any] = {"learning_starts": WARMUP, "batch_size": 256, "train_freq": 1, "gradient_steps": 1}
    if case.algorithm == "td3":
        settings["action_noise"] = peer.common.noise.NormalActionNoise(numpy.zeros(1), 0.1 * numpy.ones(1))
    if case.algorithm == "dqn":
        settings = {"batch_size": 64}
    kind = getattr(peer, case.algorithm.upper())
    shape = {"net_arch": [case.hidden, case.hidden]}
    model = kind("MlpPolicy", Monitor(gymnasium.make(ENVIRONMENTS[case.algorithm])), policy_kwargs=shape, device="cpu", seed=0, **settings)
    model.learn(turns * case.each, callback=Turns())


def bare(case: Case, turns: int, turn: Turn) -> None:
    """Rows gathered from one table, networks as one product a layer, gradients by the engine, a fused Adam."""
    import gymnasium
    import numpy
    import torch
    from torch.nn.functional import huber_loss, softplus

    from unipg.networks.perceptron import Ensemble, Perceptron

    environment, source = gymnasium.make(ENVIRONMENTS[case.algorithm]), torch.Generator().manual_seed(0)
    dqn, sac = case.algorithm == "dqn", case.algorithm == "sac"
    wide, acts, batch, every = (4, 2, 64, 4) if dqn else (3, 1, 256, 1)
    hidden, rate = [case.hidden, case.hidden], {"dqn": 1e-4, "sac": 3e-4, "td3": 1e-3}[case.algorithm]
    table = torch.zeros(turns * case.each, 2 * wide + 3)  # observation, the one after it, action, reward, 1 where it goes on
    if dqn:
        q, q_lagged = (Perceptron([wide, *hidden, acts], source=source) for _ in range(2))
    else:
        actor, actor_lagged = (Perceptron([wide, *hidden, 2 if sac else 1], source=source) for _ in range(2))
        q, q_lagged = (Ensemble(2, [wide + 1, *hidden, 1], source=source) for _ in range(2))
    log_alpha = torch.nn.Parameter(torch.zeros(1))
    trained = {"q": list(q.parameters()), "alpha": [log_alpha], **({} if dqn else {"actor": list(actor.parameters())})}
    optimizers = {name: torch.optim.Adam(parameters, lr=rate, fused=True) for name, parameters in trained.items()}

    def step(name: str, loss: Any, longest: float | None = None) -> None:
        for parameter, gradient in zip(trained[name], torch.autograd.grad(loss, trained[name]), strict=True):
            parameter.grad = gradient
        if longest is not None:
            torch.nn.utils.clip_grad_norm_(trained[name], longest)
        optimizers[name].step()

    def follow(net: Any, copy: Any, share: float) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(list(copy.parameters()), list(net.parameters()), share)

    def values(net: Any, s: Any, a: Any, members: int | None = None) -> Any:
        return net(torch.cat([s, a], 1), members=members).squeeze(-1)

    def squashed(s: Any) -> tuple[Any, Any]:
        mean, log_std = actor(s).chunk(2, -1)
        log_std, noise = log_std.clamp(-20, 2), torch.randn(mean.shape, generator=source)
        u = mean + log_std.exp() * noise
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - u - softplus(-2 * u))
        return u.tanh(), density.sum(-1)

    def soft(number: int, s: Any, after: Any, a: Any, r: Any, alive: Any) -> None:
        own, log_prob = squashed(s)
        step("alpha", -(log_alpha * (log_prob.detach() - 1)).mean())
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            following, its = squashed(after)
            target = r + DISCOUNT * alive * (values(q_lagged, after, following).min(0).values - alpha * its)
        step("q", 0.5 * (values(q, s, a) - target).square().sum(0).mean())
        step("actor", (alpha * log_prob - values(q, s, own).min(0).values).mean())
        follow(q, q_lagged, TAU)

    def delayed(number: int, s: Any, after: Any, a: Any, r: Any, alive: Any) -> None:
        with torch.no_grad():
            noise = (0.2 * torch.randn(a.shape, generator=source)).clamp(-0.5, 0.5)
            target = r + DISCOUNT * alive * values(q_lagged, after, (actor_lagged(after).tanh() + noise).clamp(-1, 1)).min(0).values
        step("q", (values(q, s, a) - target).square().sum(0).mean())
        if number % 2:
            return
        step("actor", -values(q, s, actor(s).tanh(), 1)[0].mean())
        follow(q, q_lagged, TAU)
        follow(actor, actor_lagged, TAU)

    def deep(number: int, s: Any, after: Any, a: Any, r: Any, alive: Any) -> None:
        with torch.no_grad():
            target = r + DISCOUNT * alive * q_lagged(after).amax(-1)
        step("q", huber_loss(q(s).gather(1, a.long()).squeeze(1), target), 10.0)
        if number % 2500 == 0:
            follow(q, q_lagged, 1.0)

    def act(seen: Any) -> Any:
        """A number in [-1, 1], or counted."""
        with torch.no_grad():
            row = torch.from_numpy(seen).unsqueeze(0)
            if dqn:
                return int(q(row).argmax()) if float(torch.rand((), generator=source)) > 0.05 else int(environment.action_space.sample())
            if sac:
                return float(squashed(row)[0])
            return max(-1.0, min(1.0, float(actor(row).tanh() + 0.1 * torch.randn((), generator=source))))

    update = {"sac": soft, "td3": delayed, "dqn": deep}[case.algorithm]
    (seen, _), rows = environment.reset(seed=0), table.numpy()
    for count in range(turns * case.each):
        action = act(seen)
        after, reward, ended, cut, _ = environment.step(action if dqn else numpy.array([2 * action], numpy.float32))
        rows[count] = (*seen, *after, action, reward, not ended)
        seen = environment.reset()[0] if ended or cut else after
        if count >= WARMUP and count % every == 0:
            drawn = table[torch.randint(count + 1, (batch,), generator=source)]
            columns = drawn[:, :wide], drawn[:, wide : 2 * wide], drawn[:, 2 * wide : 2 * wide + 1]
            update(count // every, *columns, drawn[:, -2], drawn[:, -1])
        if (count + 1) % case.each == 0:
            turn()


REPLAY = Benchmark(
    script=__file__,
    doc=__doc__ or "",
    output=ROOT / "benchmarks" / "results" / "speed-replay.json",
    cases=CASES,
    sides={"ours": ours, "bare": bare, "peer": stable_baselines3},
    unit="steps",
    peer="stable-baselines3",
    option="--peers",
    needs="pip install torch==2.13.0 stable-baselines3==2.9.2",
    environment="UNIPG_PEERS_PYTHON",
    python=ROOT / ".venv-peers" / "bin" / "python",
    few=200,
)


if __name__ == "__main__":
    sys.exit(main(REPLAY, sys.argv[1:]))
