"""Configs: what is read, what overrides change, and that every fault is refused by its name."""

import json
import os
import random
import re
import shlex
import string
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.config import KEYS, difference, flatten, load, to_json, validate
from prompt_tuning_jax.config.schema import OPTIMIZERS, SCHEDULES
from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.methods import METHODS

ROOT = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir)
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
QUICKSTART = str(CONFIGS[0].with_name("quickstart.py"))
# A value of another type for each type of key.
WRONG = {bool: 3, int: 1.5, float: "fast", str: 7, tuple: "one"}


def refusal(path, *overrides):
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return str(caught.value)


def write(folder, text, name="made.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def edits(word, each=None):
    """Words that one edit makes of `word`: a letter gone, swapped, replaced or put in.

    Letters are drawn, the same each time; `each` is how many words of each kind, all unless given.
    """
    draw = random.Random(word)
    letters = string.ascii_lowercase + "_1."
    kinds = [
        [word[:i] + word[i + 1 :] for i in range(len(word))],
        [word[:i] + word[i : i + 2][::-1] + word[i + 2 :] for i in range(len(word) - 1)],
        [word[:i] + draw.choice(letters) + word[i + 1 :] for i in range(len(word))],
        [word[:i] + draw.choice(letters) + word[i:] for i in range(len(word) + 1)],
    ]
    made = {edit for kind in kinds for edit in (draw.sample(kind, each) if each else kind)}
    return sorted(made - {word})


def test_quickstart_is_whole_and_locked():
    config = load(QUICKSTART)
    assert flatten(config.to_dict()).keys() == KEYS.keys()
    assert config.task.name == "bbc_news"
    with pytest.raises(AttributeError):
        config.stepz = 3


@pytest.mark.parametrize("name", METHODS)
def test_quickstart_takes_every_method_by_its_name(name):
    """`make quickstart METHOD=name`; its config differs by the method and its learning rate."""
    made = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "quickstart", f"METHOD={name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, config, _, workdir = shlex.split(made.stdout.splitlines()[-1])
    assert workdir == f"runs/{os.path.basename(config).removesuffix('.py')}"
    found = load(os.path.join(ROOT, config))
    assert found.method.name == name
    changed = difference(to_json(load(QUICKSTART)), found)
    keys = {line.split(" was ")[0] for line in changed}
    assert keys <= {"config.learning_rate", "config.method.hidden_size", "config.method.name"}


def test_defaults_are_valid():
    assert flatten(load(None).to_dict()) == {name: key.default for name, key in KEYS.items()}


def test_names_are_those_that_the_code_knows():
    from prompt_tuning_jax import optimizers
    from prompt_tuning_jax.models.decoder import REMAT
    from prompt_tuning_jax.models.language_model import DTYPES

    for name in OPTIMIZERS:
        for schedule in SCHEDULES:
            overrides = [f"--config.optimizer.name={name}", f"--config.schedule.name={schedule}"]
            optimizers.make(load(None, overrides))
    assert set(KEYS["model.remat"].names) == set(REMAT)
    assert set(KEYS["model.dtype"].names) == {"auto", *DTYPES}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=7", 7),
        ("learning_rate=3e-4", 3e-4),
        ("learning_rate=1", 1.0),
        ("optimizer.clip_norm=0", 0.0),
        ("model.path=a b=c.gguf", "a b=c.gguf"),
        ("task.template={soft}{text} is", "{soft}{text} is"),
        ("task.labels=('no', 'yes=oh yes')", ("no", "yes=oh yes")),
        ("prompts=()", ()),
    ],
)
def test_override(override, value):
    config = load(QUICKSTART, [f"--config.{override}"])
    given = flatten(config.to_dict())[override.partition("=")[0]]
    assert given == value and type(given) is type(value)


def test_overrides_of_lester_et_al():
    settings = ("name=adafactor", "decay_offset=-1100000", "multiply_by_parameter_scale=true")
    optimizer = load(None, [f"--config.optimizer.{setting}" for setting in settings]).optimizer
    assert optimizer.decay_offset == -1100000
    assert optimizer.multiply_by_parameter_scale is True


