"""The commands `export` and `import`: artifacts for other programs and the hub, and from PEFT."""

from typing import Any

from prompt_tuning_jax import exchange
from prompt_tuning_jax.cli.machine import find_artifact, load_model, open_artifact
from prompt_tuning_jax.cli.show import say
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.models.sites import PROMPT
from prompt_tuning_jax.run.artifact import load_artifact, save_artifact
from prompt_tuning_jax.run.card import predict_command

KINDS = ("hf", "peft", "npy")


def export_artifact(folder: str, kind: str, target: str, overrides: list[str]) -> None:
    """Writes an artifact for another program: 'hf', 'peft' or 'npy', or pushes it: 'hub'."""
    if kind not in (*KINDS, "hub"):
        known = f"{', '.join(KINDS)}, hub:USER/NAME"
        raise UserError(f"--to takes one of {known}, not {kind!r}{nearest(kind, KINDS)}")
    folder = find_artifact(folder)
    if kind == "hub":
        from prompt_tuning_jax.exchange.hub import push  # takes a while

        if overrides:
            raise UserError(f"the hub gets the files as they are: leave {overrides[0]!r} out")
        say(f"{push(load_artifact(folder), folder, target)}: the artifact and its card")
        return
    exact = ["--config.model.quantize="] * (kind == "hf")  # weights that are merged
    artifact, config, task = open_artifact(folder, [*overrides, *exact])
    lm = load_model(config)
    if "calibration" in artifact.manifest:
        say("warning: the calibration of the artifact is not exported: other programs have none")
    if kind == "hf":
        exchange.export_model(lm, artifact, target)
        say(f"{target}: load it with transformers' AutoModelForCausalLM and AutoTokenizer")
    elif kind == "peft":
        name = exchange.export_adapter(lm, task, artifact, target)
        say(f"{target}: an adapter of the kind {name}, for the model {lm.name}")
        no_bos = PROMPT in artifact.tensors or "continues" in artifact.manifest
        if no_bos and lm.tokenizer.add_bos:
            say("PEFT has to read the text after the virtual tokens without BOS")
    else:
        ids = exchange.export_front(lm, task, artifact, target)
        own = lm.tokenizer.decode([number for number in ids.tolist() if number >= 0])
        say(f"{target}: {len(ids)} vectors, of the virtual tokens and of the text {own!r}")


def import_adapter(config: Any, kind: str, folder: str, out: str) -> None:
    """Makes an artifact of an adapter of PEFT."""
    if kind != "peft":
        raise UserError(f"--from takes 'peft', not {kind!r}")
    task = make_task(config.task)
    keep(exchange.import_adapter(load_model(config), task, config, folder), out)


def keep(artifact, out: str) -> None:
    """Writes an artifact, and says how to use it."""
    save_artifact(artifact, out)
    say(f"{out}: an artifact, to use with evaluate and predict")
    say(f"next:   {predict_command(artifact.manifest['template'], 'prompt-tuning', out)}")
