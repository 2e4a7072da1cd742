"""Training a language model through the command line: files, resume, kills, and what bad input gets."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unipg.cli import main
from unipg.training import learner
from unipg.training.checkpoints import read_checkpoint


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command prints; exit code 2."""
    assert main(list(arguments)) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    assert "Traceback" not in printed
    return printed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder)["module"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")} for line in lines(path)]


def test_a_run_writes_what_a_user_needs(recipe, tmp_path, capsys, rows) -> None:
    path = recipe(evaluation={"items": 6, "tasks": [{"data": {"source": str(tmp_path / "held.jsonl"), "prompt": "q", "answer": "a"}}]})
    (tmp_path / "held.jsonl").write_text('{"q": "9 + 1 =", "a": "10"}\n{"q": "1 + 0 =", "a": "1"}\n', encoding="utf-8")
    assert main(["train", path]) == 0
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    metrics = lines(run / "metrics.jsonl")
    assert [m["iteration"] for m in metrics] == [0, 1, 2]
    for key in (
        "loss",
        "reward/mean",
        "gate/offline_fraction",
        "gradient_norm",
        "entropy",
        "learning_rate",
        "time/rollout",
        "advantage/sft/mean",
    ):
        assert key in metrics[-1], key
    assert {h["name"] for h in lines(run / "histograms.jsonl")} >= {"reward", "success_rate", "advantage/sft"}
    evaluations = lines(run / "evaluations.jsonl")
    assert [e["iteration"] for e in evaluations] == [0, 3]
    # '1 + 0 =' is also a training prompt: it is not held out
    assert evaluations[0]["results"][0]["metrics"]["pass@1 (greedy)"]["n"] == 1
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    assert model(**tokenizer("2 + 2 =", return_tensors="pt")).logits.shape[-1] == len(tokenizer)
    capsys.readouterr()
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--task",
                f"{rows}:{{prompt: q, answer: a}}",
                "--samples",
                "4",
                "--k",
                "1,2",
                "--json",
                str(tmp_path / "e.json"),
            ]
        )
        == 0
    )
    assert "maj@2" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "e.json").read_text())["results"][0]["metrics"]) == {
        "pass@1 (greedy)", "pass@1 (sampled)", "pass@2", "maj@2",
    }  # fmt: skip


@pytest.mark.parametrize("algorithm", ["hpt", "ppo", "grpo", "luffy"])
def test_a_stop_anywhere_and_resume_is_bit_identical(recipe, tmp_path, algorithm, monkeypatch) -> None:
    path = recipe(algorithm={"name": algorithm, "rollouts": 4}, training={"iterations": 3, "prompts": 4, "epochs": 2, "minibatches": 2})
    assert main(["train", path]) == 0
    expected = weights(tmp_path / "run")
    numbers = without_times(tmp_path / "run" / "metrics.jsonl")
    from unipg.training.trainer import Trainer

    for stop in (2, 3, 5):
        output = f"output={tmp_path / f'stop{stop}'}"
        with monkeypatch.context() as patched:
            build = Trainer.__init__

            def until(self, *arguments, stop=stop, build=build, **options) -> None:
                build(self, *arguments, **options)
                self.stop_after_steps = stop

            patched.setattr(Trainer, "__init__", until)
            assert main(["train", path, output]) == 130
        assert read_checkpoint(tmp_path / f"stop{stop}")["step"] == stop
        assert main(["train", path, output, "--resume"]) == 0
        found = weights(tmp_path / f"stop{stop}")
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert without_times(tmp_path / f"stop{stop}" / "metrics.jsonl") == numbers


