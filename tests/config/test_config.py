"""Configs: what is read, what overrides change, and that every fault is refused by its name."""

import json
import os
import random
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax.config import build, difference, flatten, load, to_json, validate
from prompt_tuning_jax.config.schema import OTHERS, all_keys, collect, complete
from prompt_tuning_jax.data.task import make_task, training_records
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.methods import METHODS

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.py"
KEYS = complete({})[0]
# A value of another type for each type of key.
WRONG = {bool: 3, int: 1.5, float: "fast", str: 7, tuple: "one"}
LETTERS = string.ascii_lowercase + "_1."


def overrides(words):
    return [f"--config.{word}" for word in words]


def refusal(path, *words):
    with pytest.raises(UserError) as caught:
        load(path, overrides(words))
    return str(caught.value)


def write(folder, text, name="made.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def edits(word, each):
    """Words that one edit makes of `word`: a letter gone, swapped, replaced or put in.

    Letters are drawn, the same each time; `each` is how many words of each kind.
    """
    draw = random.Random(word)
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    letter = draw.choice
    kinds = [
        [front + back[1:] for front, back in cuts[:-1]],
        [front + back[1::-1] + back[2:] for front, back in cuts[:-2]],
        [front + letter(LETTERS) + back[1:] for front, back in cuts[:-1]],
        [front + letter(LETTERS) + back for front, back in cuts],
    ]
    made = {edit for kind in kinds for edit in draw.sample(kind, min(each, len(kind)))}
    return sorted(made - {word})


def test_the_defaults_are_valid_and_the_config_is_locked():
    config = load(None)
    assert flatten(config.to_dict()) == {name: key.default for name, key in KEYS.items()}
    with pytest.raises(AttributeError):
        config.stepz = 3


@pytest.mark.parametrize("name", METHODS)
def test_quickstart_takes_every_method_by_its_name(name):
    """`make quickstart METHOD=name`; its config differs by the method, its optimizer and learning
    rate, and what the result is chosen by. The quickstart spells out the labels of the task."""
    made = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "quickstart", f"METHOD={name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, config, _, workdir = shlex.split(made.stdout.splitlines()[-1])
    assert workdir == f"runs/{os.path.basename(config).removesuffix('.py')}"
    found = load(ROOT / config)
    assert found.method.name == name
    assert make_task(found.task).labels == make_task(load(QUICKSTART).task).labels
    changed = difference(to_json(load(QUICKSTART)), found)
    keys = {line.split(" was ")[0] for line in changed}
    assert all(
        key.startswith(("config.method.", "config.optimizer."))
        for key in keys - {"config.learning_rate", "config.best_by", "config.task.labels"}
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=7", 7),
        ("learning_rate=3e-4", 3e-4),
        ("optimizer.clip_norm=0", 0.0),
        ("optimizer.nesterov=true", True),
        ("model.path=a b=c.gguf", "a b=c.gguf"),
        ("task.template={soft}{text} is", "{soft}{text} is"),
        ("task.labels=('no', 'yes=oh yes')", ("no", "yes=oh yes")),
        ("task.metrics='accuracy'", ("accuracy",)),
        ("prompts={text}", ("{text}",)),
        (r"generation.stop=\n", ("\n",)),
        (r"generation.stop=('\n', '\\n')", ("\n", r"\n")),
        (r"method.init_text=one\ttwo\n", "one\ttwo\n"),
    ],
)
def test_override(override, value):
    config = load(QUICKSTART, overrides([override]))
    found = flatten(config.to_dict())[override.partition("=")[0]]
    assert found == value and type(found) is type(value)


@given(st.integers(1, 10**9), st.floats(1e-9, 1e9), st.text(min_size=1, max_size=20))
def test_overrides_arrive_as_typed_and_the_last_of_a_key_counts(steps, rate, text):
    words = "steps=5", f"steps={steps}", f"learning_rate={rate}", f"method.init_text={text}"
    config = load(None, overrides([*words, f"prompts={(text, text)!r}"]))
    typed = text.replace(r"\n", "\n").replace(r"\t", "\t")
    assert (config.steps, config.learning_rate, config.method.init_text) == (steps, rate, typed)
    assert config.prompts == (text, text)


VALUES = ["", "0", "-1", "1e400", "nan", "true", "None", "()", "('a', 'b')", "('a=b',)", "{'a': 1}"]
VALUES += ["prefix", "text", "{text}", "{soft:2}{a}", "files", "tfds:x", "sgd", "[" * 50, "\0"]


