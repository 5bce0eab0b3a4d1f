"""The command `search`: searches, scores the best prompt on the test split, writes the report."""

from collections.abc import Sequence

from prompt_tuning_jax import api, search
from prompt_tuning_jax.cli.machine import describe_machine, load_model
from prompt_tuning_jax.cli.show import print_table, say
from prompt_tuning_jax.cli.train import SAVED, type_again, writing
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.run.artifact import write_card
from prompt_tuning_jax.run.card import predict_command
from prompt_tuning_jax.run.environment import record_start
from prompt_tuning_jax.run.folder import ARTIFACT, CONFIG, REPORT, claim, tie_to_config
from prompt_tuning_jax.run.report import Row, cells, write_report


def search_and_report(config, folder: str, fresh: bool, command: Sequence[str]) -> int:
    """Searches, evaluates and writes the report; returns the exit status."""
    program, again = type_again(command)
    with claim(folder, "search") as run, record_start(run, command, say) as start:
        if not fresh and (run / CONFIG).exists():
            tie_to_config(run, config)
        task, lm = make_task(config.task), load_model(config)
        say(describe_machine(lm))
        found, kept = search.run(lm, task, config, run, say, fresh), run / ARTIFACT
        with writing(kept, again):
            api.save(found.artifact, kept)
        say(f"the best on {config.task.validation} so far: {found.prompt!r}")
        if not found.finished:
            start["outcome"] = "stopped"
            say(f"saved in {kept}; this goes on from here:\n  {again}")
            return SAVED
        start_text, how = found.history[0]["template"], {"max_length": config.task.max_length}
        texts = ("start", start_text, 0.0), ("searched prompt", found.template, found.seconds)
        rows = []
        for name, text, took in texts:
            scored = api.evaluate(lm, task, split=config.task.test, prompt=text, log=say, **how)
            rows.append(Row(name, scored["accuracy"], 0, len(text.encode()), took))
        print_table(cells(rows), texts=["name"])
        with writing(run / REPORT, again):
            write_report(run / REPORT, rows)
            write_card(found.artifact, kept, rows)
        start |= {"outcome": "finished", "seconds": {row.name: row.seconds for row in rows}}
        say(f"next:   {predict_command(found.template, program, str(kept))}")
    return 0