def test_a_process_that_was_interrupted_continues_with_the_same_numbers(recipe, tmp_path) -> None:
    path = recipe(training={"iterations": 30, "prompts": 4})
    assert main(["train", path, f"output={tmp_path / 'straight'}"]) == 0
    output = f"output={tmp_path / 'killed'}"
    command = [sys.executable, "-m", "unipg.cli", "train", path, output]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert read_checkpoint(tmp_path / "killed")["iteration"] < 30
    assert main(["train", path, output, "--resume"]) == 0
    straight, resumed = (lines(tmp_path / name / "metrics.jsonl") for name in ("straight", "killed"))
    assert [m["loss"] for m in straight] == [m["loss"] for m in resumed]
    assert all(
        torch.equal(a, b) for a, b in zip(weights(tmp_path / "straight").values(), weights(tmp_path / "killed").values(), strict=True)
    )


@pytest.mark.parametrize("checkpoint", [True, False])
def test_what_a_killed_run_wrote_is_not_written_twice(recipe, tmp_path, monkeypatch, checkpoint) -> None:
    """A kill after the evaluation and before the next checkpoint: that evaluation, and without a checkpoint everything, is done again."""
    (tmp_path / "held.jsonl").write_text('{"q": "9 + 1 =", "a": "10"}\n', encoding="utf-8")
    held_out = {"items": 1, "tasks": [{"data": {"source": str(tmp_path / "held.jsonl"), "prompt": "q", "answer": "a"}}]}
    path = recipe(training={"iterations": 4, "prompts": 2, "save_every": 2 if checkpoint else 9, "evaluate_every": 2}, evaluation=held_out)
    from unipg.training.feeds.rollouts import Rollouts

    collect = Rollouts.begin

    def killed(self) -> None:
        if self.run.iteration == 2:
            raise RuntimeError("killed")
        collect(self)

    with monkeypatch.context() as patched:
        patched.setattr(Rollouts, "begin", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(["train", path])
    assert (tmp_path / "run" / "checkpoint.pt").exists() == checkpoint
    assert main(["train", path, "--resume"]) == 0
    assert [m["iteration"] for m in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3]
    assert [e["iteration"] for e in lines(tmp_path / "run" / "evaluations.jsonl")] == [0, 2, 4]


def test_the_gradient_does_not_depend_on_the_token_budget(recipe, tmp_path) -> None:
    """Adam would blow rounding up where gradients are tiny; a large eps keeps steps proportional to gradients."""
    path = recipe(training={"iterations": 1, "prompts": 6}, optimizer={"learning_rate": 0.1, "eps": 1.0}, policy={"dtype": "float64"})
    for tokens in (16, 40, 100000):
        assert main(["train", path, f"training.micro_batch_tokens={tokens}", f"output={tmp_path / str(tokens)}"]) == 0
    whole = weights(tmp_path / "100000")
    for tokens in (16, 40):
        found = weights(tmp_path / str(tokens))
        assert all(torch.allclose(found[name], value, rtol=0, atol=1e-12) for name, value in whole.items())


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainig.iterations=3"], "trainig: this key does not exist; did you mean 'training'"),
        (["training.iteration=3"], "training.iteration: this key does not exist; did you mean 'iterations'"),
        (["training.iterations=three"], "training.iterations: expected a whole number, got 'three'"),
        (["training.iterations=0"], "training.iterations is 0"),
        (["algorithm=hptt"], "algorithm 'hptt' does not exist; did you mean 'hpt'"),
        (["algorithm.gama=0.5"], "algorithm.gama: this key does not exist; did you mean 'gamma'"),
        (["algorithm.gamma=2"], "algorithm.gamma is 2"),
        (["algorithm.rollouts=0"], "algorithm.rollouts is 0; accepted for hpt: 1 or more"),
        (["algorithm.on_missing_demo=ignore"], "algorithm.on_missing_demo: 'ignore' does not exist; accepted: error, rl, skip"),
        (["rollouts.top_p=0.9"], "importance ratio would be wrong"),
        (["rollouts.temperature=0"], "rollouts.temperature is 0"),
        (["optimizer.schedule=cosin"], "did you mean 'cosine'"),
        (["policy.model=nowhere/such"], "give either `model`"),
        (["policy.scratch=null", "policy.model=./nowhere"], "the model folder './nowhere' does not exist"),
        (["task.data.source=missing.jsonl"], "missing.jsonl"),
        (["task.data.prompt=question"], "question"),
        (["task.data.verifier=exact_mach"], "exact_mach"),
        (["device=cuda"], "cuda"),
        (["nonsense"], "not of the form dotted.key=value"),
        (["logging.trackers=[tensorbord]"], "did you mean 'tensorboard'"),
        (["threads=0"], "threads is 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_recipe_errors_name_the_place(recipe, tmp_path, capsys, overrides, said) -> None:
    if overrides == ["device=cuda"] and torch.cuda.is_available():
        overrides, said = ["device=cudda"], "cudda"
    path = recipe()
    assert said in refused(capsys, "train", path, *overrides)
    assert not (tmp_path / "run").exists()


def test_a_missing_an_empty_and_a_broken_recipe(tmp_path, capsys) -> None:
    assert "does not exist" in refused(capsys, "train", str(tmp_path / "no.yaml"))
    (tmp_path / "empty.yaml").write_text("")
    assert "is empty" in refused(capsys, "train", str(tmp_path / "empty.yaml"))
    (tmp_path / "broken.yaml").write_text("algorithm: [hpt\n")
    assert "line 2 is not valid YAML" in refused(capsys, "train", str(tmp_path / "broken.yaml"))
    (tmp_path / "self.yaml").write_text("base: self.yaml\n")
    assert "its own base" in refused(capsys, "train", str(tmp_path / "self.yaml"))


def test_an_empty_data_file(recipe, rows, capsys, tmp_path) -> None:
    rows.write_text("")
    assert "train.jsonl" in refused(capsys, "train", recipe())


def test_a_prompt_without_its_demonstration_is_named(recipe, rows, capsys) -> None:
    rows.write_text('{"q": "what is love?", "a": "baby"}\n', encoding="utf-8")
    path = recipe(task={"data": {"source": str(rows), "prompt": "q", "answer": "a", "verifier": "exact_match"}})
    assert "'what is love?'" in refused(capsys, "train", path)


def test_a_demonstration_longer_than_the_limit(recipe, rows, capsys, tmp_path) -> None:
    rows.write_text('{"q": "1 =", "a": "123456789"}\n', encoding="utf-8")
    said = refused(capsys, "train", recipe())
    assert "line 1" in said
    assert "more than rollouts.max_new_tokens (4)" in said
    assert main(["train", recipe(rollouts={"long_demonstrations": "truncate"}), f"output={tmp_path / 'cut'}"]) == 0
    assert lines(tmp_path / "cut" / "metrics.jsonl")[0]["demonstrations/truncated"] >= 1


def test_a_non_binary_reward_with_a_gate(recipe, capsys, monkeypatch, rows, tmp_path) -> None:
    (tmp_path / "graded.py").write_text("def half(answer, item):\n    return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = recipe(task={"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "graded:half"}})
    assert "success_threshold" in refused(capsys, "train", path)