def test_the_last_override_of_a_key_counts():
    assert load(None, ["--config.steps=3", "--config.seed=1", "--config.steps=4"]).steps == 4


@given(st.integers(1, 10**9), st.floats(1e-9, 1e9), st.text(min_size=1, max_size=20))
def test_overrides_arrive_as_typed(steps, rate, text):
    config = load(
        None,
        [
            f"--config.steps={steps}",
            f"--config.learning_rate={rate}",
            f"--config.method.init_text={text}",
            f"--config.prompts={(text, text)!r}",
        ],
    )
    assert (config.steps, config.learning_rate, config.method.init_text) == (steps, rate, text)
    assert config.prompts == (text, text)


VALUES = ["", "0", "-1", "1e400", "nan", "true", "None", "()", "('a', 'b')", "('a=b',)", "{'a': 1}"]
VALUES += ["prefix", "text", "{text}", "{soft:2}{a}", "files", "tfds:x", "accuracy", "[" * 50, "\0"]


@given(
    st.lists(
        st.tuples(st.sampled_from([*KEYS]), st.sampled_from(VALUES) | st.text(max_size=8)),
        max_size=4,
    )
)
def test_overrides_are_taken_as_a_whole_or_refused_by_their_keys(given):
    words = [f"--config.{key}={value}" for key, value in given]
    try:
        config = load(None, words)
    except UserError as error:
        message = str(error)
        assert message.replace("\n", "").isprintable()
        faults = message.splitlines()
        faults = faults[1:] if len(faults) > 1 else faults
        # What does not fit together may be said of the other half of it.
        assert all(re.search(r"config\.[a-z]", fault) for fault in faults)
        return
    found = flatten(config.to_dict())
    assert found.keys() == KEYS.keys()
    for name, value in found.items():
        key = KEYS[name]
        assert type(value) is type(key.default)
        if name not in dict(given):
            assert value == key.default
    again = configs.build(json.loads(to_json(config)), ())
    assert again == config


@pytest.mark.parametrize("from_file", [False, True])
def test_mutated_keys_are_refused_and_named(tmp_path, from_file):
    tried = named = 0
    for key in KEYS:
        # b1 and b2 are one edit apart, which no other two keys are.
        wrong = sorted(set(edits(key)) - {"optimizer.b1"})
        if from_file:
            # A name with dots in JSON flattens as the nested one does.
            message = refusal(write(tmp_path, json.dumps(dict.fromkeys(wrong, 1)), "made.json"))
        else:
            message = refusal(None, *(f"--config.{name}=1" for name in wrong))
        for name, line in zip(wrong, message.splitlines()[1:], strict=True):
            assert f" config.{name} is not a known key" in line
            tried += 1
            named += f"did you mean {key!r}?" in line
    assert tried > 1000
    assert named / tried >= 0.9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_mutated_keys_of_every_config_are_refused_and_named(tmp_path, path):
    """Each key and section where it stands in the file, a letter wrong."""
    text = path.read_text(encoding="utf-8")
    load(str(path))
    tried = named = 0
    for match in re.finditer(r"^    config\.([\w.]+) = ", text, re.MULTILINE):
        for wrong in set(edits(match[1], 3)) - KEYS.keys():
            edited = f"{text[: match.start(1)]}{wrong}{text[match.end(1) :]}"
            message = refusal(write(tmp_path, edited))
            tried += 1
            section = match[1].partition(".")[0]
            named += match[1] in message or f"'{section}'" in message
    assert tried > 100
    assert named / tried >= 0.9


