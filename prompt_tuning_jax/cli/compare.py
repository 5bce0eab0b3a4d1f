"""The command `compare`: every way to adapt a model, in one table."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning_jax import compare, search, train
from prompt_tuning_jax.cli import dry_run
from prompt_tuning_jax.cli.evaluate import check_prompts, warn_of_overlap, warn_of_seen
from prompt_tuning_jax.cli.machine import describe_machine, enough_memory, load_model
from prompt_tuning_jax.cli.show import print_table, say
from prompt_tuning_jax.cli.train import stopped, type_again, writing
from prompt_tuning_jax.compare import Compared
from prompt_tuning_jax.data.task import make_task, select_records
from prompt_tuning_jax.errors import RunError
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.metrics import paired_difference
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.run.comparison import cells, write_comparison
from prompt_tuning_jax.run.environment import record_start
from prompt_tuning_jax.run.folder import CONFIG, METRICS, check_local, claim
from prompt_tuning_jax.run.report import duration


def compare_and_report(config, folder: str, fresh: bool, command: Sequence[str]) -> int:
    """Runs every row and writes the report; returns the exit status. A comparison that was stopped
    goes on in its folder, unless `fresh` starts its rows over."""
    with claim(folder, "compare") as root, record_start(root, command, say) as start:
        _check_texts(config, root)
        lm = load_model(config)
        say(machine := describe_machine(lm))
        _, again = type_again(command)
        try:
            with writing(root, again):
                results, failed = compare.compare(lm, config, root, say, fresh, enough_memory)
                facts = {"command": f"`{again}`", "machine": machine, "model": lm.name}
                facts |= {"task": config.task.name, "time": _time(results)}
                facts |= {"failed": ", ".join(failed)} if failed else {}
                rows = summarize(results, lm)
                paths = write_comparison(root, rows, facts, [*METHODS]) if rows else []
            if rows:
                say("")
                print_table(cells(rows), texts=["row"])
                say(f"\n{', '.join(map(str, paths))}")
        except KeyboardInterrupt as stop:
            if not (root / CONFIG).exists():
                raise
            return stopped(all(stop.args), again, start)
        if failed:
            advice = "correct it in its row, as 'NAME: microbatches=2', delete the row's folder"
            advice += f" and type {again}"
            raise RunError(f"{facts['failed']} failed, as said above: {advice}")
        start["outcome"] = "finished"
    return 0


def _check_texts(config, folder: Path) -> None:
    """Raises a UserError for a written prompt that does not fit: before the model is loaded."""
    for row in compare.read_rows(config):
        own = compare.make_run(config, folder, row, 0).config
        named = dict.fromkeys(own.prompts, "config.prompts")
        named |= {own.teacher.prompt: "config.teacher.prompt"} if own.teacher.prompt else {}
        if named:
            check_prompts(make_task(own.task), named, own.task.test)
    task = make_task(config.task)
    warn_of_seen(task, config, labelled=False)
    if own := config.calibration.split:
        warn_of_overlap(task, select_records(task, own, False), config.task.test, "calibrate")


def _time(results: Sequence[Compared]) -> str:
    """Says how long all runs took together, over all starts of the command."""
    seconds = sum(found["seconds"] for each in results for found in each.found)
    for each in results:
        chosen = each.runs[0].config.learning_rate
        seconds += sum(one["seconds"] for rate, one in each.tried if one and rate != chosen)
    return f"{duration(seconds)} to train, search and choose, without compiling and testing"


def summarize(results: Sequence[Compared], lm: LanguageModel) -> list[dict[str, Any]]:
    """Returns the numbers of each row of the report by name, without those that it does not have. A
    row that was calibrated has another one behind it."""
    total = train.parameter_count(lm.params)
    rows, values = [], []
    for each in results:
        for name in ("values", "calibrated"):
            if name in each.test[0]:
                values.append(np.array([test[name] for test in each.test], np.float64))
                rows.append(_summary(each, values[-1].mean(axis=1), total, name == "calibrated"))
    reference = next((place for place, row in enumerate(rows) if row["parameters"]), None)
    for place, row in enumerate(rows):
        if reference is not None and place != reference:
            found = paired_difference(values[place], values[reference])
            row |= dict(zip(("difference", "low", "high"), found, strict=True))
    return rows


def _summary(each: Compared, by_seed: np.ndarray, total: int, calibrated: bool) -> dict[str, Any]:
    first, test = each.found[0], each.test[0]
    row = {
        "name": each.row.name + ", calibrated" * calibrated,
        "examples_per_class": each.examples,
        "metric": "accuracy" if "accuracy" in first else "log-probability",
        "mean": float(by_seed.mean()),
        "deviation": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "seeds": [run.config.seed for run in each.runs],
        "first_seed": float(by_seed[0]),  # the number of the command
        "by_seed": by_seed.tolist(),
        "parameters": first["parameters"],
        "share": first["parameters"] / total,
        "examples": first["examples"] + (test["calibrated_by"] if calibrated else 0),
        "command": _command(each, calibrated),
    }
    if not calibrated:
        # The same for all seeds.
        row |= {key: first[key] for key in ("train_examples", "memory", "bytes") if key in first}
        row["bytes_of_100_tasks"] = first["model_bytes"] + 100 * first["bytes"]
        for name in ("loss", "accuracy", "seconds", "step_seconds", "near_best_seconds"):
            if name in first:
                key = f"validation_{name}" if name in ("loss", "accuracy") else name
                row[key] = float(np.mean([found[name] for found in each.found]))
        if "forgetting" in test:
            row["forgetting"] = float(np.mean([one["forgetting"] for one in each.test]))
    if each.row.is_trained:
        row["method"] = each.runs[0].config.method.name
        row["learning_rate"] = each.runs[0].config.learning_rate
        row["metrics"] = str(each.runs[0].folder / METRICS)
        row["tried"] = [
            {"rate": rate} | {name: one[name] for name in ("loss", "accuracy") if name in one}
            for rate, one in each.tried
        ]
    return row


def _command(each: Compared, calibrated: bool) -> str:
    """Returns a command that gives the first seed's number again."""
    config, found = str(each.runs[0].folder / CONFIG), each.found[0]
    if each.row.is_trained:
        again = ["--workdir", str(Path("again", *each.runs[0].folder.parts[-3:]))]
        return shlex.join(["prompt-tuning", "train", "--config", config, *again])
    words = ["prompt-tuning", "evaluate", "--config", config]
    for name in ("prompt", "demonstrations"):
        words += [f"--{name}", str(found[name])] if name in found else []
    words += ["--calibrate", each.test[0]["calibration"]] if calibrated else []
    return shlex.join(words)


