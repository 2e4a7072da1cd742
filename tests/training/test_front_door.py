"""Training from Python: `train`, what a `Run` can do, rewards and data in memory, and what bad arguments get."""

import functools
import json
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unipg import InputError, load_run, train
from unipg.algorithms import DPO, GRPO, PPO, SAC, SFT, Algorithm
from unipg.policies.causal_lm import ScratchModel
from unipg.policies.recipe import ModelRecipe
from unipg.tasks.base import Item
from unipg.training import OptimizerRecipe, Stopped, TrainingRecipe
from unipg.training.checkpoints import read_checkpoint
from unipg.training.recipe import Recipe
from unipg.training.run import run_recipe

ROWS = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(1, 5) for b in range(3)]
TINY = {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocabulary": 270, "max_positions": 64}}
SMALL = {"policy": TINY, "rollouts": {"max_new_tokens": 4}, "training": {"prompts": 4}, "threads": 1, "progress": False}


def ours(answer: str, item: Item) -> float:
    return float(item.fields["answer"] in answer)


def theirs(completions, answer, **columns) -> list[float]:
    assert set(columns) == {"prompts"}
    return [float(right in said) for said, right in zip(completions, answer, strict=True)]


def short(answer: str, item: Item) -> float:
    return -float(len(answer))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder)["module"]


def numbers(run) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")} for row in run.metrics]


def test_a_language_model_from_rows_and_a_function() -> None:
    run = train(GRPO(rollouts=4), data=ROWS, reward=ours, iterations=2, **SMALL)
    assert run.status == "finished"
    assert run.folder == Path("runs/grpo")
    assert [row["iteration"] for row in run.metrics] == [0, 1]
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "checkpoint.pt", "model"} <= {f.name for f in run.folder.iterdir()}
    one = run.policy.generate("1 + 1 =")
    assert isinstance(one, str)
    assert run.policy.generate(["1 + 1 =", "2 + 1 ="])[0] == one
    torch.manual_seed(3)
    drawn = run.policy.generate(["1 + 1 ="] * 4, sample=True)
    torch.manual_seed(3)
    assert run.policy.generate(["1 + 1 ="] * 4, sample=True) == drawn
    assert len(set(drawn)) > 1
    assert run.report().read_text(encoding="utf-8").startswith("<!")
    (found,) = run.evaluate(ROWS[:5], samples=2)
    assert found.metrics["pass@1 (greedy)"]["n"] == 5
    assert 0 <= found.metrics["pass@2"]["value"] <= 1
    with pytest.raises(InputError, match=r"policy\.generate"):
        run.policy.act([0.0])


