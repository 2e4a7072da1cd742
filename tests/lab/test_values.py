"""`unipg lab --problem sde`: critics of diffusions against exact values, from the command line."""

import json
import re
from pathlib import Path

import pytest

from unipg.cli import main
from unipg.critics.continuous import Times
from unipg.errors import InputError
from unipg.lab.continuous import METHODS, run_diffusions
from unipg.lab.diffusions import DIFFUSIONS, BrownianMotion, diffusion_named, draw
from unipg.seeding import generator


def test_the_command_writes_a_page_and_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dt", "0.1,0.02", "--batches", "6", "--group-sizes", "200"]
    assert main(["lab", "--problem", "sde", *arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mstde" in printed
    content = json.loads((tmp_path / "lab.json").read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(text))
    assert len(content["values"]) == len(DIFFUSIONS) * 2 * 2 * len(METHODS)
    found = {(j["diffusion"], j["method"], j["scheme"], j["dt"]): j["error"]["value"] for j in content["values"]}
    for name in DIFFUSIONS:
        for scheme in ("exact", "euler"):
            assert found[name, "mstde", scheme, 0.02] > 1.4 * found[name, "mstde", scheme, 0.1] or name == "bm"
            for method in set(METHODS) - {"mstde"}:
                assert found[name, method, scheme, 0.02] < 0.25 * found[name, "mstde", scheme, 0.02]
    page = (tmp_path / "lab.html").read_text(encoding="utf-8")
    assert "Critics against the exact value" in page
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert len(charts) == len(DIFFUSIONS)
    assert len(charts[0]["data"]) == 2 * len(METHODS)
    assert (tmp_path / "lab.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--algorithms", "grpo"], "--algorithms does not apply to problem 'sde', where critics are compared"),
        (["--dt", "0.3"], "accepted: a whole number of steps"),
        (["--dt", "0"], "dt is 0"),
        (["--batches", "1"], "accepted: 2 or more"),
        (["--group-sizes", "1"], "a batch has 1 paths"),
        (["--group-sizes", "10,20"], "--group-sizes holds 2 values"),
        (["--problem", "lq", "--dt", "0.1"], "--dt does not apply to problem 'lq'"),
        (["--problem", "sda"], "sde"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "--problem", "sde", "--output", str(tmp_path), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_equal_seeds_give_equal_numbers() -> None:
    first, again, other = (run_diffusions((0.2,), 20, 2, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_diffusion_is_found_by_its_name() -> None:
    assert diffusion_named("bm") == BrownianMotion()
    with pytest.raises(InputError, match="diffusion 'bn' does not exist"):
        diffusion_named("bn")
    with pytest.raises(InputError, match=r"the grid ends at 0\.5, but the horizon is 1"):
        draw(BrownianMotion(), Times.even(0.5, 0.1), 2, generator(0))
    with pytest.raises(InputError, match="paths is 0"):
        draw(BrownianMotion(), Times.even(1.0, 0.1), 0, generator(0))
