"""The command `search`: searches, scores the best prompt on the test split, writes the report."""

from collections.abc import Sequence

from prompt_tuning_jax import api, search
from prompt_tuning_jax.cli.show import print_table, say
from prompt_tuning_jax.cli.train import prepare, stopped, type_again, writing
from prompt_tuning_jax.run.artifact import write_card
from prompt_tuning_jax.run.card import predict_command
from prompt_tuning_jax.run.environment import record_start
from prompt_tuning_jax.run.folder import ARTIFACT, REPORT, claim
from prompt_tuning_jax.run.report import Row, cells, write_report


def search_and_report(config, folder: str, fresh: bool, command: Sequence[str]) -> int:
    """Searches, evaluates and writes the report; returns the exit status."""
    program, again = type_again(command)
    with claim(folder, "search") as run, record_start(run, command, say) as start:
        lm, task = prepare(config, run, fresh, config.search.template or config.task.template)
        found, kept = search.run(lm, task, config, run, say, fresh), run / ARTIFACT
        try:
            with writing(kept, again):
                api.save(found.artifact, kept)
            say(f"the best on {config.task.validation} so far: {found.template!r}")
            if not found.finished:
                return stopped(found.saved, again, start)
            start_text, how = found.history[0]["template"], {"max_length": config.task.max_length}
            texts = ("start", start_text, 0.0), ("searched prompt", found.template, found.seconds)
            rows = []
            for name, text, took in texts:
                scored = api.evaluate(lm, task, split=config.task.test, prompt=text, log=say, **how)
                rows.append(Row(name, scored["accuracy"], 0, len(text.encode()), took))
                if count := scored.get("shortened"):
                    say(f"warning: {name}: {count} examples were too long and lost their end")
            print_table(cells(rows), texts=["name"])
            with writing(run / REPORT, again):
                write_report(run / REPORT, rows)
                write_card(found.artifact, kept, rows)
        except KeyboardInterrupt:
            return stopped(found.saved, again, start)
        start |= {"outcome": "finished", "seconds": {row.name: row.seconds for row in rows}}
        say(f"next:   {predict_command(found.template, program, str(kept))}")
    return 0