@given(
    st.lists(
        st.tuples(st.sampled_from([*all_keys()]), st.sampled_from(VALUES) | st.text(max_size=8)),
        max_size=4,
    )
)
def test_overrides_are_taken_as_a_whole_or_refused_by_their_keys(given):
    try:
        config = load(None, overrides(f"{key}={value}" for key, value in given))
    except UserError as error:
        message = str(error)
        assert message.replace("\n", "").isprintable()
        faults = message.splitlines()
        faults = faults[1:] if len(faults) > 1 else faults
        # What does not fit together may be said of the other half of it.
        assert all(re.search(r"config\.[a-z]", fault) for fault in faults)
        return
    found = flatten(config.to_dict())
    keys, _, _ = complete(found)
    assert found.keys() == keys.keys()
    for name, value in found.items():
        assert type(value) is type(keys[name].default)
        # Momentum can be given by its earlier name.
        if name not in dict(given) and name != "optimizer.momentum":
            assert value == keys[name].default
    assert build(json.loads(to_json(config))) == config


def test_mutated_keys_are_refused_and_named():
    tried = named = 0
    for key in KEYS:
        wrong = sorted(set(edits(key, 5)) - all_keys().keys())
        message = refusal(None, *(f"{name}=1" for name in wrong))
        for name, line in zip(wrong, message.splitlines()[1:], strict=True):
            assert f" config.{name} is not a known key" in line
            tried += 1
            named += f"did you mean {key!r}?" in line
    assert tried > 1000
    assert named / tried >= 0.9


def test_mutated_keys_of_a_file_are_refused_and_named(tmp_path):
    """Each key and section where it stands in the file, a letter wrong."""
    text = QUICKSTART.read_text(encoding="utf-8")
    tried = named = 0
    for match in re.finditer(r"^    config\.([\w.]+) = ", text, re.MULTILINE):
        for wrong in set(edits(match[1], 3)) - all_keys().keys():
            edited = f"{text[: match.start(1)]}{wrong}{text[match.end(1) :]}"
            message = refusal(write(tmp_path, edited))
            tried += 1
            section = match[1].partition(".")[0]
            named += match[1] in message or f"'{section}'" in message
    assert tried > 100
    assert named / tried >= 0.9


def test_a_wrong_type_says_given_and_expected():
    for (section, owner), keys in collect().items():
        for name, key in keys.items():
            wrong = WRONG[type(key.default)]
            with pytest.raises(UserError) as caught:
                build({name: wrong, **({f"{section}.name": owner} if owner else {})})
            assert f"config.{name} is {wrong!r}: expected {key.expected}" in str(caught.value)


INVALID = """seed=-1 steps=0 steps={[]:1} steps=ten steps=1.5 steps=True batch_size=-4
    microbatches=0 log_every=0
    learning_rate=0 learning_rate=nan learning_rate=1e999 evaluate_every=-1 optimizer.b1=1.5
    optimizer.nesterov=maybe schedule.name=cosinus parallel.name=xmap method.name=softprompt
    model.path= task.name=tfds task.labels=only,one task.labels=('one',2) task.labels=('one','')"""


@pytest.mark.parametrize("override", INVALID.split())
def test_a_wrong_override_names_its_key(override):
    key = override.partition("=")[0]
    message = refusal(None, override)
    assert message.startswith(f"config.{key} is ")
    assert f"expected {KEYS[key].expected}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("microbatches=17", "is 17: expected at most config.batch_size"),
        ("early_stopping=2 evaluate_every=0", "expected config.evaluate_every of at least 1"),
        ("tracker=wndb", "did you mean 'wandb'?"),
        ("optimizer.name=AdamW", "did you mean 'adamw'?"),
        ("method.name=prefix_tuning", "did you mean 'prefix'?"),
        ("method.name=LoRA", "did you mean 'lora'?"),
        ("task.name=files:x", "expected one of 'bbc_news', 'files', 'tfds:NAME'"),
        ("method.init=text", "config.method.init_text is '': expected a text, because"),
        ("method.init=file", "config.method.init_file is '': expected a path, because"),
        ("method.init=zero", "config.method.init is 'zero': expected one of 'uniform', "),
        ("method.init=txt method.name=prefix", "'zero' (did you mean 'text'?)"),
        ("model=3", "config.model is a section: set its keys path, dtype"),
        ("task.name=files task.files.train=a.csv task.columns=text", "expected texts 'field=col"),
        ("task.name=tfds:x task.columns=('a=',)", "expected texts 'field=column'"),
        ("task.name=files task.files.train=a.csv task.files.test_part=0", "a share above 0 and"),
        ("task.name=files", "train is '': expected a .json, .csv, .tsv or .parquet file"),
        (
            "task.name=files task.files.train=a task.files.test=b task.files.test_part=0.5",
            "test_part is 0.5: expected 0.1, the default, because config.task.files.test is used",
        ),
        ("task.target={a} task.labels=('b','c')", "expected () beside config.task.target"),
        ("task.target={a} task.examples_per_class=4", "which has no classes"),
        ("task.metrics=('acuracy',)", "squad_f1 (did you mean 'accuracy'?)"),
        ("task.metrics=('rouge_l',)", "calibration_error for labels, of exact_match, "),
        ("task.metrics_tokenizer=char", "'auto' without config.task.target, because"),
        ("task.target={a} task.metrics_tokenizer=16a", "did you mean '13a'?"),
        ("generation.top_k=3", "config.generation.temperature above 0"),
        ("generation.temperature=1e-9", "0, or a number of at least 0.001"),
    ],
)
def test_values_that_do_not_fit(words, part):
    assert part in refusal(None, *words.split())