def test_a_verifier_that_raises_or_hangs_is_counted_and_the_run_goes_on(recipe, monkeypatch, rows, tmp_path) -> None:
    (tmp_path / "moody.py").write_text(
        "calls = 0\n"
        "def judge(answer, item):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls % 5 == 1: raise ValueError('bad mood')\n"
        "    if calls % 17 == 2:\n"
        "        while True: pass\n"
        "    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = recipe(
        task={"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "moody:judge"}},
        rollouts={"verifier_seconds": 0.05},
    )
    assert main(["train", path]) == 0
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert all(m["verifier/failures"] >= 3 for m in metrics)
    assert all(0 < m["reward/mean"] < 1 for m in metrics)


def test_a_reward_that_is_not_a_number_names_verifier_and_item(recipe, capsys, monkeypatch, rows, tmp_path) -> None:
    (tmp_path / "undecided.py").write_text("def judge(answer, item):\n    return float('nan')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = recipe(task={"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "undecided:judge"}})
    said = refused(capsys, "train", path)
    assert "judge' gave nan for" in said
    assert "line" in said


def test_an_existing_run_folder_and_a_checkpoint_of_another_recipe(recipe, tmp_path, capsys) -> None:
    path = recipe()
    assert "does not exist" in refused(capsys, "train", path, "--resume")
    assert main(["train", path]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "already exists" in refused(capsys, "train", path)
    (tmp_path / "run" / "run.json").unlink()
    said = refused(capsys, "train", path, "--resume", "algorithm.gamma=0.5")
    assert "belongs to another recipe" in said
    assert "gamma" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_run_that_failed_in_its_first_iteration_can_be_started_again(recipe, tmp_path, capsys, monkeypatch, rows) -> None:
    (tmp_path / "hopeless.py").write_text("def judge(answer, item):\n    return float('nan')\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = {"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "hopeless:judge"}}
    assert "gave nan" in refused(capsys, "train", recipe(task=task))
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert main(["train", recipe()]) == 0
    assert main(["train", recipe(), f"output={tmp_path / 'straight'}"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(tmp_path / "straight").values(), strict=True))
    assert json.loads((run / "run.json").read_text())["resumed"] == []
    assert without_times(run / "metrics.jsonl") == without_times(tmp_path / "straight" / "metrics.jsonl")


