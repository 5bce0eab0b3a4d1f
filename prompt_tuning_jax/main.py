"""The command `prompt-tuning`: parses a command line, then imports what the command needs."""

import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, TextIO

import click

from prompt_tuning_jax import __version__
from prompt_tuning_jax.errors import RunError, UserError, nearest

FAILED = 1
USAGE = 2
INTERRUPTED = 130

_debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure."
)
_config = click.option(
    "--config", "config_path", metavar="FILE", help="A .py with get_config(), or a saved .json."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prompt-tuning")
def program() -> None:
    """Tailors a frozen language model to a task."""


@program.command(options_metavar="--config FILE --workdir DIR [--config.KEY=VALUE]... [OPTIONS]")
@_config
@click.option("--workdir", metavar="DIR", help="Where the run is kept; typed again, it goes on.")
@click.option("--fresh", is_flag=True, help="Start over in a workdir that holds a run.")
@click.option(
    "--json", "as_json", is_flag=True, help="Report as JSON on stdout, the rest on stderr."
)
@_debug
@click.pass_obj
def train(
    overrides: list[str], config_path: str | None, workdir: str | None, fresh: bool, as_json: bool
) -> int:
    """Trains an adaptation, evaluates it and writes the report."""
    from prompt_tuning_jax.config import load

    if config_path is None or workdir is None:
        raise UserError("train needs both --config FILE and --workdir DIR")
    config = load(config_path, overrides)
    from prompt_tuning_jax import commands

    if not as_json:
        return commands.train(config, workdir, fresh, sys.argv)
    with contextlib.redirect_stdout(sys.stderr):
        status = commands.train(config, workdir, fresh, sys.argv)
    report = os.path.join(workdir, "report.json")
    if status == 0:
        with open(report, encoding="utf-8") as file:
            click.echo(file.read().rstrip())
    return status


@program.command(
    options_metavar="[--artifact DIR | --prompt TEXT] [--config.KEY=VALUE]... [OPTIONS]"
)
@click.option("--artifact", metavar="DIR", help="The artifact of a run; it brings its own config.")
@click.option(
    "--prompt", metavar="TEXT", help="A written template, as 'Headline: {text}\\nTopic:'."
)
@_config
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
@_debug
@click.pass_obj
def evaluate(
    overrides: list[str],
    artifact: str | None,
    prompt: str | None,
    config_path: str | None,
    split: str,
    as_json: bool,
) -> None:
    """Scores an artifact, a written prompt, or the task's template alone on a split."""
    from prompt_tuning_jax.config import load

    if artifact is not None and prompt is not None:
        raise UserError("evaluate takes --artifact DIR or --prompt TEXT, not both")
    if artifact is not None and overrides and config_path is None:
        raise UserError(
            f"the artifact {artifact!r} brings its own config: give --config FILE"
            f" for {overrides[0]!r} to change"
        )
    alone = artifact is not None and config_path is None
    config = None if alone else load(config_path, overrides)
    from prompt_tuning_jax import commands

    with contextlib.redirect_stdout(sys.stderr):
        result = commands.evaluate(config, artifact, prompt, split)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in result.items()))


@program.command(options_metavar="--artifact DIR [--config.generation.KEY=VALUE]... [OPTIONS]")
@click.argument("lines", metavar="[FILE]", type=click.File("rb"), default="-")
@click.option("--artifact", metavar="DIR", help="The artifact of a run.")
@click.option(
    "--jsonl/--lines",
    "as_json",
    default=None,
    help="Whether a line is a JSON object with the template's fields by name, or the text of its"
    " only field. Unless given, it is one in a file that ends in .jsonl or .ndjson.",
)
@click.option("--output", metavar="FILE", help="Where to write, whole or not at all; else stdout.")
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
    if artifact is None:
        raise UserError("predict needs --artifact DIR")
    for word in overrides:
        if not word.startswith("--config.generation."):
            raise UserError(
                f"predict takes no {word!r}: the artifact brings its own config, of which only"
                " --config.generation.KEY can be another"
            )
    if as_json is None:
        as_json = _name(lines).lower().endswith((".jsonl", ".ndjson"))
    with _output(output) as stream:
        from prompt_tuning_jax import commands

        for row in commands.predict(artifact, _decoded(lines), as_json, overrides):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            if output is None:
                stream.flush()


def run(arguments: list[str]) -> int:
    """Runs one command line.

    Returns:
        The exit status: 0 done, 1 the run failed, 2 wrong usage or input, 75 interrupted and
        saved, 130 interrupted.
    """
    try:
        overrides, words = _split(arguments)
        with program.make_context("prompt-tuning", words or ["--help"], obj=overrides) as context:
            return program.invoke(context) or 0
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except (RunError, UserError, click.ClickException) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        wrong = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {wrong}", err=True)
        return FAILED if isinstance(error, RunError) else USAGE
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return INTERRUPTED


def main() -> None:
    """Runs the console script: a failure is one line, and a closed stdout is none."""
    if "--debug" not in sys.argv:
        sys.excepthook = _one_line
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends: give it a place where that succeeds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Parts the overrides from the words that click knows, and refuses a mistyped command."""
    overrides = [word for word in arguments if word.startswith("--config.")]
    words = [word for word in arguments if not word.startswith("--config.")]
    for word in overrides:
        if "=" not in word:
            raise UserError(f"{word!r} has no value: write {word}=VALUE as one word")
    if words and not words[0].startswith("-") and words[0] not in program.commands:
        known = ", ".join(program.commands)
        hint = nearest(words[0], program.commands)
        raise UserError(f"{words[0]!r} is not a command{hint}: there are {known}")
    return overrides, words


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = next(iter(str(error).strip().splitlines()), "")
    click.echo(f"error: {kind.__name__}: {text} (--debug shows the traceback)", err=True)


def _name(lines: BinaryIO) -> str:
    """The name of a file; what stands in for stdin may have none."""
    return getattr(lines, "name", "<stdin>")


def _decoded(lines: BinaryIO) -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each line."""
    for number, line in enumerate(lines, 1):
        place = f"{_name(lines)}, line {number}"
        try:
            yield place, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: not UTF-8 at byte {error.start}: convert the file"
            ) from error


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Yields stdout, or a file that takes its name when everything has been written."""
    if path is None:
        yield sys.stdout
        return
    try:
        place = tempfile.TemporaryDirectory(prefix=".", dir=os.path.dirname(path) or ".")
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error
    with place as folder:
        partial = os.path.join(folder, "partial")
        with open(partial, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(partial, path)


if __name__ == "__main__":
    main()