@pytest.mark.parametrize(
    ("words", "whose"),
    [
        ("method.hidden_size=8", "of prompt_encoder and prefix, and config.method.name is 'soft"),
        ("optimizer.name=sgd optimizer.weight_decay=0.1", "and config.optimizer.name is 'sgd'"),
        ("optimizer.momentum=0.1", "is a key of sgd, and config.optimizer.name is 'adamw'"),
        ("task.files.train=x.csv", "is a key of files, and config.task.name is 'bbc_news'"),
        ("task.name=tfds:x task.files.header=false", "files, and config.task.name is 'tfds'"),
        ("task.columns=('a=b',)", "is a key of files and tfds, and config.task.name is"),
        ("optimizer.momentum=0.9", "is a key of sgd, and config.optimizer.name"),  # its default
    ],
)
def test_a_key_of_another_is_refused_and_says_whose_it_is(words, whose):
    assert whose in refusal(None, *words.split())


def test_a_key_of_another_is_ignored_at_its_default_in_a_file(tmp_path):
    saved = json.loads(to_json(load(None)))
    saved["method"]["hidden_size"] = 0
    saved["task"]["files"] = {"header": True}
    saved["optimizer"]["momentum"] = 0.9
    assert load(write(tmp_path, json.dumps(saved), "made.json")) == load(None)
    # Whatever its value, where another method is typed.
    assert load(str(QUICKSTART), ["--config.method.name=lora"]).method == (
        load(None, ["--config.method.name=lora"]).method
    )


def test_another_optimizer_that_is_typed_begins_at_its_defaults():
    saved = load(None, overrides(["optimizer.clip_norm=0.5", "optimizer.eps=1e-7"])).to_dict()
    words = ["optimizer.name=adafactor", "optimizer.decay_rate=0.7"]
    found = build(saved, overrides(words)).optimizer
    own = {"name": "adafactor", "clip_norm": 0.5, "decay_rate": 0.7}
    assert found == build({"optimizer": own}).optimizer
    assert found.eps != 1e-7
    same = build(saved, overrides(["optimizer.name=adamw"])).optimizer
    assert same.eps == 1e-7


def test_an_earlier_name_of_a_key_can_be_typed():
    assert load(None, overrides(["optimizer.name=sgd", "optimizer.b1=0.9"])).optimizer.momentum


@pytest.mark.parametrize(
    ("other", "ours"),
    [
        ("lr", "learning_rate"),
        ("gradient_accumulation_steps", "microbatches"),
        ("weight_decay", "optimizer.weight_decay"),
        ("prompt_tuning_init_text", "method.init_text"),
        ("model_name_or_path", "model.path"),
        ("bf16", "model.dtype=bfloat16"),
        ("optimizer.learning_rate", "learning_rate"),
        ("train", "task.train"),
    ],
)
def test_a_name_of_another_program_or_without_its_section_names_our_key(other, ours):
    sentence = f"config.{other} is not a known key (did you mean '{ours}'?)"
    assert refusal(None, f"{other}=1").startswith(sentence)
    with pytest.raises(UserError) as caught:
        build({other: 1})
    assert str(caught.value).startswith(sentence)


def test_every_name_of_another_program_stands_for_a_key():
    ours = {key.partition("=")[0] for key in OTHERS.values()}
    assert ours <= all_keys().keys() and not OTHERS.keys() & all_keys().keys()
    for words in (key for key in OTHERS.values() if "=" in key and not key.split("=")[1].isupper()):
        load(None, overrides([words]))


