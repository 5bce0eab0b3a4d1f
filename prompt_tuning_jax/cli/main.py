"""The command `prompt-tuning`: reads a command line, then imports what the command needs."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from prompt_tuning_jax import __version__
from prompt_tuning_jax.cli.listing import collect, copy_config, find_config, print_lists
from prompt_tuning_jax.cli.words import at_most_one, check_new, key_named, split_overrides
from prompt_tuning_jax.errors import RunError, UserError, hide, quote, reason_of

FAILED = 1
USAGE = 2
INTERRUPTED = 130

# Where a model is, how it is divided and how exact it is depends on the machine.
_OF_MACHINE = (
    "--config.parallel.",
    *(f"--config.model.{name}=" for name in ("path", "dtype", "quantize")),
)
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_config = click.option(
    "--config",
    metavar="FILE",
    help="A .py file with get_config(), a saved .json, or a name of `list configs`.",
    # A file has an ending; a word without one can only be a name.
    callback=lambda _, option, given: find_config(given) if (given or "").isidentifier() else given,
)
_workdir = click.option(
    "--workdir",
    metavar="DIR",
    help="The run's folder. Type the same command again to go on.",
)
_fresh = click.option("--fresh", is_flag=True, help="Delete the workdir's run and start over.")
_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, all else on stderr.")
_dry_run = click.option(
    "--dry_run", "--dry-run", is_flag=True, help="Show what a run would need; write nothing."
)
_topology = click.option(
    "--topology", metavar="SLICE", help="With --dry_run: for a TPU slice, such as v5e:2x4."
)
_artifact = click.option("--artifact", metavar="DIR", help="A run's folder, or its artifact.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 the run failed, 2 the command or its input is wrong, 75"
    " interrupted and saved, 130 interrupted and nothing saved.",
)
@click.version_option(__version__, prog_name="prompt-tuning")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def program(debug: bool) -> None:
    """Adapts a frozen language model to a task."""


def _works_in_folder(*options: Callable) -> Callable:
    """Makes a command. `imports` returns the function that works in a folder and writes
    `report.json` there, and the module with the functions of --dry_run, or None."""

    def add(imports: Callable[[], tuple[Callable[..., int], Any]]) -> None:
        def work(
            overrides: list[str],
            config: str | None,
            workdir: str | None,
            fresh: bool,
            as_json: bool,
            dry_run: bool = False,
            topology: str | None = None,
        ) -> int:
            if topology is not None and not dry_run:
                raise UserError("--topology is for --dry_run: give both, and nothing is trained")
            if config is None or not (workdir or dry_run):
                raise UserError(f"{name} needs both --config FILE and --workdir DIR")
            with _uninterrupted():
                from prompt_tuning_jax.config import load

                run, plan = imports()
            settings = load(config, overrides)
            if topology is not None:
                from prompt_tuning_jax.cli.topology import print_topology, rehearse_on

                _print(as_json, print_topology, rehearse_on, settings, topology, is_quiet=as_json)
                return 0
            if dry_run:
                given = settings, workdir, fresh
                # As the run itself: `compare` joins no others.
                with _joined() if name == "train" else contextlib.nullcontext():
                    _print(as_json, plan.print_plan, plan.rehearse, *given, is_quiet=as_json)
                return 0
            with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
                status = run(settings, str(workdir), fresh, sys.argv)
                from jax import process_index  # which the run has imported
            report = Path(str(workdir), "report.json")
            if as_json and status == 0 and report.exists() and process_index() == 0:
                click.echo(report.read_text(encoding="utf-8").rstrip())
            return status

        name, added = imports.__name__, click.pass_obj(work)
        for option in (*options, _json, _fresh, _workdir, _config):
            added = option(added)
        needs = "--config FILE --workdir DIR [--config.KEY=VALUE]... [OPTIONS]"
        program.command(name, help=imports.__doc__, options_metavar=needs)(added)

    return add


@_works_in_folder(_topology, _dry_run)
def train():
    """Trains an adaptation, evaluates it and writes the report."""
    from prompt_tuning_jax.cli import dry_run
    from prompt_tuning_jax.cli.train import train_and_report

    return train_and_report, dry_run


@_works_in_folder(_dry_run)
def compare():
    """Compares ways to adapt a model: writes a report with a table and pictures."""
    from prompt_tuning_jax.cli import compare

    return compare.compare_and_report, compare


@_works_in_folder()
def search():
    """Searches for a written prompt, as config.search says, and keeps the best as an artifact."""
    from prompt_tuning_jax.cli.search import search_and_report

    return search_and_report, None


@program.command(
    options_metavar="[--artifact DIR | --prompt TEXT | --prompts FILE] [--config.KEY=VALUE]..."
    " [OPTIONS]"
)
@_artifact
@click.option(
    "--prompt", metavar="TEXT", help="A written template, as 'Headline: {text}\\nTopic:'."
)
@click.option(
    "--prompts",
    metavar="FILE",
    help="Templates, one on each line, or a JSON list in a .json file. They are ranked on the"
    " validation split, and the best one is scored.",
)
@click.option(
    "--demonstrations",
    metavar="K",
    help="Put K answered training examples in front of each example, or as many as fit. Short for"
    " --config.demonstrations.number=K.",
)
@_config
@click.option(
    "--split",
    help="train, validation, test or a part, as 'test[:100]'. The default is config.task.test.",
)
@click.option(
    "--calibrate",
    type=click.Choice(("labels", "texts")),
    help="Calibrate the labels' scores with validation records: their labels, or their texts.",
)
@click.option("--out", metavar="DIR", help="Keep the prompt or the calibration as an artifact.")
@_json
@click.pass_obj
def evaluate(
    overrides: list[str],
    artifact: str | None,
    prompt: str | None,
    prompts: str | None,
    demonstrations: str | None,
    config: str | None,
    split: str | None,
    calibrate: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Scores an artifact, written prompts, or the model alone on a split.

    An artifact brings its own config, unless --config gives another.
    """
    at_most_one({"--artifact DIR": artifact, "--prompt TEXT": prompt, "--prompts FILE": prompts})
    at_most_one({"--artifact DIR": artifact, "--demonstrations K": demonstrations})
    if out and not (prompt or prompts or calibrate):
        advice = "give --prompt, --prompts or --calibrate"
        raise UserError(f"--out keeps a prompt or calibration: {advice}")
    check_new(out)
    is_own = artifact is not None and config is None
    if is_own and (others := [word for word in overrides if not word.startswith(_OF_MACHINE)]):
        advice = f"to use {others[0]!r}, give --config FILE too"
        raise UserError(f"the artifact {artifact!r} brings its own config: {advice}")
    if demonstrations is not None:
        overrides = [*overrides, f"--config.demonstrations.number={demonstrations}"]
    with _uninterrupted():
        from prompt_tuning_jax.cli.evaluate import evaluate_split, print_result
        from prompt_tuning_jax.config import load
    settings = None if is_own else load(config, overrides)
    with _joined() as first:
        given = settings, artifact, prompt, prompts, split, calibrate, out if first else None
        _print(as_json, print_result, evaluate_split, *given, overrides if is_own else ())


