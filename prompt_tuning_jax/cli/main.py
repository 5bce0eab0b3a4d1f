"""The command `prompt-tuning`: parses a command line, then imports what the command needs."""

import _thread
import contextlib
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, BinaryIO

import click

from prompt_tuning_jax import __version__
from prompt_tuning_jax.cli import output as streams
from prompt_tuning_jax.data.demonstrations import CHOICES, Wanted
from prompt_tuning_jax.errors import RunError, UserError, hide, nearest, short

FAILED = 1
USAGE = 2
INTERRUPTED = 130
_AGAIN = 0.01  # seconds


def _text(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuses at once what a file of the run could not hold at its end."""
    _readable(option.opts[-1], value or "")
    return value


_debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure."
)
_config = click.option(
    "--config",
    "config_path",
    metavar="FILE",
    callback=_text,
    help="A .py with get_config(), or a saved .json.",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 the run failed, 2 the command or its input is wrong, 75"
    " interrupted and saved, 130 interrupted, nothing to go on from.",
)
@click.version_option(__version__, prog_name="prompt-tuning")
def program() -> None:
    """Tailors a frozen language model to a task."""


@program.command(options_metavar="--config FILE --workdir DIR [--config.KEY=VALUE]... [OPTIONS]")
@_config
@click.option(
    "--workdir",
    metavar="DIR",
    callback=_text,
    help="Where the run is kept; typed again, it goes on.",
)
@click.option("--fresh", is_flag=True, help="Start over in a workdir that holds a run.")
@click.option(
    "--json", "as_json", is_flag=True, help="Report as JSON on stdout, the rest on stderr."
)
@click.option(
    "--dry_run",
    "--dry-run",
    "rehearsed",
    is_flag=True,
    help="Show the data, an example, memory and time; train and write nothing.",
)
@_debug
@click.pass_obj
def train(
    overrides: list[str],
    config_path: str | None,
    workdir: str | None,
    fresh: bool,
    as_json: bool,
    rehearsed: bool,
) -> int:
    """Trains an adaptation, evaluates it and writes the report."""
    from prompt_tuning_jax.config import load

    if rehearsed and config_path is not None:
        return _rehearse(load(config_path, overrides), workdir, fresh, as_json)
    if config_path is None or not workdir:
        raise UserError("train needs both --config FILE and --workdir DIR")
    config = load(config_path, overrides)
    commands = _commands()

    if not as_json:
        return commands.train(config, workdir, fresh, sys.argv)
    with contextlib.redirect_stdout(sys.stderr):
        status = commands.train(config, workdir, fresh, sys.argv)
    report = os.path.join(workdir, "report.json")
    if status == 0:
        with open(report, encoding="utf-8") as file:
            click.echo(file.read().rstrip())
    return status


def _rehearse(config: Any, workdir: str | None, fresh: bool, as_json: bool) -> int:
    commands = _commands()
    from prompt_tuning_jax.cli import dry_run

    if as_json:
        with contextlib.redirect_stdout(sys.stderr):
            found = commands.rehearse(config, workdir, fresh)
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        found = commands.rehearse(config, workdir, fresh)
        click.echo("\n".join(["", *dry_run.lines(found)]))
    return 0


@program.command(
    options_metavar="[--artifact DIR | --prompt TEXT | --prompts FILE] [--config.KEY=VALUE]..."
    " [OPTIONS]"
)
@click.option(
    "--artifact",
    metavar="DIR",
    callback=_text,
    help="The artifact of a run; it brings its own config.",
)
@click.option(
    "--prompt",
    metavar="TEXT",
    callback=_text,
    help="A written template, as 'Headline: {text}\\nTopic:'.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    callback=_text,
    help="Templates, one a line, or a JSON list in a .json: ranked on validation, the best is"
    " scored.",
)
@click.option(
    "--demonstrations",
    type=click.IntRange(min=1),
    metavar="K",
    help="Put K answered examples of the training split in front, or as many as fit.",
)
@click.option(
    "--demonstrations_choice",
    metavar="HOW",
    help="balanced (the labels in turn, the default) or random.",
)
@click.option(
    "--demonstrations_seed", type=click.IntRange(min=0), metavar="N", help="0 unless given."
)
@_config
@click.option(
    "--split", help="train, validation, test or a part, as 'test[:100]'; config.task.test if none."
)
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
@_debug
@click.pass_obj
def evaluate(
    overrides: list[str],
    artifact: str | None,
    prompt: str | None,
    prompts: str | None,
    demonstrations: int | None,
    demonstrations_choice: str | None,
    demonstrations_seed: int | None,
    config_path: str | None,
    split: str | None,
    as_json: bool,
) -> None:
    """Scores an artifact, written prompts, or the task's template alone on a split."""
    from prompt_tuning_jax.config import load

    given = {"--artifact DIR": artifact, "--prompt TEXT": prompt, "--prompts FILE": prompts}
    _at_most_one(given)
    wanted = _wanted(demonstrations, demonstrations_choice, demonstrations_seed, artifact)
    if artifact is not None and overrides and config_path is None:
        raise UserError(
            f"the artifact {artifact!r} brings its own config: give --config FILE"
            f" for {overrides[0]!r} to change"
        )
    alone = artifact is not None and config_path is None
    config = None if alone else load(config_path, overrides)
    commands = _commands()

    with contextlib.redirect_stdout(sys.stderr):
        if prompts is None:
            result = commands.evaluate(config, artifact, prompt, split, wanted)
        else:
            result = commands.rank(config, prompts, split, wanted)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    if "candidates" in result:
        from prompt_tuning_jax.cli import written_prompts as written

        written.table(result.pop("candidates"))
        click.echo()
    click.echo("\n".join(f"{name}: {value}" for name, value in result.items()))


@program.command(options_metavar="--artifact DIR [--config.generation.KEY=VALUE]... [OPTIONS]")
@click.argument("lines", metavar="[FILE]", type=click.File("rb"), default="-")
@click.option("--artifact", metavar="DIR", callback=_text, help="The artifact of a run.")
@click.option(
    "--jsonl/--lines",
    "as_json",
    default=None,
    help="Whether a line is a JSON object with the template's fields by name, or the text of its"
    " only field. Unless given, a FILE's name says it: .jsonl are objects, .csv and .tsv rows of"
    " cells under the names of their columns, all else texts.",
)
@click.option(
    "--output",
    metavar="FILE",
    callback=_text,
    help="Where to write, whole or not at all; else stdout.",
)
@_debug
@click.pass_obj
def predict(
    overrides: list[str],
    lines: BinaryIO,
    artifact: str | None,
    as_json: bool | None,
    output: str | None,
) -> None:
    """Answers each line of FILE or stdin with a JSON line: label and probabilities, or for a task
    with a target the text."""
    if not artifact:
        raise UserError("predict needs --artifact DIR")
    for word in overrides:
        if not word.startswith("--config.generation."):
            raise UserError(
                f"predict takes no {word!r}: the artifact brings its own config, of which only"
                " --config.generation.KEY can be another"
            )
    with streams.output(output) as stream:
        commands = _commands()

        for row in commands.predict(artifact, lines, as_json, overrides):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            if output is None:
                stream.flush()


@program.command("list", options_metavar="[OPTIONS]")
@click.argument("kind", metavar="[configs|models|methods]", required=False)
@click.option("--json", "as_json", is_flag=True, help="The list as JSON on stdout.")
@_debug
@click.pass_obj
def list_(overrides: list[str], kind: str | None, as_json: bool) -> None:
    """Lists configs, models and methods, with what to expect of each."""
    from prompt_tuning_jax.cli import listing as catalogue

    _no_overrides("list", overrides)
    if kind is not None and kind not in catalogue.LISTED:
        known = ", ".join(catalogue.LISTED)
        raise UserError(
            f"list takes one of {known} or nothing, not {kind!r}{nearest(kind, catalogue.LISTED)}"
        )
    kinds = list(catalogue.LISTED) if kind is None else [kind]
    if as_json:
        found = {name: catalogue.LISTED[name]() for name in kinds}
        click.echo(_json(found if kind is None else found[kind]))
        return
    for name in kinds:
        if kind is None:
            click.echo(f"{name.upper()}\n")
        click.echo(f"{catalogue.text(name)}\n\n{catalogue.NEXT[name]}")
        if name != kinds[-1]:
            click.echo()


@program.command(options_metavar="[OPTIONS]")
@click.argument("config", metavar="CONFIG")
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@_debug
@click.pass_obj
def copy(overrides: list[str], config: str, file: str, force: bool) -> None:
    """Copies a config of `list configs` to FILE, to be edited."""
    from prompt_tuning_jax.cli import listing as catalogue

    _no_overrides("copy", overrides)
    path = str(catalogue.copy(config, file, force))
    workdir = os.path.join("runs", os.path.splitext(os.path.basename(path))[0])
    words = ["prompt-tuning", "train", "--config", path, "--workdir", workdir]
    click.echo(f"next: {shlex.join(words)}")


@program.command(options_metavar="[OPTIONS]")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON on stdout.")
@_debug
@click.pass_obj
def env(overrides: list[str], as_json: bool) -> None:
    """Shows versions, devices, settings and caches, as a bug report needs them."""
    from prompt_tuning_jax.run import environment

    _no_overrides("env", overrides)
    with contextlib.redirect_stdout(sys.stderr):
        facts = environment.describe() | {"caches": environment.caches()}
    click.echo(_json(facts) if as_json else "\n".join(environment.lines(facts)))


def run(arguments: list[str]) -> int:
    """Runs one command line.

    Returns:
        The exit status, as --help has it.
    """
    try:
        overrides, words = _split(arguments)
        with program.make_context("prompt-tuning", words or ["--help"], obj=overrides) as context:
            return program.invoke(context) or 0
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except (RunError, UserError, click.ClickException) as error:
        if "--debug" in arguments:
            click.echo(hide(traceback.format_exc()), err=True)
        wrong = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {hide(wrong)}", err=True)
        return FAILED if isinstance(error, RunError) else USAGE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal is closed
            click.echo("interrupted", err=True)
        return INTERRUPTED


def main() -> None:
    """Runs the console script: a failure is one line, and a closed stdout is none.

    Where stdout takes no more, the status is 1 for what prints its result: `train` has files too.
    """
    if "--debug" not in sys.argv:
        sys.excepthook = _one_line
    sys.unraisablehook = _heard
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores the second
            # As Ctrl-C, so that nothing half-written stays; the loop of a run saves instead.
            signal.signal(number, signal.default_int_handler)
    # What was closed before the program began is None, which cannot be written to or read.
    sys.stdout, sys.stderr, sys.stdin = (
        open(os.devnull, mode, encoding="utf-8") if stream is None else stream
        for stream, mode in ((sys.stdout, "w"), (sys.stderr, "w"), (sys.stdin, "r"))
    )
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends: give it a place where that succeeds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    except OSError as error:
        if not streams.refuses(sys.stdout):
            raise
        streams.silence(error)
        status = FAILED
    sys.exit(status)


def _commands() -> Any:
    """What most commands need, imported whole: Ctrl-C and its like, which numpy and jax crash on
    in the middle of it, wait for its second or two."""
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        from prompt_tuning_jax.cli import commands
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return commands


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Parts the overrides from the words that click knows, and refuses a mistyped command."""
    overrides = [word for word in arguments if word.startswith("--config.")]
    words = [word for word in arguments if not word.startswith("--config.")]
    for word in overrides:
        if "=" not in word:
            raise UserError(f"{word!r} has no value: write {word}=VALUE as one word")
        _readable("an override", word)
    if words and not words[0].startswith("-") and words[0] not in program.commands:
        known = ", ".join(program.commands)
        hint = nearest(words[0], program.commands)
        raise UserError(f"{words[0]!r} is not a command{hint}: there are {known}")
    return overrides, words


def _readable(what: str, text: str) -> None:
    """Refuses what was typed in another encoding, which no tokenizer and no file could take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not UTF-8 at character {error.start + 1}: {short(text, 200)}; type it in a"
            " terminal that is"
        ) from error


