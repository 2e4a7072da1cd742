"""TRL's GRPO trainer in the language benchmark. Runs in the peers' environment."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}

import torch
from work import CLIP, LEARNING_RATE, PROOF_RATE, ForcedLengths, Line, Meter, Order, load, memory_mb, one_thread, save_weights


def side(order: Order, line: Line) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    work, setting = order.work, dict(order.setting)
    rows = setting.pop("rows", work.rows)
    model, tokenizer = load(work, Path(order.folder))

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [work.reward(p, a) for p, a in zip(prompts, completions, strict=True)]

    def given(prompts: list[str], trainer: Any) -> dict[str, Any]:
        stored = defaultdict(list)
        answers = work.completions()
        for i, prompt in enumerate(work.prompt_texts):
            stored[prompt] = answers[i * work.rollouts : (i + 1) * work.rollouts]
        position = defaultdict(itertools.count)
        chosen = [stored[p][next(position[p])] for p in prompts]
        return {"prompt_ids": tokenizer(list(prompts))["input_ids"], "completion_ids": chosen, "logprobs": [[0.0] * len(c) for c in chosen]}

    class Steps(TrainerCallback):
        """Holds each step until it is asked for, and times it."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not order.proof:
                if not line.wait():
                    os._exit(0)
                meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not order.proof:
                line.tell({**meter.end(), "peak_mb": memory_mb("VmHWM"), "base_mb": meter.base})

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=work.rows // rows,
            num_generations=work.rollouts,
            max_completion_length=work.longest,
            max_steps=1 if order.proof else 10_000,
            learning_rate=PROOF_RATE if order.proof else LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0 if order.proof else 1.0,
            loss_type="grpo",
            epsilon=CLIP,
            beta=0.0,
            temperature=1.0,
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
            **{"gradient_checkpointing": False, **setting},
        )
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": p} for p in work.prompt_texts]),
            optimizers=(torch.optim.SGD(model.parameters(), PROOF_RATE), None) if order.proof else (None, None),
            callbacks=[Steps()],
            rollout_func=given if order.given else None,
        )
        if not order.given:
            free, forced = model.generate, ForcedLengths(work.prompt_tokens, work.lengths())
            model.generate = lambda *a, **k: free(*a, logits_processor=[forced], **k)
        meter = Meter()
        trainer._generate_and_score_completions = meter.generated(trainer._generate_and_score_completions)
        trainer.train()
        if order.proof:
            save_weights(model, order.proof)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    one_thread()
    side(Order.read(sys.argv[1]), Line())