def test_it_is_the_same_run_as_the_recipes(rows) -> None:
    """The same weights and numbers to the last bit as a YAML file with the same values."""
    from unipg.training.recipe import load_recipe

    values = {
        "algorithm": {"name": "grpo", "rollouts": 4},
        "output": "yaml",
        "policy": TINY,
        "task": {"data": {"source": str(rows), "prompt": "q", "answer": "a"}},
        "rollouts": {"max_new_tokens": 4},
        "training": {"prompts": 4, "iterations": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    run_recipe(load_recipe("recipe.yaml"))
    run = train(GRPO(rollouts=4), data={"source": rows, "prompt": "q", "answer": "a"}, iterations=2, output="python", **SMALL)
    assert numbers(run) == numbers(load_run("yaml"))
    assert all(torch.equal(a, b) for a, b in zip(weights(Path("yaml")).values(), weights(run.folder).values(), strict=True))


def test_a_controller() -> None:
    environment = {"id": "CartPole-v1", "count": 2, "steps": 16, "evaluation_episodes": 2}
    run = train(PPO(gamma=0.9), environment=environment, iterations=2, progress=False)
    action = run.policy.act([0.01, 0.0, 0.0, 0.0])
    assert action.shape == ()
    assert action in (0, 1)
    several = run.policy.act(np.zeros((64, 4)), sample=True)
    assert set(several.tolist()) == {0, 1}
    assert len(set(run.policy.act(np.zeros((64, 4))).tolist())) == 1
    assert run.evaluate(episodes=3)[0].metrics["return"]["n"] == 3
    with pytest.raises(InputError, match=r"shape \[5\]; accepted: \[4\], or several: \[N, 4\]"):
        run.policy.act([0.0] * 5)
    with pytest.raises(InputError, match="not finite"):
        run.policy.act([0.0, 0.0, float("nan"), 0.0])
    with pytest.raises(InputError, match=r"policy\.act"):
        run.policy.generate("x")
    again = load_run(run.folder)
    assert (again.policy.act(np.eye(4)) == run.policy.act(np.eye(4))).all()


def test_a_buffer_is_a_keyword_too() -> None:
    run = train(
        SAC(),
        environment={"id": "Pendulum-v1", "count": 1, "steps": 8, "evaluation_episodes": 1},
        replay={"capacity": 20, "batch": 4, "warmup": 4},
        iterations=1,
        progress=False,
    )
    assert (run.recipe.replay.capacity, run.metrics[-1]["replay/updates"]) == (20, 4)


def test_rewards_of_both_kinds_are_weighed_and_recorded() -> None:
    assert ours("12", Item(0, "", fields=ROWS[0] | {"answer": "1"})) == 1
    run = train(GRPO(rollouts=4), data=ROWS, reward=[theirs, (short, 0.1), (ours, 2)], iterations=1, **SMALL)
    (row,) = run.metrics
    assert row["reward/theirs"] == row["reward/ours"]
    assert row["reward/short"] < 0
    assert row["reward/mean"] == pytest.approx(3 * row["reward/ours"] + 0.1 * row["reward/short"], abs=1e-6)
    section = yaml.safe_load((run.folder / "recipe.yaml").read_text(encoding="utf-8"))
    name = f"{__name__}:theirs" if sys.modules.get(__name__) else "in memory: theirs"
    assert section["reward"]["functions"][0] == {"function": name, "weight": 1.0, "name": "theirs"}
    assert section["task"]["data"]["source"].startswith("in memory: 12 rows, ")


def test_a_reward_function_may_have_no_opinion() -> None:
    def some(completions, **columns):
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    def rest(completions, **columns):
        return [0.5 if i % 2 else None for i in range(len(completions))]

    run = train(GRPO(rollouts=4), data=ROWS, reward=[some, rest], iterations=1, **SMALL)
    assert run.metrics[0]["reward/some"] == 1.0
    assert run.metrics[0]["reward/mean"] == 0.75
    with pytest.raises(InputError, match="no reward function has an opinion"):
        train(GRPO(rollouts=4), data=ROWS, reward=some, iterations=1, **SMALL)


def test_conversations_are_given_to_their_functions_as_conversations() -> None:
    from unipg.tasks.verifiers import BatchFunction, score

    seen = {}

    def f(prompts, completions, level):
        seen.update(prompts=prompts, completions=completions, level=level)
        return [1, 2]

    asked = [{"role": "user", "content": "hi"}]
    items = [Item(0, asked, fields={"prompt": asked, "level": 3, "other": 0}), Item(1, asked, fields={"prompt": asked})]
    assert score(BatchFunction(f, "f"), ["a", "b"], items)[0] == [1.0, 2.0]
    assert seen == {
        "prompts": [asked, asked],
        "completions": [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
        "level": [3, None],
    }


def test_one_function_that_raises_or_hangs_scores_its_batch_zero() -> None:
    from unipg.tasks.verifiers import BatchFunction, score

    def broken(completions):
        raise ValueError("no")

    def endless(completions):
        while True:
            pass

    items = [Item(0, "a"), Item(1, "b")]
    rewards, failures = score(BatchFunction(broken, "broken"), ["x", "y"], items)
    assert (rewards, failures.count, failures.first) == ([0.0, 0.0], 2, "2 answers from item 0 on: ValueError: no")
    assert "ValueError: no" in failures.traceback
    rewards, failures = score(BatchFunction(endless, "endless"), ["x", "y"], items, 0.05)
    assert failures.kinds == {"timed_out": 2}
    with pytest.raises(InputError, match="'few' gave 1 rewards for 2 completions"):
        score(BatchFunction(lambda completions: [1.0], "few"), ["x", "y"], items)
    with pytest.raises(InputError, match="gave nan for item 1"):
        score(BatchFunction(lambda completions: [1.0, float("nan")], "odd"), ["x", "y"], items)


def test_preferences_and_demonstrations_need_no_more_than_the_rows() -> None:
    pairs = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "no"} for row in ROWS]
    small = {**SMALL, "iterations": 1}
    assert train(DPO(), data=pairs, **small).metrics[0]["preference/accuracy"] is not None
    given = [{"prompt": row["prompt"], "completion": row["answer"]} for row in ROWS]
    assert train(SFT(), data=given, **small).status == "finished"
    with pytest.raises(InputError, match="no column 'completion'"):
        train(SFT(), data=ROWS, **small)


def test_a_data_set_of_the_package_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    run = train(GRPO(rollouts=4), data=datasets.Dataset.from_list(ROWS), reward=ours, iterations=1, output="a", **SMALL)
    same = train(GRPO(rollouts=4), data=ROWS, reward=ours, iterations=1, output="b", **SMALL)
    assert numbers(run) == numbers(same)
    assert run.recipe.task.data.source == same.recipe.task.data.source
    split = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    with pytest.raises(InputError, match="DatasetDict with the keys train; accepted: one split of it"):
        train(GRPO(), data=split, reward=ours, **SMALL)


def test_typed_sections_and_paths() -> None:
    run = train(
        GRPO(rollouts=4),
        policy=ModelRecipe(scratch=ScratchModel(**TINY["scratch"])),
        data=ROWS,
        reward=ours,
        rollouts={"max_new_tokens": np.int64(4)},
        training=TrainingRecipe(prompts=4),
        optimizer=OptimizerRecipe(learning_rate=1e-3, betas=(0.8, 0.9)),
        iterations=1,
        output=Path("elsewhere") / "run",
        progress=False,
    )
    assert load_run(run.folder).recipe.optimizer.betas == (0.8, 0.9)
    small = {name: value for name, value in SMALL.items() if name != "policy"}
    on = train(GRPO(rollouts=4), model=run.folder / "model", data=ROWS, reward=ours, iterations=1, output="on", **small)
    assert on.recipe.policy.model == str(run.folder / "model")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"itrations": 3}, r"itrations: this keyword does not exist; did you mean 'iterations'"),
        ({"optimizer": {"learning_rat": 3}}, r"optimizer\.learning_rat: this key does not exist; did you mean 'learning_rate'"),
        ({"optimizer": {"learning_rate": "nan"}}, r"optimizer\.learning_rate: 'nan' does not exist; accepted: a number, auto"),
        ({"iterations": 2, "training": {"iterations": 3}}, r"iterations is given twice, also as training\.iterations"),
        ({"model": "./nowhere", "policy": None}, "the model folder './nowhere' does not exist"),
        ({"data": []}, "data is empty"),
        ({"data": [{"prompt": "x"}, 3]}, "row 2 holds a number"),
        ({"data": iter(ROWS)}, "accepted: a file's or a data set's name, a list of dicts"),
        ({"data": [{"question": "x"}]}, "row 1: there is no column 'prompt'"),
        ({"data": "nowhere.jsonl"}, r"no such file: nowhere\.jsonl"),
        ({"reward": 3}, "reward holds 3; accepted: a function"),
        ({"reward": lambda x: 1.0}, r"verifier 'the lambda in line \d+ of test_front_door.py' cannot be called as \(answer, item\)"),
        ({"reward": functools.partial(ours, None)}, r"verifier 'ours' cannot be called as \(answer, item\)"),
        ({"reward": lambda completions, anser: [1.0]}, "asks for 'anser', but the rows have no such column; did you mean 'answer'"),
        ({"reward": {"verifier": 0}}, "nothing scores the answers"),
        ({"algorithm": GRPO(clip_dual=float("nan"))}, r"algorithm\.clip_dual is nan; accepted: a number"),
        ({"algorithm": GRPO}, r"the class GRPO; accepted: GRPO\(\)"),
        ({"algorithm": "grop"}, "algorithm 'grop' does not exist; did you mean 'grpo'"),
        ({"environment": "CartPole-v1"}, "data is given, but an environment has none"),
        ({"observers": [object()]}, "observers holds a object"),
        ({"resume": True}, r"nothing says of which run; accepted: output="),
        ({"resume": True, "output": "nowhere"}, "there is nothing to resume: the run folder 'nowhere' does not exist"),
    ],
)
def test_bad_arguments_get_one_line(arguments, line) -> None:
    given = {"algorithm": GRPO(rollouts=2), "data": ROWS, "reward": ours, **SMALL, **arguments}
    with pytest.raises(InputError, match=line) as error:
        train(given.pop("algorithm"), **given)
    assert "\n" not in str(error.value)
    assert not Path("runs").exists()