def test_epochs_are_said_in_steps(tmp_path):
    table = write(
        tmp_path, "text,label\n" + "".join(f"n{n},{n % 2}\n" for n in range(80)), "table.csv"
    )
    data = ["task.name=files", f"task.files.train={table}", "batch_size=9"]
    data += ["task.files.test_part=0.3"]
    config = load(None, overrides(data))
    task = make_task(config.task)
    count = len(training_records(task, config.task))
    formula = "write config.steps = epochs x examples / batch_size"
    for name in ("epochs", "num_epochs", "num_train_epochs"):
        message = refusal(None, *data, f"{name}=3")
        steps = -(-3 * count // 9)
        assert f"config.{name} is not a known key: {formula}" in message
        assert message.endswith(f"; 3 epochs of {count} examples are config.steps={steps}")
    gone = refusal(None, "task.name=files", "task.files.train=gone.csv", "epochs=3")
    assert gone.endswith("/ batch_size (--dry_run shows the number of examples)")
    assert refusal(None, *data, "epochs=many").endswith("of examples)")


def test_an_override_without_a_value():
    for word in ("--config.steps", "steps=3"):
        with pytest.raises(UserError, match=r"write --config\.KEY=VALUE"):
            load(None, [word])


def test_all_faults_at_once(tmp_path):
    path = write(tmp_path, "def get_config():\n    return {'sed': 1, 'task': {'name': 5}}\n")
    assert load(write(tmp_path, f"{MADE}{END}", "other.py"), "--config.steps=9").steps == 9
    lines = refusal(path, "steps=x", "log_every=0").splitlines()
    assert lines[0] == f"config file {path!r} with its overrides has 4 faults:"
    assert [line.split(" is ")[0] for line in lines[1:]] == [
        "  1. config.sed",
        "  2. config.steps",
        "  3. config.log_every",
        "  4. config.task.name",
    ]


def test_a_config_may_import_its_neighbour_and_have_numbers_of_numpy(tmp_path, capsys):
    own = "c.steps = numpy.int64(3)\nc.compare = {'seeds': tuple(numpy.arange(2))}\n"
    write(tmp_path, f"import numpy\n{MADE}{own}{END}", "of_all.py")
    path = "import sys\nsys.path.insert(0, 'elsewhere')\nfrom of_all import get_config\nprint(1)\n"
    path, before = write(tmp_path, path, "own.py"), [*sys.path]
    made = load(path)
    assert made.steps == 3 and made.compare.seeds == (0, 1) and sys.path == before
    assert capsys.readouterr() == ("", "1\n")  # stdout may be for JSON


END = "def get_config():\n    return c\n"
MADE = "import ml_collections as m\nc = m.ConfigDict()\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def get_config(:\n    pass\n", "line 1: SyntaxError"),
        ("x = 1\n\n\ny = x.no\n", "line 4: AttributeError"),
        ("def get_confg():\n    return {}\n", "no function get_config()"),
        ("def get_config():\n    pass\n", "it gives NoneType"),
        (f"{MADE}c.optimizr.name = 'sgd'\n", "line 3: 'optimizr' is missing: make a section first"),
        (f"{MADE}c.taks = {{}}\nc.task.name = 'x'\n", "line 4: 'task' is missing (did you mean"),
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit"),
        ("x = '\0'\n", "SyntaxError: source code string cannot contain null bytes"),
        (f"{MADE}c.seed = m.config_dict.required_placeholder(int)\n{END}", "RequiredValueError"),
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
        ('{"steps": {"a": 1}}', "config.steps.a is not a known key"),
        ('{"learning_rate": 1' + "0" * 400 + "}", "config.learning_rate is 1000"),
    ],
)
def test_broken_json_file(tmp_path, text, part):
    assert part in refusal(write(tmp_path, text, "made.json"))


def test_a_missing_file_names_the_nearest(tmp_path):
    expected = write(tmp_path, "", "quickstart.py")
    path = str(tmp_path / "quikstart.py")
    assert refusal(path) == f"config file {path!r} does not exist (did you mean {expected!r}?)"
    assert "does not exist" in refusal(str(tmp_path / "no" / "folder.py"))
    assert "is a folder: give a .py file" in refusal(str(tmp_path))
    assert "does not end in .py" in refusal(write(tmp_path, "", "made.yaml"))


def test_a_saved_config_is_the_same_config_and_is_not_executed(tmp_path):
    config = load(QUICKSTART, overrides(["learning_rate=1", "task.labels=('a', 'b')"]))
    saved = load(write(tmp_path, to_json(config), "config.json"))
    assert saved == config
    assert difference(to_json(config), saved) == []
    refusal(write(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')", "config.json"))
    assert not (tmp_path / "ran").exists()


def test_difference_names_what_changed():
    old = load(QUICKSTART)
    now = load(QUICKSTART, overrides(["steps=3", "schedule.warmup_steps=1"]))
    assert difference(to_json(old), now) == [
        "config.schedule.warmup_steps was 20 and is 1 now",
        f"config.steps was {old.steps} and is 3 now",
    ]
    prefix = load(QUICKSTART, overrides(["method.name=prefix"]))
    assert difference(to_json(old), prefix) == [
        "config.method.hidden_size was not set and is 0 now",
        "config.method.name was 'soft_prompt' and is 'prefix' now",
    ]


def test_a_saved_config_that_lacks_a_key_had_the_default():
    config = load(None)
    old = json.loads(to_json(config))
    del old["microbatches"]
    assert difference(json.dumps(old), config) == []
    assert len(difference(json.dumps(old), load(None, overrides(["microbatches=2"])))) == 1


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
