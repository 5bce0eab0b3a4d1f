"""Pushes an artifact to a Hugging Face hub."""

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

from prompt_tuning_jax.errors import UserError, hide, reason_of
from prompt_tuning_jax.models.files.find import hub_name
from prompt_tuning_jax.models.files.hub import FAILURES, LOGIN
from prompt_tuning_jax.run.artifact import MANIFEST, TENSORS, Artifact, write_card
from prompt_tuning_jax.run.card import CARD


def push(artifact: Artifact, folder: str, repo: str) -> str:
    """Writes the files of an artifact's folder to a model's repository on the hub, old or new, in
    one commit, and returns its address. Raises a UserError if the hub does not take them."""
    if not get_token():
        raise UserError(f"the hub takes files only with a token that may write: {LOGIN}.")
    facts = ["---", "library_name: prompt-tuning-jax"]
    if base := hub_name(artifact.manifest["model"]["name"]):
        facts.append(f"base_model: {json.dumps(base)}")
    if not Path(folder, CARD).exists():
        write_card(artifact, folder, ())
    files = {name: Path(folder, name).read_bytes() for name in (MANIFEST, TENSORS, CARD)}
    files[CARD] = "\n".join([*facts, "---", ""]).encode() + files[CARD]
    added = [CommitOperationAdd(name, data) for name, data in files.items()]
    try:
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().create_commit(repo, added, commit_message="Upload an artifact of prompt-tuning-jax")
    except FAILURES as error:
        wrong = f"{constants.ENDPOINT} does not take '{repo}' ({reason_of(error)})"
        raise UserError(f"{wrong}: give USER/NAME, and a token that may write there.") from error
    return hide(f"{constants.ENDPOINT}/{repo}")