def test_a_run_goes_on_with_the_same_values_alone() -> None:
    class Stop:
        def start(self, run) -> None:
            self.run = run

        def iteration(self, done, total, metrics) -> None:
            self.run.stop_requested = done == 2

    whole = train(GRPO(rollouts=4), data=ROWS, reward=ours, iterations=4, output="whole", **SMALL)
    given = {"data": ROWS, "reward": ours, "iterations": 4, "output": "parts", **SMALL}
    with pytest.raises(Stopped, match="output='parts', resume=True continues"):
        train(GRPO(rollouts=4), **given, observers=Stop())
    assert load_run("parts").status == "interrupted"
    with pytest.raises(InputError, match="already exists"):
        train(GRPO(rollouts=4), **given)
    with pytest.raises(InputError, match="in memory: 13 rows"):
        train(GRPO(rollouts=4), **{**given, "data": [*ROWS, ROWS[0]]}, resume=True)
    with pytest.raises(InputError, match=r"in memory: 12 rows.*unipg\.train\(…\) with the same value, and resume=True"):
        load_run("parts").resume()
    run = train(GRPO(rollouts=4), **given, resume=True)
    assert numbers(run) == numbers(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.folder).values(), weights(run.folder).values(), strict=True))


def test_a_run_is_trained_for_longer() -> None:
    """The first iterations and the last are those of a run that was long from the start."""
    given = {"data": ROWS, "reward": ours, **SMALL}
    whole = train(GRPO(rollouts=4), **given, iterations=3, output="whole")
    run = train(GRPO(rollouts=4), **given, iterations=2, output="parts")
    before = run.policy
    assert run.resume(iterations=3, progress=False) is run
    assert run.policy is not before
    assert numbers(run) == numbers(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.folder).values(), weights(run.folder).values(), strict=True))
    assert load_run("parts").recipe.training.iterations == 3
    with pytest.raises(InputError, match=r"training\.iterations is 1"):
        run.resume(iterations=1, progress=False)


