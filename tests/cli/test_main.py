"""The command line: what reaches the commands, what is rejected, exit statuses, time to answer."""

import importlib.util
import os
import resource
import shlex
import statistics
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import prompt_tuning_jax
from prompt_tuning_jax.cli.main import INTERRUPTED, run
from prompt_tuning_jax.config import load
from prompt_tuning_jax.errors import quote

ROOT = str(Path(__file__).resolve().parents[2])
QUICKSTART = os.path.join(ROOT, "configs", "quickstart.py")
TRAIN = ["train", "--config", QUICKSTART, "--workdir"]
PREDICT = ["predict", "--artifact", "x", QUICKSTART]
# Takes the place of a command's module, in a process of its own: a test says what it does.
STAND_IN = """
import sys
{}
for name in ("train", "predict"):
    sys.modules["prompt_tuning_jax.cli." + name] = sys.modules["__main__"]
from prompt_tuning_jax.cli.main import main
main()
"""


def command(*arguments, stand_in="", **options):
    """Runs the command in a process of its own, from the repository's root."""
    program = ["-m", "prompt_tuning_jax.cli.main"]
    if stand_in:
        program = ["-c", STAND_IN.format(stand_in)]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        text=True,
        cwd=ROOT,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.fixture
def called(monkeypatch):
    """Replaces what the commands do by notes of their names and arguments."""
    calls = []

    def note(name, answer):
        def do(*given):
            calls.append((name, *given))
            print("a log line")
            return answer

        return do

    doings = {
        "train": {"train_and_report": 0},
        "dry_run": {"rehearse": {"steps": 3}, "print_plan": None},
        "evaluate": {"evaluate_split": {"loss": 0.5}, "print_result": None},
        "predict": {"write_answers": None},
    }
    for name, answers in doings.items():
        module = types.ModuleType(f"prompt_tuning_jax.cli.{name}")
        vars(module).update({each: note(each, answer) for each, answer in answers.items()})
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["tran"], "'tran' is not a command (did you mean 'train'?)"),
        (["evalute", "--prompt", "x"], "did you mean 'evaluate'?"),
        (["train", "--workdr", "x"], "--workdir"),
        (["train", "--confg.steps=3"], "--config"),
        (["train", "--config", QUICKSTART], "needs both --config FILE and --workdir DIR"),
        (["train", "--workdir", "x"], "needs both --config FILE and --workdir DIR"),
        (["train", "--config.steps", "3"], "write --config.steps=3 as one word"),
        (["train", "--config.steps", "--fresh"], "write --config.steps=VALUE as one word"),
        (["train", "--steps", "10"], "'--steps' names a key of the config: type --config.steps=10"),
        ([*TRAIN, "x", "steps=10"], "'steps=10' names a key of the config: type --config.steps=10"),
        (["evaluate", "config.steps=10"], "type --config.steps=10"),
        (["train", "--steps", "--fresh"], "type --config.steps=VALUE"),
        (["train", "--batch-size", "8"], "type --config.batch_size=8"),
        (["train", "-lr", "0.1"], "type --config.learning_rate=0.1"),
        (["train", "--num_virtual_tokens=5"], "type --config.method.num_virtual_tokens=5"),
        (["train", "--method", "prefix"], "type --config.method.name=prefix"),
        (["train", "--labels", "('a','b')"], """type --config.task.labels="('a','b')\""""),
        (["train", "--bf16"], "type --config.model.dtype=bfloat16"),
        (["train", "--num_epochs", "3"], "config.steps = epochs x examples / batch_size"),
        (["predict", "--max_new_tokens", "5"], "type --config.generation.max_new_tokens=5"),
        (["predict", "--steps", "5"], "--steps"),
        (["list", "--steps", "5"], "--steps"),
        (["train", "--config", "quikstart", "--workdir", "x"], "did you mean 'quickstart'?"),
        (["--workdir", "x", "train"], "needs both --config FILE and --workdir DIR"),
        ([*TRAIN, "x", "extra"], "extra"),
        ([*TRAIN, "x", "--config.stepz=3"], "config.stepz is not a known key (did you mean 'ste"),
        ([*TRAIN, "x", "--config.steps=ten"], "config.steps is 'ten': expected a whole number"),
        (["evaluate", "--artifact", "x", "--prompt", "y"], "--artifact DIR or --prompt TEXT, not"),
        (["evaluate", "--prompts", "x", "--prompt", "y"], "--prompt TEXT or --prompts FILE, not"),
        (["evaluate", "--artifact", "x", "--demonstrations", "3"], "or --demonstrations K, not bo"),
        (["evaluate", "--demonstrations", "many"], "config.demonstrations.number is 'many'"),
        (["evaluate", "--demonstration", "3"], "--demonstrations"),
        (["evaluate", "--artifact", "x", "--config.seed=1"], "give --config FILE"),
        (["evaluate", "--splt", "test"], "--split"),
        ([*TRAIN, "run\udcff"], "'run\\udcff' is not UTF-8: type it in a UTF-8 terminal"),
        (["predict"], "predict needs --artifact DIR"),
        (["predict", "--artifact", "x", "--config.steps=1"], "predict takes no '--config.ste"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(called, capsys, arguments, part):
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and called == []
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and part in shown.err


def test_debug_shows_the_traceback_of_an_error(capsys):
    assert run(["train", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quickstart", "local"])
def test_a_config_can_be_given_by_its_name_and_before_the_command(called, name):
    wanted = load(os.path.join(ROOT, "configs", f"{name}.py"), ["--config.steps=7"])
    rest = ["--workdir", "x", "--config.steps=7"]
    for words in (
        ["train", "--config", name, *rest],
        ["--config", name, "train", *rest],
        [f"--config={name}", "train", *rest],
        ["--config.steps=7", "--config", name, "train", "--workdir", "x"],
        ["evaluate", "--config", name, "--config.steps=7"],
    ):
        assert run(words) == 0, words
        assert next(call[1] for call in called if "print" not in call[0]) == wanted
        called.clear()


WORDS = ["a b", "--config.task.labels=('a','b')", "it's", "$HOME", "'$x'", "`", "a\\'b", "!'", ""]
WORDS += ["--x=", "=", "--a b=('c')", "--config.x=\n'", '"', "~", "(1)", "--x=--y=('z')", "ü'"]


@given(st.lists(st.text() | st.sampled_from(WORDS), max_size=4))
@example(WORDS)
def test_quoted_words_are_the_words_again(words):
    assert shlex.split(" ".join(map(quote, words))) == words


def test_quoted_words_are_the_words_again_in_a_shell():
    line = " ".join(map(quote, WORDS))
    shown = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert shown.stdout.decode().split("\0")[:-1] == WORDS
    assert quote("--config.task.labels=('a','b')") == """--config.task.labels="('a','b')\""""
    assert quote("--split=test[:9]") == "--split='test[:9]'" and quote("runs/x") == "runs/x"


def test_help_lists_the_commands():
    shown = command("--help")
    assert shown.returncode == 0
    for name in ("train", "evaluate", "predict", "list", "copy", "env"):
        assert f"\n  {name} " in shown.stdout
    statuses = "75 interrupted and saved, 130 interrupted and nothing saved."
    assert statuses in " ".join(shown.stdout.split())
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        assert statuses in " ".join(file.read().split())
    assert "--config.KEY=VALUE" in command("train", "--help").stdout
    assert command().stdout == shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["list", "configs"], ["lst"], ["train", "--confg", "x"]],
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
        "m.run(['train', '--confg', 'x'])\n"
        "sys.stdout = sys.stderr; m.run(['list', 'configs']); sys.stdout = sys.__stdout__\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    heavy = {"jax", "flax", "numpy", "optax", "orbax", "grain", "transformers", "tokenizers"}
    heavy |= {"tensorflow_datasets", "matplotlib", "rich", "torch"}
    assert "No such option" in shown.stderr
    assert not heavy & set(shown.stdout.split())


def test_any_other_failure_is_one_line_and_debug_shows_where():
    fail = "def write_answers(*given): raise ZeroDivisionError('first\\nsecond')"
    shown = command(*PREDICT, stand_in=fail)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "error: ZeroDivisionError: first (--debug shows the traceback)\n"
    shown = command(*PREDICT, "--debug", stand_in=fail)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr and "second" in shown.stderr


# A process in the background ignores Ctrl-C from its start: the default is set again.
HEARD = "signal.signal(signal.SIGINT, signal.default_int_handler)"
IGNORED = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
OPEN = f"{IGNORED}; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # nohup ignores it
STOPS = pytest.mark.parametrize(
    ("number", "before"), [("SIGINT", HEARD), ("SIGTERM", IGNORED), ("SIGHUP", OPEN)]
)


@STOPS
def test_ctrl_c_sigterm_and_a_closed_terminal_are_one_word(number, before):
    stop = f"""
import os, signal, time
{before}
def write_answers(*given):
    os.kill(os.getpid(), signal.{number})
    time.sleep(9)"""
    shown = command(*PREDICT, stand_in=stop)
    assert (shown.returncode, shown.stderr) == (INTERRUPTED, "interrupted\n")


def test_under_nohup_a_closed_terminal_changes_nothing():
    stay = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def write_answers(*given):
    os.kill(os.getpid(), signal.SIGHUP)
    print("done")"""
    assert command(*PREDICT, stand_in=stay).stdout == "done\n"


@STOPS
def test_a_stop_inside_a_callback_that_drops_it_is_heard(number, before):
    stop = f"""
import gc, os, signal
{before}
def write_answers(*given):
    def interrupt(phase, about):
        gc.callbacks.remove(interrupt)
        os.kill(os.getpid(), signal.{number})
    gc.callbacks.append(interrupt)
    gc.collect()
    os.read(os.pipe()[0], 1)"""
    shown = command(*PREDICT, stand_in=stop, timeout=60)
    assert (shown.returncode, shown.stderr) == (INTERRUPTED, "interrupted\n")


@STOPS
def test_a_stop_waits_until_an_import_is_complete(number, before):
    stop = f"""
import importlib.util, os, signal
{before}
train_and_report = None
class Importing:
    create_module = staticmethod(lambda spec: None)
    @staticmethod
    def find_spec(wanted, *given):
        if wanted == "prompt_tuning_jax.cli.dry_run":
            return importlib.util.spec_from_loader(wanted, Importing)
    @staticmethod
    def exec_module(module):
        os.kill(os.getpid(), signal.{number})
        print("complete", flush=True)
        module.print_plan = module.rehearse = None
sys.meta_path.insert(0, Importing)"""
    shown = command("train", "--config", QUICKSTART, "--dry_run", stand_in=stop)
    assert (shown.returncode, shown.stdout) == (INTERRUPTED, "complete\n")
    assert shown.stderr == "interrupted\n"


def test_a_reader_that_closed_stdout_is_no_error():
    program = STAND_IN.format("""
def write_answers(*given):
    for line in range(100000):
        print(line)""")
    process = subprocess.Popen(
        [sys.executable, "-c", program, *PREDICT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # With a buffer there is something left to write when Python ends.
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait() == 1


def test_the_package_has_five_names():
    assert set(prompt_tuning_jax.__all__) == {"evaluate", "load", "predict", "save", "tune"}
    assert set(prompt_tuning_jax.__all__) <= set(dir(prompt_tuning_jax))
    for name in prompt_tuning_jax.__all__:
        # A module of that name would take the function's place once it is imported.
        assert importlib.util.find_spec(f"prompt_tuning_jax.{name}") is None, name
        assert callable(getattr(prompt_tuning_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'tuen'"):
        _ = prompt_tuning_jax.tuen
