"""The command line: what reaches the library, what is refused, exit statuses, time to answer."""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import types
from pathlib import Path

import pytest

import prompt_tuning_jax
from prompt_tuning_jax.cli.main import INTERRUPTED, run
from prompt_tuning_jax.data.rows import read_lines
from prompt_tuning_jax.errors import RunError, UserError

ROOT = str(Path(__file__).resolve().parents[2])
QUICKSTART = os.path.join(ROOT, "configs", "quickstart.py")
TRAIN = ["train", "--config", QUICKSTART, "--workdir"]
# What the commands do, replaced by what a test says, in a process of its own.
STAND_IN = """
import sys, types
commands = types.ModuleType("prompt_tuning_jax.cli.commands")
sys.modules["prompt_tuning_jax.cli.commands"] = commands
{}
from prompt_tuning_jax.cli.main import main
main()
"""


def command(*arguments, stand_in="", **options):
    """Runs the command in a process of its own, from the repository's root."""
    program = (
        ["-c", STAND_IN.format(stand_in)] if stand_in else ["-m", "prompt_tuning_jax.cli.main"]
    )
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        **options,
    )


@pytest.fixture
def commands(monkeypatch):
    """A stand-in for what the commands do, that keeps what it was handed in `calls`."""
    made = types.ModuleType("prompt_tuning_jax.cli.commands")
    made.calls = []

    def train(config, workdir, fresh, command):
        made.calls.append((config, workdir, fresh))
        print("a table")
        os.makedirs(workdir, exist_ok=True)
        with open(os.path.join(workdir, "report.json"), "w", encoding="utf-8") as file:
            json.dump({"rows": []}, file)
        return 0

    def evaluate(config, artifact, prompt, split, wanted):
        made.calls.append((config, artifact, prompt, split, wanted))
        print("a log line")
        return {"accuracy": 0.5, "examples": 4}

    def rank(config, prompts, split, wanted):
        made.calls.append((config, prompts, split, wanted))
        print("a log line")
        candidates = [{"prompt": name, "accuracy": 0.5, "loss": 1.5} for name in ("b[i]", "a\nc")]
        return {"prompt": "b[i]", "split": split, "accuracy": 0.25, "candidates": candidates}

    def predict(artifact, stream, as_json, overrides):
        made.calls.append((artifact, stream.name, as_json, overrides))
        for _, line in read_lines(stream, stream.name):
            if line == "bad":
                raise UserError("a bad line")
            yield {"label": line.rstrip("\r\n"), "probabilities": {"é": 1.0}}

    made.train = train
    made.evaluate = evaluate
    made.rank = rank
    made.predict = predict
    monkeypatch.setitem(sys.modules, "prompt_tuning_jax.cli.commands", made)
    monkeypatch.setattr(prompt_tuning_jax.cli, "commands", made, raising=False)
    return made