@pytest.mark.parametrize("key", KEYS)
def test_wrong_type_says_given_and_expected(tmp_path, key):
    wrong = WRONG[type(KEYS[key].default)]
    tree = wrong
    for name in reversed(key.split(".")):
        tree = {name: tree}
    message = refusal(write(tmp_path, f"def get_config():\n    return {tree!r}\n"))
    assert message.startswith(f"config.{key} is {wrong!r}: expected {KEYS[key].expected}")


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        "steps=0",
        "steps=ten",
        "steps=1.5",
        "batch_size=-4",
        "microbatches=0",
        "learning_rate=0",
        "learning_rate=nan",
        "learning_rate=inf",
        "log_every=0",
        "evaluate_every=-1",
        "optimizer.b1=1.5",
        "optimizer.multiply_by_parameter_scale=maybe",
        "schedule.name=cosinus",
        "parallel=xmap",
        "method.name=softprompt",
        "model.path=",
        "task.labels=only,one",
        "task.labels=('one', 2)",
        "task.labels=('one', '')",
    ],
)
def test_wrong_override_names_its_key(override):
    key = override.partition("=")[0]
    message = refusal(None, f"--config.{override}")
    assert message.startswith(f"config.{key} is ")
    assert f"expected {KEYS[key].expected}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["microbatches=17"], "at most config.batch_size, 16"),
        (["early_stopping=2", "evaluate_every=0"], "expected an evaluate_every of at least 1"),
        (["tracker=wndb"], "did you mean 'wandb'?"),
        (["method.init=text"], "config.method.init_text is empty"),
        (["method.init=file"], "config.method.init_file is empty"),
        (["method.init=zero"], "config.method.init is 'zero': expected one of 'uniform', "),
        (["method.init=txt", "method.name=prefix"], "'zero' for 'prefix' (did you mean 'text'?)"),
        (["method.hidden_size=8"], "hidden_size is 8 and 'soft_prompt' has no such setting"),
        (["optimizer.name=adam", "optimizer.weight_decay=0.1"], "'adam' has no such setting"),
        (["optimizer.name=adafactor", "optimizer.b1=0.5"], "'adafactor' has no such setting"),
        (["model=3"], "config.model is a section: set one of its keys path, dtype"),
        (["task={'name': 'x'}"], "config.task is a section"),
        (["schedule.name=cosin"], "did you mean 'cosine'?"),
        (["task.labels=('one',)"], "at least two texts"),
        (["task.columns=('text',)"], "expected texts 'field=column'"),
        (["task.columns=('a b=c',)"], "expected texts 'field=column'"),
        (["task.files.test_part=0"], "a share above 0 and below 1"),
        (["task.files.train=x.csv"], "config.task.name=files"),
        (["task.files.header=false"], "config.task.name=files"),
        (["task.name=files"], "config.task.files.train is ''"),
        (["task.name=tfds:x", "task.files.test=y.csv"], "config.task.name=files"),
        (
            [
                *("task.name=files", "task.files.train=a.csv", "task.files.test=b.csv"),
                "task.files.test_part=0.5",
            ],
            "test_part is 0.5 and config.task.files.test is 'b.csv', which is taken whole",
        ),
        (["task.columns=('a=b',)"], "config.task.name=files or tfds:NAME"),
        (["task.target={a}", "task.labels=('b','c')"], "leave one of them empty"),
        (["task.target={a}", "task.examples_per_class=4"], "which has no classes"),
        (["task.metrics=('f1',)"], "expected some of accuracy, class_accuracy, macro_f1"),
        (["task.metrics=('rouge_l',)"], "which a task with labels cannot have"),
        (["task.target={a}", "task.metrics=('matthews',)"], "which a task with a text target"),
    ],
)
def test_values_that_do_not_fit(overrides, part):
    assert part in refusal(None, *(f"--config.{override}" for override in overrides))


def test_an_override_without_a_value():
    assert "write --config.KEY=VALUE" in refusal(None, "--config.steps")
    assert "write --config.KEY=VALUE" in refusal(None, "steps=3")


