"""The main job on an embedded default: a small model is built, warmed up by SFT on few demonstrations, then post-trained by HPT.

Run by `make demo`; safe to stop and to run again: finished stages are skipped, an interrupted one is continued.
"""

import json
import sys
import time
from pathlib import Path

from unipg.cli import main

STAGES = (
    ("1/3", "warm start: SFT on a quarter of the demonstrations", "recipes/demo-warm-start.yaml", Path("runs/demo/warm-start")),
    (
        "2/3",
        "hybrid post-training: rollouts where the model succeeds, demonstrations where it does not",
        "recipes/demo.yaml",
        Path("runs/demo/hpt"),
    ),
)


def status(folder: Path) -> str:
    """finished, interrupted, running (killed) … of a run folder; empty where nothing has run."""
    record = folder / "run.json"
    return json.loads(record.read_text(encoding="utf-8"))["status"] if record.is_file() else ""


def outcome(folder: Path) -> list[str]:
    """Held-out pass@1 before and after, task by task, with 95 % intervals."""
    rows = [json.loads(line)["results"] for line in (folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = []
    for first, last in zip(rows[0], rows[-1], strict=True):
        before, after = first["metrics"]["pass@1 (greedy)"], last["metrics"]["pass@1 (greedy)"]
        shown = [f"{100 * m['value']:.1f} % [{100 * m['low']:.1f}, {100 * m['high']:.1f}]" for m in (before, after)]
        gain = 100 * (after["value"] - before["value"])
        lines.append(f"  {first['task']:16} pass@1 {shown[0]} -> {shown[1]}   ({gain:+.1f} points)")
    return lines


def run() -> int:
    began = time.monotonic()
    for number, title, recipe, folder in STAGES:
        if status(folder) == "finished":
            print(f"[{number}] {title}: done before, in {folder}")
            continue
        print(f"[{number}] {title}", flush=True)
        code = main(["train", recipe, *(["--resume"] if folder.is_dir() else [])])
        if code:
            return code
    folder = STAGES[-1][3]
    print("[3/3] report", flush=True)
    code = main(["report", str(folder)])
    if code:
        return code
    print(f"\nHeld-out items, before and after post-training ({time.monotonic() - began:.0f} s in all):")
    print("\n".join(outcome(folder)))
    print(f"\ncheckpoint  {folder / 'model'}   (opens with AutoModelForCausalLM.from_pretrained)")
    print(f"report      {folder / 'report.html'}   (open it in a browser)")
    print("next        change the algorithm by one word and compare:")
    print("            .venv/bin/unipg train recipes/demo.yaml algorithm=grpo output=runs/demo/grpo")
    print("            .venv/bin/unipg report runs/demo/hpt runs/demo/grpo --output runs/demo/compare.html")
    return 0


if __name__ == "__main__":
    sys.exit(run())