def rehearse(config, folder: str | None, fresh: bool) -> dict[str, Any]:
    """Returns how long the rows take, by a few steps of each; writes nothing."""
    check_local(folder or "")
    _check_texts(config, root := Path(folder or ""))
    lm = load_model(config)
    say(describe_machine(lm))
    found: dict[str, Any] = {}
    for row in compare.check(lm, config, root, say, fresh or not folder):
        run = compare.make_run(config, root, row, config.compare.seeds[0])
        if not row.is_trained and row.name != "searched prompt":
            continue
        say(f"\n== {row.name}")
        with enough_memory(run.config):
            if not row.is_trained:
                took = search.rehearse(lm, make_task(run.config.task), run.config, say)
                found[row.name] = {"runs": 1, "seconds": took}
                continue
            plan = dry_run.measure(lm, make_task(run.config.task), run.config, say)
        scored = plan["seconds"]["validation"] / plan["examples"]["validation"]
        is_repeated = row.name in (config.compare.curve or [row.name])
        few = is_repeated * len([count for count in config.compare.examples_per_class if count])
        tested = len(config.compare.seeds) * (1 + few)
        part = compare.trial_steps(row, run.config) / run.config.steps or 1
        others = max(len(row.rates) - 1, 0)
        runs = others * part + tested
        seconds = runs * (plan["seconds"]["run"] + plan["seconds"]["compile"])
        seconds += (others + (part < 1) + tested) * plan["seconds"]["teacher"]
        seconds += tested * plan["examples"]["test"] * scored
        found[row.name] = {"runs": runs, "seconds": seconds}
    return found


def print_plan(found: dict[str, Any]) -> None:
    """Prints what `rehearse` found, for people."""
    rows = [
        {"row": name, "runs": f"{each['runs']:g}", "time": duration(each["seconds"])}
        for name, each in found.items()
    ]
    runs, total = (sum(each[key] for each in found.values()) for key in ("runs", "seconds"))
    rows.append({"row": "all", "runs": f"{runs:g}", "time": f"about {duration(total)}"})
    print_table(rows, texts=["row"])
    print("finished runs are counted too; rows that only score are not")
