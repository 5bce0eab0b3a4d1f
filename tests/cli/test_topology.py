"""What a step takes of a TPU slice, without the compiler for one."""

import json
import math
import shlex

import pytest
import tiny_models
import tiny_runs

from prompt_tuning_jax.cli import topology
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.decoder import param_shapes

CONFIG = str(tiny_runs.world().config)
pytestmark = pytest.mark.usefixtures("home")


def planned(typed, *more, config=CONFIG):
    words = [*tiny_runs.FEW, "--dry_run", "--topology", "v5e:2x2", "--json", *more]
    shown = typed("train", "--config", config, *words)
    assert shown.status == 0, shown.err
    return json.loads(shown.out)


def test_without_a_compiler_it_counts_the_bytes_of_the_shapes(typed, home):
    one, four = planned(typed), planned(typed, "--config.parallel.model=4")
    # bfloat16 on a TPU; all but the norms lie in parts.
    assert one["bytes"]["weights"] == 2 * 22_920
    norms = 2 * 24 * (2 * 3 + 1)
    assert four["bytes"]["weights"] == (2 * 22_920 - norms) // 4 + norms
    assert one["bytes"]["trained"] == 4 * 96 and one["temporaries"] is None
    assert "rows of" in one["batch"] and "of the data" in one["batch"]
    assert "pip install 'libtpu==" in one["compiler"]
    assert tiny_runs.listing(home) == {}


def test_a_model_may_be_its_config_alone(typed, tmp_path):
    spec = tiny_models.changed(layers=40, width=64)
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.config(spec)))
    numbers = sum(map(math.prod, param_shapes(spec).values()))
    model = f"--config.model.path={tmp_path}"
    for method, behind in (("soft_prompt", 8), ("prefix", 1)):
        own = f"--config.method.name={method}", "--config.method.init=vocabulary"
        found = planned(
            typed, model, *own, "--config.method.num_virtual_tokens=7", "--config.batch_size=10"
        )
        assert found["bytes"]["weights"] == 2 * numbers
        assert found["batch"].startswith(f"12 rows of 128 positions after {behind} shared ones,")
    own = "--config.method.name=prompt_encoder", "--config.method.kind=superposition"
    assert planned(typed, model, *own)["bytes"]["trained"]
    gone = "name=files", "files.train=gone.csv", "labels=()"
    unread = [f"--config.task.{word}" for word in gone]
    small = planned(typed, model, "--config.model.quantize=int8", *unread)
    assert small["bytes"]["weights"] < 0.57 * 2 * numbers
    tuned = planned(typed, model, config="fine_tuning")["bytes"]
    # The model's own weights stay beside what is trained.
    assert tuned["weights"] == 2 * numbers and tuned["trained"] == 4 * numbers


def test_the_longest_rows_of_a_run_are_planned(typed, monkeypatch):
    plan = topology.train.plan

    def longer(*given):
        made = plan(*given)
        shapes = (*made.data.shapes, made.data.shapes[-1]._replace(length=99))
        return made._replace(data=made.data._replace(shapes=shapes))

    monkeypatch.setattr(topology.train, "plan", longer)
    assert "8 rows of 99 positions after 14 shared ones, of the data" in planned(typed)["batch"]


def test_what_does_not_fit_is_told_what_would(typed, tmp_path):
    spec = tiny_models.changed(layers=400, width=8192, feedforward=65536)
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.config(spec)))
    found = planned(typed, f"--config.model.path={tmp_path}")
    assert not found["fits"] and "--config.model.quantize=int8" in found["advice"]
    assert "dtype" not in found["advice"]  # 'auto' is bfloat16 already
    words = f"--config.model.path={tmp_path}", "--config.parallel.model=4"
    whole = planned(typed, *words, config="lora")
    [advised] = [word for word in shlex.split(whole["advice"]) if "axes" in word]
    parts = planned(typed, *words, advised, config="lora")
    assert parts["bytes"]["trained"] == whole["bytes"]["trained"] / 4
    assert parts["bytes"]["optimizer"] < 0.26 * whole["bytes"]["optimizer"]


def test_what_cannot_be_planned_is_refused(typed, monkeypatch):
    words = ["train", "--config", CONFIG, "--workdir", "run"]
    shown = typed(*words, "--topology", "v5e:2x2")
    assert shown.status == 2 and "--topology is for --dry_run" in shown.err
    shown = typed(*words, "--topology", "")
    assert shown.status == 2 and "--topology is for --dry_run" in shown.err
    shown = typed(*words, "--dry_run", "--topology", "v5e:2x3")
    assert shown.status == 2 and "(did you mean 'v5e:2x4'?)" in shown.err and "v6e:4x4" in shown.err
    cloud = {name: topology.CLOUD[name] for name in ("v6e-8", "v5e-1", "v4-8", "v5p-1024")}
    assert [*cloud.values()] == ["v6e:2x4", "v5e:1x1", "v4:2x2x1", "v5p:8x8x8"]
    shown = typed(*words, "--dry_run", "--topology", "v5e:2x2", "--config.parallel.model=3")
    assert shown.status == 2 and "config.parallel.model is 3" in shown.err
    shown = typed(*words, "--dry_run", "--topology", "v5e:2x2", "--config.teacher.prompt={text} is")
    assert shown.status == 2 and "no model that can teach: leave config.teacher out" in shown.err
    other = type("Spec", (), {"origin": "libtpu/__init__.py"})
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: other)
    versions = ["0.0.1"], []  # the package libtpu-nightly has the module and no libtpu beside it
    for found, shown in zip(versions, (r"0\.0\.1", "nightly"), strict=True):
        kept = [type("Package", (), {"version": version}) for version in found]
        monkeypatch.setattr(topology.importlib.metadata, "distributions", lambda name, k=kept: k)
        with pytest.raises(UserError, match=rf"libtpu {shown} does not fit jax .*pip install 'lib"):
            topology._devices("v5e:2x2")
