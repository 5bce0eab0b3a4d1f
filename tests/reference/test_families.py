"""Every family against transformers on torch, on random models that `save_pretrained` wrote.

All parameters are random, biases and norms too: transformers starts them at 0 and 1, where a
mistake does not show.
"""

import re
import runpy

import family_cases
import make_fixtures
import parity
import pytest
import tiny_runs
import torch
from family_cases import CASES
from transformers import AutoConfig, AutoModelForCausalLM

from prompt_tuning_jax.models import families


def make_model(name, family, options):
    torch.manual_seed(len(name))
    config = AutoConfig.for_model(family, **options)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            scale = "norm" in path or "ln_" in path
            center = float(scale and path.endswith("weight") and not family.startswith("gemma"))
            parameter.copy_(center + 0.25 * torch.randn_like(parameter))
    return model


def check(folder, name, case):
    model = make_model(name, *case)
    assert type(model).__name__ == families.FAMILIES[case[0]].architecture
    model.save_pretrained(folder)
    kept = make_fixtures.compute(model, 3)._asdict()
    ours = parity.read_model(folder)
    parity.check_right_padding(ours, kept)
    parity.check_left_padding(ours, kept)
    parity.check_one_row(ours, kept)
    parity.check_prompt(ours, kept, shared_slots=3)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_the_gradient_of_a_prompt_are_those_of_transformers(tmp_path, name):
    check(tmp_path, name, CASES[name])


def test_the_family_that_the_docs_add_in_forty_lines_is_that_of_transformers(tmp_path, monkeypatch):
    page = (tiny_runs.ROOT / "docs" / "new_family.md").read_text(encoding="utf-8")
    family, cases = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert (family + cases).count("\n") < 40
    monkeypatch.setitem(families.FAMILIES, "starcoder2", None)  # and undone behind the test
    for name, code in (("family", family), ("cases", cases)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "family.py"), vars(families))
    added = {}
    runpy.run_path(str(tmp_path / "cases.py"), {**vars(family_cases), "CASES": added})
    assert len(added) == 2
    for number, (name, case) in enumerate(added.items()):
        check(tmp_path / str(number), name, case)
