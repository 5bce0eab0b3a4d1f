"""Every family against transformers on torch, on random models that `save_pretrained` wrote.

All parameters are random, biases and norms too: transformers starts them at 0 and 1, where a
mistake does not show.
"""

import make_fixtures
import parity
import pytest
import torch
from family_cases import CASES
from transformers import AutoConfig, AutoModelForCausalLM


def make_model(name):
    family, options = CASES[name]
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


@pytest.mark.parametrize("name", CASES)
def test_logits_and_the_gradient_of_a_prompt_are_those_of_transformers(tmp_path, name):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    kept = make_fixtures.compute(model, 3)._asdict()
    ours = parity.read_model(tmp_path)
    parity.check_right_padding(ours, kept)
    parity.check_left_padding(ours, kept)
    parity.check_one_row(ours, kept)
    parity.check_prompt(ours, kept, shared_slots=3)