def refused(capsys, *arguments):
    assert run(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip()


def test_train_hands_over_config_workdir_and_fresh(commands, tmp_path, capsys):
    workdir = str(tmp_path / "run")
    assert run([*TRAIN, workdir, "--config.steps=7", "--config.model.path=a.gguf", "--fresh"]) == 0
    [(config, given, fresh)] = commands.calls
    assert (config.steps, config.model.path, given, fresh) == (7, "a.gguf", workdir, True)
    assert capsys.readouterr().out == "a table\n"


def test_train_json_leaves_only_json_on_stdout(commands, tmp_path, capsys):
    assert run([*TRAIN, str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"rows": []}
    assert captured.err == "a table\n"


def test_the_exit_status_of_training_is_the_commands(commands, tmp_path, capsys):
    commands.train = lambda config, workdir, fresh, command: 75
    assert run([*TRAIN, str(tmp_path)]) == 75
    assert run([*TRAIN, str(tmp_path), "--json"]) == 75
    assert capsys.readouterr().out == ""


def test_a_failed_run_is_one_sentence_and_status_1(commands, tmp_path, capsys):
    def fail(config, workdir, fresh, command):
        raise RunError("five gradients in a row were not finite")

    commands.train = fail
    assert run([*TRAIN, str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: five gradients in a row were not finite\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["tran"], "'tran' is not a command (did you mean 'train'?)"),
        (["evalute", "--prompt", "x"], "did you mean 'evaluate'?"),
        (["train", "--workdr", "x"], "--workdir"),
        (["train", "--confg=x"], "--config"),
        (["train", "--confg.steps=3"], "--config"),
        (["train", "--config", QUICKSTART], "needs both --config FILE and --workdir DIR"),
        (["train", "--workdir", "x"], "needs both --config FILE and --workdir DIR"),
        (["train", "--config.steps", "3"], "write --config.steps=VALUE as one word"),
        ([*TRAIN, "x", "extra"], "extra"),
        ([*TRAIN, "x", "--config.stepz=3"], "config.stepz is not a known key (did you mean 'ste"),
        ([*TRAIN, "x", "--config.steps=ten"], "config.steps is 'ten': expected a whole number"),
        (["train", "--config", "no.py", "--workdir", "x"], "'no.py' does not exist"),
        (["evaluate", "--artifact", "x", "--prompt", "y"], "--artifact DIR or --prompt TEXT, not"),
        (["evaluate", "--prompts", "x", "--prompt", "y"], "--prompt TEXT or --prompts FILE, not"),
        (["evaluate", "--prompts", "x", "--artifact", "y"], "--artifact DIR or --prompts FILE, no"),
        (["evaluate", "--artifact", "x", "--demonstrations", "3"], "without --demonstrations"),
        (["evaluate", "--demonstrations", "0"], "--demonstrations"),
        (["evaluate", "--demonstrations", "many"], "'many' is not a valid integer"),
        (["evaluate", "--demonstration", "3"], "--demonstrations"),
        (["evaluate", "--demonstrations_choice", "random"], "without --demonstrations K"),
        (["evaluate", "--demonstrations_seed", "1"], "without --demonstrations K"),
        (
            ["evaluate", "--demonstrations", "3", "--demonstrations_choice", "balancd"],
            "expected balanced or random (did you mean 'balanced'?)",
        ),
        (["evaluate", "--demonstrations", "3", "--demonstrations_seed", "-1"], "-1"),
        (["evaluate", "--artifact", "x", "--config.seed=1"], "give --config FILE"),
        (["evaluate", "--splt", "test"], "--split"),
        ([*TRAIN, "run\udcff"], "--workdir is not UTF-8 at character 4: 'run\\udcff'"),
        (["train", "--config", "\udcff.py"], "--config is not UTF-8 at character 1"),
        (["evaluate", "--artifact", "a\udcff"], "--artifact is not UTF-8 at character 2"),
        (["evaluate", "--prompts=\udcff"], "--prompts is not UTF-8 at character 1"),
        (["predict", "--artifact", "a", "--output", "\udcff"], "--output is not UTF-8"),
        (["predict"], "predict needs --artifact DIR"),
        (["predict", "--artifact", "x", "--config.seed=1"], "predict takes no '--config.seed=1'"),
        (["predict", "--artifact", "x", "no-such-file"], "no-such-file"),
        (["predict", "--artifact", "x", QUICKSTART, "--output", "no/such/out"], "cannot write"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(commands, capsys, arguments, part):
    assert part in refused(capsys, *arguments)
    assert commands.calls == []


def test_debug_shows_the_traceback_of_a_refusal(capsys):
    assert run(["train", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "artifact", "prompt", "split", "has_config", "wanted"),
    [
        ([], None, None, None, True, None),
        (["--artifact", "a"], "a", None, None, False, None),
        (
            ["--artifact", "a", "--config", QUICKSTART, "--config.seed=1"],
            *("a", None, None, True, None),
        ),
        (
            ["--prompt", "{text}:", "--split", "validation", "--demonstrations", "4"],
            *(None, "{text}:", "validation", True, (4, "balanced", 0)),
        ),
        (
            ["--demonstrations=2", "--demonstrations_choice=random", "--demonstrations_seed=7"],
            *(None, None, None, True, (2, "random", 7)),
        ),
    ],
)
def test_evaluate(commands, capsys, arguments, artifact, prompt, split, has_config, wanted):
    assert run(["evaluate", *arguments, "--json"]) == 0
    [(config, *rest)] = commands.calls
    assert (config is not None) == has_config
    assert rest == [artifact, prompt, split, wanted]
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"accuracy": 0.5, "examples": 4}
    assert captured.err == "a log line\n"


def test_evaluate_ranks_prompts(commands, capsys):
    words = ["evaluate", "--prompts", "file", "--split", "validation", "--demonstrations", "2"]
    assert run([*words, "--json"]) == 0
    assert commands.calls[0][1:] == ("file", "validation", (2, "balanced", 0))
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["candidates"]) == 2
    assert captured.err == "a log line\n"
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["50.0%", "1.5000", "b[i]"],
        ["50.0%", "1.5000", "a\\nc"],
    ]
    assert lines[3:] == ["", "prompt: b[i]", "split: validation", "accuracy: 0.25"]


def test_evaluate_prints_names_and_values(commands, capsys):
    assert run(["evaluate"]) == 0
    assert capsys.readouterr().out == "accuracy: 0.5\nexamples: 4\n"


def test_predict_writes_a_json_line_for_each_line(commands, tmp_path, capsys):
    source = tmp_path / "lines.txt"
    source.write_bytes("\ufefffirst\r\nsécond\n\nlast".encode())
    assert run(["predict", "--artifact", "a", str(source)]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["label"] for row in rows] == ["first", "sécond", "", "last"]
    assert "sécond" in out
    assert run(["predict", "--artifact", "a", str(source), "--output", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o").read_text(encoding="utf-8") == out


@pytest.mark.parametrize(("bad", "part"), [(b"bad", "a bad line"), (b"\xff", "line 2: not UTF-8")])
def test_predict_leaves_no_half_written_output(commands, tmp_path, capsys, bad, part):
    source = tmp_path / "lines.txt"
    source.write_bytes(b"good\n" + bad)
    output = tmp_path / "out.jsonl"
    output.write_text("before")
    assert part in refused(
        capsys, "predict", "--artifact", "a", str(source), "--output", str(output)
    )
    assert output.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["lines.txt", "out.jsonl"]


def test_what_lines_are_goes_by_the_files_name_unless_one_says(commands, tmp_path):
    path, override = str(tmp_path / "a.jsonl"), "--config.generation.top_k=3"
    (tmp_path / "a.jsonl").write_text("{}\n")
    for words, as_json in (
        ([], None),
        ([override], None),
        (["--jsonl"], True),
        (["--lines"], False),
    ):
        assert run(["predict", "--artifact", "a", path, *words]) == 0
        overrides = [word for word in words if word == override]
        assert commands.calls[-1] == ("a", path, as_json, overrides)


def test_help_lists_what_there_is():
    shown = command("--help")
    assert shown.returncode == 0
    for name in ("train", "evaluate", "predict", "list", "copy", "env"):
        assert f"\n  {name} " in shown.stdout
    statuses = "75 interrupted and saved, 130 interrupted, nothing to go on from."
    assert statuses in " ".join(shown.stdout.split())
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        assert statuses in " ".join(file.read().split())
    assert "--config.KEY=VALUE" in command("train", "--help").stdout
    assert command().stdout == shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["list"], ["lst"], [*TRAIN, "x", "--config.stepz=3"]],
)
def test_answers_within_a_third_of_a_second(arguments):
    def seconds():
        # Time on a processor, not on the wall: other processes on the machine do not count.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(seconds() for _ in range(5)) < 0.3


def test_parsing_imports_nothing_heavy():
    program = (
        "import sys, prompt_tuning_jax.config, prompt_tuning_jax.cli.main as m\n"
        f"m.run(['train', '--config', {QUICKSTART!r}, '--workdir', 'x', '--config.a=1'])\n"
        "sys.stdout = sys.stderr; m.run(['list']); sys.stdout = sys.__stdout__\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    heavy = {"jax", "flax", "numpy", "optax", "orbax", "grain", "transformers", "tokenizers"}
    heavy |= {"tensorflow_datasets", "matplotlib", "rich", "torch"}
    assert "config.a is not a known key" in shown.stderr
    assert not heavy & set(shown.stdout.split())


def test_a_failure_is_one_line_and_status_1_and_debug_shows_where(tmp_path):
    fail = "def fail(*a): raise ZeroDivisionError('first\\nsecond')\ncommands.train = fail"
    shown = command(*TRAIN, str(tmp_path), stand_in=fail)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "error: ZeroDivisionError: first (--debug shows the traceback)\n"
    shown = command(*TRAIN, str(tmp_path), "--debug", stand_in=fail)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr and "second" in shown.stderr


# A process in the background ignores Ctrl-C from birth: its default is set again.
HEARD = "signal.signal(signal.SIGINT, signal.default_int_handler)"
IGNORED = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
OPEN = f"{IGNORED}; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # nohup ignores it
STOPS = pytest.mark.parametrize(
    ("number", "before"), [("SIGINT", HEARD), ("SIGTERM", IGNORED), ("SIGHUP", OPEN)]
)


@STOPS
def test_ctrl_c_sigterm_and_a_closed_terminal_are_one_word(tmp_path, number, before):
    stop = f"""
import os, signal, time
{before}
def train(*given):
    os.kill(os.getpid(), signal.{number})
    time.sleep(9)
commands.train = train"""
    shown = command(*TRAIN, str(tmp_path), stand_in=stop)
    assert (shown.returncode, shown.stderr) == (INTERRUPTED, "interrupted\n")


HUNG_UP = """
import os, signal
signal.signal(signal.SIGHUP, signal.{})
def predict(*given):
    yield 1
    os.kill(os.getpid(), signal.SIGHUP)
    yield 2
commands.predict = predict"""


def test_a_closed_terminal_leaves_no_half_written_output_and_nohup_goes_on(tmp_path):
    words = ["predict", "--artifact", "x", QUICKSTART, "--output", str(tmp_path / "out")]
    for before, status, left in (("SIG_DFL", INTERRUPTED, []), ("SIG_IGN", 0, ["out"])):
        stand_in = HUNG_UP.format(before)
        assert command(*words, stand_in=stand_in).returncode == status
        assert os.listdir(tmp_path) == left


@STOPS
def test_they_are_heard_inside_of_a_callback_that_swallows_them(tmp_path, number, before):
    stop = f"""
import gc, os, signal, time
{before}
def train(*given):
    def interrupt(phase, about):
        gc.callbacks.remove(interrupt)
        os.kill(os.getpid(), signal.{number})
    gc.callbacks.append(interrupt)
    gc.collect()
    for _ in range(900):
        time.sleep(0.01)
commands.train = train"""
    shown = command(*TRAIN, str(tmp_path), stand_in=stop)
    assert (shown.returncode, shown.stderr) == (INTERRUPTED, "interrupted\n")


@STOPS
def test_they_wait_until_an_import_is_whole(tmp_path, number, before):
    stop = f"""
import importlib.util, os, signal
{before}
class Importing:
    create_module = staticmethod(lambda spec: None)
    @staticmethod
    def find_spec(wanted, *given):
        if wanted == commands.__name__:
            return importlib.util.spec_from_loader(wanted, Importing)
    @staticmethod
    def exec_module(module):
        os.kill(os.getpid(), signal.{number})
        print("whole", flush=True)
del sys.modules[commands.__name__]
sys.meta_path.insert(0, Importing)"""
    shown = command(*TRAIN, str(tmp_path), stand_in=stop)
    assert (shown.returncode, shown.stdout) == (INTERRUPTED, "whole\n")
    assert shown.stderr == "interrupted\n"


def test_a_closed_stdout_is_quiet(monkeypatch):
    # With a buffer there is something left to write when the interpreter ends.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    many = "commands.predict = lambda *given: ({'label': i} for i in range(100000))"
    program = STAND_IN.format(many)
    process = subprocess.Popen(
        [sys.executable, "-c", program, "predict", "--artifact", "x", QUICKSTART],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == '{"label": 0}\n'
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait() == 1


SAYS = """
def train(*given):
    from prompt_tuning_jax.streams import spoken
    for line in range(3):
        with spoken():
            print(line, flush=True)
    return 0
commands.train = train
commands.evaluate = lambda *given: {"accuracy": 0.5}
commands.predict = lambda *given: ({"label": line} for line in range(3))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([*TRAIN, "x"], 0),
        (["evaluate"], 1),
        (["predict", "--artifact", "x", QUICKSTART], 1),
        (["list"], 1),
    ],
)
def test_a_full_disk_behind_stdout_is_one_line(arguments, status, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        shown = subprocess.run(
            [sys.executable, "-c", STAND_IN.format(SAYS), *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
    assert shown.returncode == status
    assert shown.stderr.count("\n") == 1 and "No space left on device" in shown.stderr


def test_the_package_has_five_names():
    assert set(prompt_tuning_jax.__all__) == {"evaluate", "load", "predict", "save", "tune"}
    assert set(prompt_tuning_jax.__all__) <= set(dir(prompt_tuning_jax))
    for name in prompt_tuning_jax.__all__:
        # A module of that name would stand in the function's place once imported.
        assert importlib.util.find_spec(f"prompt_tuning_jax.{name}") is None, name
        assert callable(getattr(prompt_tuning_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'tuen'"):
        _ = prompt_tuning_jax.tuen
