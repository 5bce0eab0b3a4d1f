"""The program on a tiny model under an audit hook: nothing is connected to."""

import tiny_models
import tiny_runs
import watched

# An event loop's own pair of sockets, and the host's name for the owner of a lock.
AT_HOME = {"socket.__new__", "socket.gethostname"}


def test_no_command_needs_a_socket(tmp_path):
    artifact = str(tmp_path / "run" / "artifact")
    # A folder, for which transformers is imported.
    model = tiny_models.write_folder(tmp_path / "model")
    lines = [
        ["--version"],
        tiny_runs.training(tmp_path / "run", *tiny_runs.FEW, f"--config.model.path={model}"),
        ["evaluate", "--artifact", artifact],
        ["predict", "--artifact", artifact],
        ["list"],
        ["env"],
    ]
    answers = watched.run(lines, tiny_runs.environment())
    for words, answer in zip(lines[1:], answers, strict=True):
        assert answer["status"] == 0, (words, answer["err"])
        seen = {event for event, _ in answer["events"]}
        assert "open" in seen, words
        away = {event for event in seen if event.partition(".")[0] in watched.NETWORK}
        assert away <= AT_HOME, (words, away)
