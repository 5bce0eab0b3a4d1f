"""`load`: what it takes, and that a model says what it was loaded with."""

import jax.numpy as jnp
import pytest

from prompt_tuning_jax import config as configs
from prompt_tuning_jax import load
from prompt_tuning_jax.errors import UserError


def test_a_path_has_the_defaults_of_a_config(folder):
    lm = load(folder)
    assert lm.settings == {**configs.load(None).model, "path": str(folder)}
    assert lm.module.precision == "highest" and lm.name == str(folder)


def test_every_key_of_a_section_acts_and_is_kept(folder):
    settings = {"path": str(folder), "dtype": "bfloat16", "remat": "full", "matmul_precision": ""}
    settings["quantize"] = "int8"
    section = configs.build({"model": settings}).model
    for lm in (load(section), load(settings), load(section, remat="full")):
        assert lm.settings == settings
        assert lm.params["embed"]["embedding"]["q"].dtype == jnp.int8
        assert lm.dtype == lm.params["final_norm"]["scale"].dtype == jnp.bfloat16
        assert (lm.module.remat, lm.module.precision) == ("full", None)
    assert load(section, remat="none").settings == {**settings, "remat": "none"}


def test_some_of_the_section_parallel_is_enough_and_its_faults_are_told(folder):
    assert load(folder, {"model": 2}).layout == load(folder, {"model": 2, "name": "jit"}).layout
    with pytest.raises(
        UserError, match=r"config\.parallel\.modle is not a known key .*'parallel.mo"
    ):
        load(folder, {"modle": 2})
    with pytest.raises(UserError, match=r"config\.parallel\.model is 0: expected a whole number"):
        load(folder, {"model": 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float31"}, r"model\.dtype is 'float31': expected .*mean 'float32'"),
        ({"remat": 1}, r"model\.remat is 1: expected one of 'named'"),
        ({"dtyp": "float32"}, r"model\.dtyp is not a known key \(did you mean 'model\.dtype'\?\)"),
    ],
)
def test_other_settings_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        load(folder, **changes)