def test_what_a_failed_run_has_trained_is_protected(recipe, tmp_path, capsys, monkeypatch, rows) -> None:
    """With a checkpoint; and without one, where an iteration has finished."""
    (tmp_path / "patient.py").write_text(
        "import itertools\nN = itertools.count()\ndef judge(answer, item):\n    return 0.0 if next(N) < 20 else float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import patient

    task = {"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "patient:judge"}}
    for save_every in (1, 9):
        monkeypatch.setattr(patient, "N", itertools.count())
        output = tmp_path / f"every{save_every}"
        path = recipe(task=task, output=str(output), training={"iterations": 3, "prompts": 4, "save_every": save_every})
        assert "gave nan" in refused(capsys, "train", path)
        assert len(lines(output / "metrics.jsonl")) == 1
        assert (output / "checkpoint.pt").exists() == (save_every == 1)
        assert "already exists" in refused(capsys, "train", path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "recipe.yaml").write_text("mine")
    assert "already exists" in refused(capsys, "train", recipe(output=str(foreign)))
    assert (foreign / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize("algorithm", ["ppo", "tppo", "reinforce_plus_plus"])
def test_a_discount_or_a_weight_out_of_range_is_named_as_in_the_recipe(recipe, capsys, algorithm) -> None:
    path = recipe(algorithm={"name": algorithm})
    for name in {"ppo": ["gamma", "lam"], "tppo": ["gamma", "lam", "value_lam"]}.get(algorithm, ["gamma"]):
        for value in ("1.5", "-0.1", ".nan"):
            said = refused(capsys, "train", path, f"algorithm.{name}={value}")
            assert f"algorithm.{name} is {value.removeprefix('.')}; accepted: a number in [0, 1]" in said
    if algorithm != "reinforce_plus_plus":
        for value in ("-0.5", ".inf"):
            said = refused(capsys, "train", path, f"algorithm.value_weight={value}")
            assert f"algorithm.value_weight is {value.removeprefix('.')}; accepted: 0 or more" in said


def test_demonstrations_that_nothing_learns_from_are_refused(recipe, rows, capsys, tmp_path) -> None:
    own = {"prompts": 2, "task": {"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a"}}}
    said = refused(capsys, "train", recipe(algorithm="grpo", demonstrations=own))
    assert "demonstrations: algorithm 'grpo' takes none" in said
    assert not (tmp_path / "run").exists()


def test_a_named_task_may_have_tools(recipe, rows, tmp_path, capsys) -> None:
    scratch = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocabulary": 270, "max_positions": 512}
    assert main(["train", recipe(policy={"scratch": scratch}, training={"iterations": 1})]) == 0
    results = tmp_path / "e.json"
    for task in (f"{rows}:{{prompt: q, answer: a, tools: [calculator]}}", "chain_sum:{tools: [calculator]}"):
        assert main(["evaluate", str(tmp_path / "run"), "--task", task, "--items", "2", "--json", str(results)]) == 0
        assert "tool calls" in json.loads(results.read_text())["results"][0]["metrics"]
    capsys.readouterr()
    said = refused(capsys, "evaluate", str(tmp_path / "run"), "--task", "chain_sum:{tools: [calculater]}")
    assert "did you mean 'calculator'" in said


def test_a_finished_run_has_nothing_to_resume(recipe, capsys) -> None:
    path = recipe()
    assert main(["train", path]) == 0
    assert main(["train", path, "--resume"]) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())  # a long path wraps the line


def test_a_prompt_that_fills_the_context(recipe, rows, capsys) -> None:
    rows.write_text('{"q": "' + "1 + " * 40 + '1 =", "a": "41"}\n', encoding="utf-8")
    said = refused(capsys, "train", recipe())
    assert "line 1" in said
    assert "the model's context of 64" in said


def test_dynamic_sampling_without_any_signal_does_no_step(recipe, monkeypatch, rows, tmp_path) -> None:
    (tmp_path / "never.py").write_text("def judge(answer, item):\n    return 0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = recipe(
        algorithm={"name": "dapo", "rollouts": 4, "max_sampling_rounds": 2},
        task={"data": {"source": str(rows), "prompt": "q", "answer": "a", "verifier": "never:judge"}},
    )
    assert main(["train", path]) == 0
    last = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["steps/skipped_empty"] == 3
    assert last["rollout/rounds"] == 2


def test_evaluation_of_nothing_and_of_what_is_not_a_model(capsys, tmp_path) -> None:
    assert "nothing to evaluate on" in refused(capsys, "evaluate", str(tmp_path))
    assert "has no config.json" in refused(capsys, "evaluate", str(tmp_path), "--task", "chain_sum")
    assert "did you mean 'chain_sum'" in refused(capsys, "evaluate", str(tmp_path), "--task", "chain_sun")
    assert "whole numbers" in refused(capsys, "evaluate", str(tmp_path), "--task", "chain_sum", "--k", "one")


def test_a_folder_that_cannot_be_made(recipe, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(capsys, "train", recipe(output=str(tmp_path / "file" / "run")))


def test_a_full_disk_leaves_the_last_good_checkpoint(recipe, tmp_path, capsys, monkeypatch) -> None:
    saved = torch.save
    calls = []

    def full(state, file) -> None:
        calls.append(1)
        if len(calls) > 1:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        saved(state, file)

    monkeypatch.setattr(torch, "save", full)
    said = refused(capsys, "train", recipe())
    assert "No space left on device" in said
    assert read_checkpoint(tmp_path / "run")["iteration"] == 1
    assert not (tmp_path / "run" / "checkpoint.pt.writing").exists()
    monkeypatch.undo()
    assert main(["train", recipe(), "--resume"]) == 0


def test_a_gradient_that_is_not_finite_stops_with_the_batch_or_is_skipped_and_counted(recipe, tmp_path, capsys, monkeypatch) -> None:
    norm = learner.gradient_norm

    def broken(gradients):
        gradients[0].fill_(float("nan"))
        return norm(gradients)

    monkeypatch.setattr(learner, "gradient_norm", broken)
    said = refused(capsys, "train", recipe())
    assert "optimiser step 0" in said
    dumped = torch.load(tmp_path / "run" / "nonfinite-batch-step0.pt", weights_only=False)
    assert "mask" in dumped
    path = recipe(output=str(tmp_path / "skips"), optimizer={"on_nonfinite": "skip"})
    assert main(["train", path]) == 0
    assert lines(tmp_path / "skips" / "metrics.jsonl")[-1]["steps/skipped_nonfinite"] == 3


def test_a_long_gradient_is_skipped_on_its_norm_before_clipping(recipe, tmp_path) -> None:
    assert main(["train", recipe(optimizer={"clip_norm": 0.1, "skip_norm": 1e-6})]) == 0
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["steps/skipped_large"] == 3


def test_lora_trains_adapters_only(recipe, tmp_path, rows) -> None:
    assert main(["train", recipe(output=str(tmp_path / "base"))]) == 0
    path = recipe(
        policy={"scratch": None, "model": str(tmp_path / "base" / "model"), "lora": {"r": 2, "alpha": 4}},
        algorithm={"name": "grpo", "kl": 0.1},
    )
    assert main(["train", path]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())["policy"]
    assert 0 < record["trained"] < record["parameters"] / 4
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
    assert main(["evaluate", str(tmp_path / "run"), "--task", f"{rows}:{{prompt: q, answer: a}}", "--items", "2"]) == 0


def test_a_run_killed_before_its_first_checkpoint_starts_again(recipe, tmp_path) -> None:
    path = recipe()
    assert main(["train", path, f"output={tmp_path / 'straight'}"]) == 0
    begun = tmp_path / "run"
    begun.mkdir()
    (begun / "recipe.yaml").write_text("algorithm: hpt\n")
    (begun / "run.json").write_text('{"status": "runn')
    assert main(["train", path, "--resume"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(weights(begun).values(), weights(tmp_path / "straight").values(), strict=True))


def test_a_folder_that_holds_no_run_is_not_resumed(recipe, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "holds no run" in refused(capsys, "train", recipe(), "--resume")


def test_a_tracker_that_is_not_installed_is_named(recipe, capsys) -> None:
    import importlib.util

    if importlib.util.find_spec("trackio") is None:
        assert "needs the package 'trackio'" in refused(capsys, "train", recipe(logging={"trackers": ["trackio"]}))


def test_conversations_go_through_the_chat_template(recipe, tmp_path, rows, capsys) -> None:
    from transformers import AutoTokenizer

    assert main(["train", recipe(output=str(tmp_path / "base"))]) == 0
    folder = tmp_path / "base" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tmp_path / "chat.jsonl"
    row = {"q": [{"role": "user", "content": "1 + 1 ="}], "a": "2"}
    chat.write_text("".join(json.dumps(row) + "\n" for _ in range(4)), encoding="utf-8")
    changes = {
        "policy": {"scratch": None, "model": str(folder)},
        "task": {"data": {"source": str(chat), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "exact_match"}},
    }
    assert "no chat template" in refused(capsys, "train", recipe(**changes))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    tokenizer.save_pretrained(folder)
    assert main(["train", recipe(**changes), f"output={tmp_path / 'chat'}"]) == 0
    from unipg.rollouts.text import prompt_tokens
    from unipg.tasks.base import Item

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(prompt_tokens(tokenizer, Item(0, row["q"]), "auto")) == "<1 + 1 =>:"


def test_tensorboard_receives_the_numbers(recipe, tmp_path) -> None:
    assert main(["train", recipe(logging={"trackers": ["tensorboard"]})]) == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_transported_gradients_train_a_language_model(recipe) -> None:
    """N-PG-IGT through the command: every step has its length, and what is evaluated and saved is the iterate."""
    path = recipe(
        algorithm={"name": "n_pg_igt", "rollouts": 4, "step": 0.2, "baseline": 0.5},
        optimizer={"learning_rate": "auto"},
        training={"iterations": 4},
    )
    assert main(["train", path]) == 0
    folder = Path(path).parent / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    moved = [row["step_norm"] for row in rows]
    for t, length in enumerate(moved):
        assert length == pytest.approx(0.2 * 2 / (t + 2), rel=1e-5) or rows[t]["direction_norm"] == 0
    assert any(length > 0 for length in moved)
    assert main(["train", path, "algorithm.name=n_harpg", f"output={folder.parent / 'other'}"]) == 2