def test_every_keyword_is_known() -> None:
    import inspect

    from unipg.front import KEYWORDS

    assert {field.name for field in fields(Recipe)} <= {*KEYWORDS, "algorithm"}
    assert set(inspect.signature(train).parameters) == {*KEYWORDS, "algorithm", "misspelt"}


def test_a_second_run_gets_a_folder_of_its_own() -> None:
    small = {"environment": {"id": "CartPole-v1", "count": 2, "steps": 8, "evaluation_episodes": 1}, "iterations": 1, "progress": False}
    assert [str(train(PPO(), **small).folder) for _ in range(2)] == ["runs/ppo", "runs/ppo-2"]


def test_outside_the_main_thread_with_progress(capsys) -> None:
    """As in a notebook's worker: no signal handlers, and lines instead of a live bar."""
    found: list = []
    small = {"environment": {"id": "CartPole-v1", "count": 2, "steps": 8, "evaluation_episodes": 1}, "iterations": 2}
    worker = threading.Thread(target=lambda: found.append(train(PPO(), **small)))
    worker.start()
    worker.join()
    assert found[0].status == "finished"
    assert "ppo 2/2" in capsys.readouterr().out


def test_every_algorithm_is_in_the_package() -> None:
    import unipg.algorithms as package

    for kind in package.registered().values():
        assert getattr(package, kind.__name__) is kind
        assert kind.__name__ in package.__all__
    assert issubclass(GRPO, Algorithm)
    with pytest.raises(ImportError):
        exec("from unipg.algorithms import GPRO")