@program.command(options_metavar="--artifact DIR [--config.generation.KEY=VALUE]... [OPTIONS]")
@click.argument("given", metavar="[FILE | TEXT...]", nargs=-1)
@_artifact
@click.option(
    "--jsonl/--lines",
    "as_json",
    default=None,
    help="Each line is a JSON object with the template's fields by name, or the text of its only"
    " field. By default the name of FILE decides: .jsonl and .json hold objects, .csv, .tsv and"
    " .parquet hold tables with named columns, anything else holds texts.",
)
@click.option("--output", metavar="FILE", help="Write to FILE, whole or not at all.")
@click.pass_obj
def predict(
    overrides: list[str],
    given: tuple[str, ...],
    artifact: str | None,
    as_json: bool | None,
    output: str | None,
) -> None:
    """Answers each TEXT, or each record of FILE or stdin, with a JSON line: label and
    probabilities, or a text. It answers 256 records together, or generation.batch_size texts."""
    if not artifact:
        raise UserError("predict needs --artifact DIR")
    own = "--config.generation.", "--config.task.files.", "--config.seed="
    _check_words("predict", overrides, *own)
    with _uninterrupted():
        from prompt_tuning_jax.cli.predict import write_answers
    with _joined() as first:
        write_answers(artifact, given, as_json, output if first else None, overrides)


