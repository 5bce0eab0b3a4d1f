"""Every method trains a model that is no Llama: other positions, norms, and fused matrices."""

import family_models
import jax
import pytest
import tiny_runs

from prompt_tuning_jax import api, train
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.sites import to_tensors

CASES = {
    "soft_prompt": ("opt, norms after", 0.05),
    "prompt_encoder": ("gemma3", 0.05),
    "prefix": ("gpt2", 0.05),
    "lora": ("phi3", 0.02),
    "ia3": ("gpt_neox", 0.02),
    "fine_tuning": ("olmo2", 0.003),
}


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method):
    case, rate = CASES[method]
    lm, _ = family_models.make(case)
    settings = (f"--config.method.name={method}", f"--config.learning_rate={rate}")
    _, task, config = tiny_runs.tiny(*settings)
    result = train.tune(lm, task, config, log=lambda line: None)
    begun = train.plan(lm, task, config, lambda line: None)
    tensors = to_tensors(jax.device_get(begun.adapt(begun.trainable)))
    before, after = (
        api.evaluate(lm, task, made, split=config.task.validation)["loss"]
        for made in (result.artifact._replace(tensors=tensors), result.artifact)
    )
    assert after == result.artifact.manifest["metrics"]["validation_loss"]
    assert after < before - 0.05