def test_the_door_is_light() -> None:
    code = "import sys\nfrom unipg import train, load_run\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


USER = """
from typing import Any
from unipg import Run, load_run, train
from unipg.algorithms import GRPO, PPO
from unipg.training import BestModel, EarlyStopping, Observer, OptimizerRecipe, Track

def right(answer: str, item: Any) -> float:
    return 1.0

class Mine(Observer):
    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        print(done / total)

optimizer = OptimizerRecipe(learning_rate=1e-3)
run: Run = train(GRPO(rollouts=4), model="m", data=[{"prompt": "a"}], reward=[right, (right, 0.1)], optimizer=optimizer)
text: str = run.policy.generate("a")
watchers = [Mine(), EarlyStopping("return/mean", patience=3), BestModel("return"), Track(print)]
run = train(PPO(gamma=0.99), environment="CartPole-v1", iterations=2, observers=watchers)
run = load_run("x").resume(iterations=4)
"""
HEAVY = (
    "torch", "transformers", "numpy", "gymnasium", "datasets", "peft", "rich", "jsonargparse", "yaml", "reasoning_gym", "math_verify",
    "plotly", "matplotlib", "jaxtyping", "safetensors", "huggingface_hub", "tokenizers", "accelerate", "bm25s",
)  # fmt: skip


def test_types_are_exported(tmp_path) -> None:
    """A small script passes mypy as a user would run it, and a misspelt keyword does not."""
    pytest.importorskip("mypy")
    source = Path(__file__).parents[2] / "src"
    assert (source / "unipg" / "py.typed").is_file()
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("from unipg import train\ntrain('grpo', modle='m')\n", encoding="utf-8")
    skipped = ",".join(f"{name}.*" for name in HEAVY)  # other people's types take a minute to read
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\nfollow_imports = silent\nmypy_path = {source}\n[mypy-{skipped}]\nfollow_imports = skip\n"
        "ignore_missing_imports = True\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mypy", "user.py", "wrong.py"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.splitlines()[:-1] == [
        'wrong.py:2: error: Argument "modle" to "train" has incompatible type "str"; expected "Never"  [arg-type]'
    ], found.stdout + found.stderr


def test_run_json_says_that_it_came_from_python() -> None:
    small = {"environment": {"id": "CartPole-v1", "count": 2, "steps": 8, "evaluation_episodes": 1}, "iterations": 1, "progress": False}
    run = train(PPO(), **small)
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["command"].startswith("unipg.train(…)")


def test_messages_speak_pythons_words(tmp_path) -> None:
    run = train(GRPO(rollouts=2), data=ROWS, reward=[lambda answer, item: 1.0, short], iterations=1, output=tmp_path / "run", **SMALL)
    assert {"reward/lambda", "reward/short"} < run.metrics[0].keys()
    asked = [
        (
            lambda: train(GRPO(), data=ROWS, reward=lambda a, i: None, **SMALL),
            r"'the lambda in line \d+ of test_front_door.py' gave None for row",
        ),
        (lambda: train(GRPO(rollouts=2), data=ROWS, reward=ours, output=tmp_path / "run", **SMALL), "use resume=True to continue it"),
        (run.evaluate, r"nothing to evaluate on: give a task \(a reasoning-gym task or a data file, or rows\)"),
        (lambda: run.evaluate("chain_sum:{a"), "task 'chain_sum': '{a' is not valid YAML"),
        (lambda: run.evaluate(episodes=3), "is no controller: episodes does not apply"),
        (
            lambda: train(GRPO(), model=tmp_path / "run", data=ROWS, reward=ours),
            f"is a run: its model is in '{tmp_path / 'run' / 'model'}'",
        ),
    ]
    for ask, said in asked:
        with pytest.raises(InputError, match=said) as error:
            ask()
        assert "--" not in str(error.value)