def _at_most_one(given: dict[str, str | None]) -> None:
    """Refuses options that exclude each other, by how they are written."""
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"evaluate takes {' or '.join(chosen)}, not both")


def _wanted(
    count: int | None, choice: str | None, seed: int | None, artifact: str | None
) -> Wanted | None:
    """What the options about demonstrations ask for; None for none."""
    if count is None:
        options = {"--demonstrations_choice": choice, "--demonstrations_seed": seed}
        for option, value in options.items():
            if value is not None:
                raise UserError(f"{option} is {value!r} without --demonstrations K: give both")
        return None
    if artifact is not None:
        raise UserError("an artifact was trained without --demonstrations: evaluate it without")
    wanted = Wanted(count, choice or CHOICES[0], seed or 0)
    if wanted.choice not in CHOICES:
        raise UserError(
            f"--demonstrations_choice is {choice!r}, expected {' or '.join(CHOICES)}"
            f"{nearest(wanted.choice, CHOICES)}"
        )
    return wanted


def _no_overrides(command: str, overrides: list[str]) -> None:
    if overrides:
        raise UserError(f"{command} takes no {overrides[0]!r}: it reads no config")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = next(iter(str(error).strip().splitlines()), "")
    click.echo(f"error: {kind.__name__}: {hide(text)} (--debug shows the traceback)", err=True)


def _heard(fault: Any) -> None:
    """Ctrl-C, or SIGTERM, comes again a moment later where it met a callback whose exceptions lead
    nowhere, as jax's of the garbage collector, and would be lost."""
    if fault.exc_type is KeyboardInterrupt:
        # In the background Ctrl-C is ignored.
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        again = signal.SIGTERM if ignored else signal.SIGINT
        threading.Timer(_AGAIN, _thread.interrupt_main, [again]).start()
    else:
        sys.__unraisablehook__(fault)


if __name__ == "__main__":
    main()