@program.command(options_metavar="--artifact DIR [OPTIONS]")
@_artifact
@click.option("--split", help="What is scored, as 'test[:100]'. By default a part of validation.")
@_json
@click.option("--out", metavar="DIR", help="Also write inspection.json and inspection.png there.")
@click.pass_obj
def inspect(
    overrides: list[str], artifact: str | None, split: str | None, as_json: bool, out: str | None
) -> None:
    """Shows what can be read from the virtual tokens of a soft prompt, or from a prefix."""
    if not artifact:
        raise UserError("inspect needs --artifact DIR")
    _check_words("inspect", overrides)
    check_new(out)
    with _uninterrupted():
        from prompt_tuning_jax.cli.inspect import inspect_artifact, print_inspection
    _print(as_json, print_inspection, inspect_artifact, artifact, split, out, overrides)


@program.command(options_metavar="--artifact DIR --to hf|peft|npy|hub:USER/NAME [PATH] [OPTIONS]")
@_artifact
@click.option(
    "--to",
    "kind",
    metavar="hf|peft|npy|hub:USER/NAME",
    help="hf: a folder of transformers, for what can be merged into the weights; peft: an adapter"
    " of PEFT; npy: the vectors of a soft prompt and of the text around it; hub:USER/NAME: the"
    " artifact itself, in a repository of that name on the Hugging Face hub.",
)
@click.argument("target", metavar="PATH", required=False)
@click.pass_obj
def export(
    overrides: list[str], artifact: str | None, kind: str | None, target: str | None
) -> None:
    """Writes an artifact for another program, or pushes it to the hub."""
    if kind and kind.startswith("hub:"):
        kind, target = (kind, "") if target else kind.split(":", 1)
    if not (artifact and kind and target):
        places = "--to hf|peft|npy and the PATH to write, or --to hub:USER/NAME"
        raise UserError(f"export needs --artifact DIR, {places}")
    _check_words("export", overrides)
    with _uninterrupted():
        from prompt_tuning_jax.cli.exchange import export_artifact
    export_artifact(artifact, kind, target, overrides)


@program.command("import", options_metavar="--from peft FOLDER --config FILE --out DIR [OPTIONS]")
@click.option("--from", "kind", metavar="peft", help="The program that wrote FOLDER.")
@click.argument("folder", required=False)
@_config
@click.option("--out", metavar="DIR", help="The artifact to write.")
@click.pass_obj
def import_(
    overrides: list[str], kind: str | None, folder: str | None, config: str | None, out: str | None
) -> None:
    """Makes an artifact from a PEFT adapter, for the task of a config."""
    if not (kind and folder and config and out):
        raise UserError("import needs --from peft FOLDER, --config FILE and --out DIR")
    check_new(out)
    with _uninterrupted():
        from prompt_tuning_jax.cli.exchange import import_adapter
        from prompt_tuning_jax.config import load
    import_adapter(load(config, overrides), kind, folder, out)


@program.command("list", options_metavar="[OPTIONS]")
@click.argument("kind", metavar="[configs|models|families|methods|tasks]", required=False)
@_json
def list_(kind: str | None, as_json: bool) -> None:
    """Lists configs, models, families of models, methods and kinds of tasks."""
    found = collect(kind)
    _print(as_json, print_lists, lambda: found[kind] if as_json and kind else found)