def test_all_faults_at_once(tmp_path):
    path = write(tmp_path, "def get_config():\n    return {'sed': 1, 'task': {'name': 5}}\n")
    lines = refusal(path, "--config.steps=x", "--config.log_every=0").splitlines()
    assert lines[0] == f"config file {path!r} with its overrides has 4 faults:"
    assert [line.split(" is ")[0] for line in lines[1:]] == [
        "  1. config.sed",
        "  2. config.steps",
        "  3. config.log_every",
        "  4. config.task.name",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def get_config(:\n    pass\n", "line 1: SyntaxError"),
        ("x = 1\n\n\ny = x.no\n", "line 4: AttributeError"),
        ("def get_config():\n    steps = 1\n    return stepz\n", "line 3: NameError"),
        ("import a_module_that_is_not_there\n", "line 1: ModuleNotFoundError"),
        ("def get_confg():\n    return {}\n", "no function get_config()"),
        ("def get_config():\n    pass\n", "get_config() returned NoneType"),
        ("def get_config(size):\n    return {}\n", "TypeError"),
        (
            "import ml_collections as m\nc = m.ConfigDict()\nc.optimizr.name = 'sgd'\n",
            "line 3: 'optimizr' is not there (did you mean 'optimizer'?)",
        ),
        (
            "import ml_collections as m\nc = m.ConfigDict()\nc.taks = {}\nc.task.name = 'x'\n",
            "line 4: 'task' is not there (did you mean 'taks'?)",
        ),
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit"),
        ("x = '\0'\n", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_broken_python_file(tmp_path, text, part):
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(f"config file {path!r}")
    assert part in message and "\n" not in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"steps": 3,\n "seed" 4}', "line 2: "),
        ("", "line 1: "),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "too many digits"),
        ('{"steps": NaN}', "config.steps is nan"),
        ('{"model": "x"}', "config.model is a section"),
        ('{"steps": {}}', "config.steps is {}: expected a whole number"),
        ('{"steps": {"a": 1}}', "config.steps is {'a': 1}: expected a whole number"),
        ('{"learning_rate": 1' + "0" * 400 + "}", "config.learning_rate is 1000"),
    ],
)
def test_broken_json_file(tmp_path, text, part):
    assert part in refusal(write(tmp_path, text, "made.json"))


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "", "quickstart.py")
    path = str(tmp_path / "quikstart.py")
    expected = str(tmp_path / "quickstart.py")
    assert refusal(path) == f"config file {path!r} does not exist (did you mean {expected!r}?)"
    assert "does not exist" in refusal(str(tmp_path / "no" / "folder.py"))
    assert "is a folder: give a .py file" in refusal(str(tmp_path))
    assert "has to end in .py" in refusal(write(tmp_path, "", "made.yaml"))


def test_a_saved_config_is_the_same_config(tmp_path):
    config = load(QUICKSTART, ["--config.learning_rate=1", "--config.task.labels=('a', 'b')"])
    saved = load(write(tmp_path, to_json(config), "config.json"))
    assert saved == config
    assert difference(to_json(config), saved) == []


def test_a_saved_config_is_not_executed(tmp_path):
    path = write(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')", "config.json")
    refusal(path)
    assert not (tmp_path / "ran").exists()


def test_difference_names_what_changed():
    old = to_json(load(QUICKSTART))
    now = load(QUICKSTART, ["--config.steps=3", "--config.schedule.warmup_steps=1"])
    assert difference(old, now) == [
        "config.schedule.warmup_steps was 20 and is 1 now",
        f"config.steps was {load(QUICKSTART).steps} and is 3 now",
    ]


def test_difference_of_a_config_from_before_a_key_was_there():
    config = load(None)
    old = json.loads(to_json(config))
    del old["microbatches"]
    assert difference(json.dumps(old), config) == []
    assert len(difference(json.dumps(old), load(None, ["--config.microbatches=2"]))) == 1


def test_validate_a_config_made_by_hand():
    config = load(None)
    validate(config)
    with config.unlocked():
        config.stepz = 3
        config.model.path = ""
        del config.seed
    with pytest.raises(UserError) as caught:
        validate(config)
    message = str(caught.value)
    assert "the config has 3 faults" in message
    for part in ("config.stepz is not", "config.seed is missing", "config.model.path is ''"):
        assert part in message


def test_nearest():
    assert nearest("stepz", ["seed", "steps"]) == " (did you mean 'steps'?)"
    assert nearest("qqqq", ["seed", "steps"]) == ""
