"""verl: registers an algorithm's surrogate and advantage under its registries.

    import unipg.interop.verl as unipg_verl        # in every worker, e.g. through verl's `external_lib`
    unipg_verl.register("cispo")                   # -> loss_mode: unipg_cispo, adv_estimator: unipg_cispo

verl prepares batches, brings log-probabilities and reduces with its own `agg_loss` and global counts; unipg brings mask, reference and
advantage. Terms beside the policy gradient (KL, entropy) stay verl's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.errors import InputError
from unipg.interop.functions import advantage_function, per_token_function


def register(name: str, max_new_tokens: int | None = None, **hyper_parameters: Any) -> str:
    """Registers algorithm `name` as policy loss and advantage estimator `unipg_<name>`; returns that name.

    `max_new_tokens`: verl's limit on a response, for algorithms whose reward has a penalty on length.
    """
    try:
        from verl.trainer.ppo import core_algos
    except ImportError as error:
        raise InputError(f"registering in verl needs verl: {error}") from error
    algorithm: Algorithm = algorithm_named(name)(**hyper_parameters)
    per_token, advantages = per_token_function(algorithm), advantage_function(algorithm, max_new_tokens)
    known = f"unipg_{name}"

    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        losses = per_token(log_prob, old_log_prob, advantages, response_mask.bool())
        if rollout_is_weights is not None:
            losses = losses * torch.where(response_mask.bool(), rollout_is_weights, 0)
        counts = dict(getattr(config, "global_batch_info", None) or {})
        loss = core_algos.agg_loss(loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **counts)
        with torch.no_grad():
            inside = response_mask.bool()
            log_ratio = torch.where(inside, log_prob - old_log_prob, 0)
            mean = log_ratio.sum() / inside.sum().clamp_min(1)
        return loss, {"actor/ppo_kl": -mean.item()}

    def estimate(token_level_rewards: Tensor, response_mask: Tensor, index: Any, **_: Any) -> tuple[Tensor, Tensor]:
        numbers = {key: i for i, key in enumerate(dict.fromkeys(index))}
        group = torch.tensor([numbers[key] for key in index], device=token_level_rewards.device)
        mask = response_mask.bool()
        found = advantages(torch.where(mask, token_level_rewards, 0).sum(-1), mask, group)
        return found, found

    core_algos.register_policy_loss(known)(policy_loss)
    if known not in core_algos.ADV_ESTIMATOR_REGISTRY:
        core_algos.register_adv_est(known)(estimate)
    return known