@program.command(options_metavar="[OPTIONS]")
@click.argument("config", metavar="CONFIG")
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def copy(config: str, file: str, force: bool) -> None:
    """Copies a config of `list configs` to FILE, to be edited."""
    path, command = copy_config(config, file, force)
    workdir = quote(os.path.join("runs", path.stem))
    click.echo(f"next: prompt-tuning {command} --config {quote(str(path))} --workdir {workdir}")


@program.command(options_metavar="[OPTIONS]")
@_json
def env(as_json: bool) -> None:
    """Shows versions, devices, settings and the cache, for a bug report."""
    from prompt_tuning_jax.cli.show import print_facts
    from prompt_tuning_jax.run import environment
    from prompt_tuning_jax.storage import cache_folder

    _print(as_json, print_facts, lambda: environment.describe() | {"cache": str(cache_folder())})


def run(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    try:
        overrides, words = split_overrides(arguments, program.commands)
        with program.make_context("prompt-tuning", words or ["--help"], obj=overrides) as context:
            return program.invoke(context) or 0
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except (RunError, UserError, click.ClickException) as error:
        if "--debug" in arguments:
            click.echo(hide(traceback.format_exc()), err=True)
        wrong = str(error)
        if isinstance(error, click.ClickException):
            wrong = key_named(error, arguments) or error.format_message()
        click.echo(f"error: {hide(wrong)}", err=True)
        return FAILED if isinstance(error, RunError) else USAGE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be closed
            click.echo("interrupted", err=True)
        return INTERRUPTED


def main() -> None:
    """Runs the program. A failure that `run` does not know is one line on stderr. A reader that
    closes stdout ends the program without a message."""
    if "--debug" not in sys.argv:
        sys.excepthook = _print_one_line
    sys.unraisablehook = _interrupt_again
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            # As Ctrl-C, so that nothing half-written stays. While a run trains, it saves instead.
            signal.signal(number, signal.default_int_handler)
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at its end, which has to succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status)


def _check_words(command: str, overrides: list[str], *more: str) -> None:
    """Raises a UserError for a key that a command with an artifact alone does not take."""
    known = (*more, *_OF_MACHINE)
    for word in overrides:
        if not word.startswith(known):
            keys = ", ".join(each.removeprefix("--config.").rstrip(".=") for each in known)
            own = "the artifact brings its own config, of which only these can be changed"
            raise UserError(f"{command} takes no {word!r}: {own}: {keys}")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and its like back while numpy and jax are imported: they can crash on it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _joined() -> Iterator[bool]:
    """Joins the other processes of a run, if there are any. Only the first one prints and writes:
    yields whether this is it."""
    with _uninterrupted():
        from prompt_tuning_jax.run.processes import join_processes
    with join_processes() as first, contextlib.ExitStack() as silent:
        if not first:
            nothing = silent.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silent.enter_context(contextlib.redirect_stdout(nothing))
            silent.enter_context(contextlib.redirect_stderr(nothing))
        yield first


def _print(as_json: bool, for_people: Callable, find: Callable, *given: Any, is_quiet=True) -> None:
    """Prints what a function finds in what is given, as JSON or for people. What it prints itself
    goes to stderr if `is_quiet`, so that stdout holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr if is_quiet else sys.stdout):
        found = find(*given)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        for_people(found)


def _print_one_line(kind: type[BaseException], error: BaseException, _: TracebackType | None):
    click.echo(f"error: {reason_of(error)} (--debug shows the traceback)", err=True)


def _interrupt_again(fault: Any) -> None:
    """Repeats a Ctrl-C that Python dropped, because it came while jax's callback of the garbage
    collector ran, as about one in twenty. A real signal, as a read of stdin waits for one."""
    if fault.exc_type is KeyboardInterrupt:
        stop = threading.main_thread().ident, signal.SIGTERM
        threading.Timer(0.1, signal.pthread_kill, stop).start()
    else:
        sys.__unraisablehook__(fault)


if __name__ == "__main__":
    main()
