"""Whole runs with secrets in the environment, none of which is shown or written anywhere."""

import tiny_runs
from made_up_secrets import SECRET, URL, VARIABLES
from whole_runs import PATIENCE

from prompt_tuning_jax.run import folder as workdir


def test_no_secret_is_shown_or_written(tmp_path):
    run, asked = tmp_path / "run", tmp_path / "asked.txt"
    asked.write_text("banks and funds 1\n")
    artifact = ["--artifact", str(run / workdir.ARTIFACT)]
    env = tiny_runs.environment(**VARIABLES)
    program, words = str(tiny_runs.world().program), tiny_runs.training(run, *tiny_runs.FEW)
    for status, command in [
        (0, ["env"]),
        (0, [*words, "--dry_run"]),
        (0, words),
        (0, ["evaluate", *artifact]),
        (0, ["predict", *artifact, str(asked)]),
        (2, [*words, f"--config.model.path={URL}"]),
    ]:
        process = tiny_runs.start([program, *command, "--debug"], env=env)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == status, output
        assert SECRET[3:] not in output
        assert ("Traceback" in output) == (status > 0)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {run / workdir.RUN, run / workdir.ARTIFACT / "README.md"} < {*written}
    assert [path for path in written if SECRET[3:].encode() in path.read_bytes()] == []
