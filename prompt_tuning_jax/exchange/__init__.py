"""Exchange with other programs: artifacts as a folder of transformers, as an adapter of PEFT or as
embeddings; adapters of PEFT and written prompts as artifacts."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning_jax import api
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data.batch import shared_length
from prompt_tuning_jax.data.demonstrations import only_read
from prompt_tuning_jax.data.records import Record
from prompt_tuning_jax.data.task import Task
from prompt_tuning_jax.data.template import field_names, with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.exchange.folder import merge, write_model
from prompt_tuning_jax.exchange.peft import CONFIG, TEXT_PART, read_adapter, write_adapter
from prompt_tuning_jax.models.files.find import hub_name, read_json
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import PROMPT, Given, check_given, from_tensors, to_tensors
from prompt_tuning_jax.run.artifact import Artifact, check_artifact, make_manifest
from prompt_tuning_jax.score import ANY_LENGTH, encode_for
from prompt_tuning_jax.storage import atomic_write, new_folder


def export_model(lm: LanguageModel, artifact: Artifact, folder: str | os.PathLike) -> None:
    """Writes the model with the artifact merged into its weights, as a folder of transformers.
    Raises a UserError if it does not fit the model or cannot be merged, or the folder exists."""
    if not artifact.tensors:
        raise UserError("the artifact is a written prompt, which no weights hold: use its template")
    if lm.settings.get("quantize"):
        raise UserError("the weights of the model are int8: load it with quantize=''")
    merged = merge(lm.spec, lm.params, _checked(lm, artifact))
    with new_folder(folder) as partial:
        write_model(partial, lm, merged)


def export_adapter(
    lm: LanguageModel, task: Task, artifact: Artifact, folder: str | os.PathLike
) -> str:
    """Writes an artifact as a folder that PEFT loads, and returns PEFT's name of its kind. With a
    soft prompt, all up to the template's last slot is written as vectors, BOS too: give PEFT only
    the text behind it, without BOS. Raises a UserError if the artifact does not fit the model, PEFT
    has none like it, or the folder exists."""
    _checked(lm, artifact)
    sites = dict(artifact.tensors)
    if PROMPT in sites:
        ids = front_ids(lm, task, artifact)
        sites[PROMPT] = lm.embed(ids[: np.flatnonzero(ids < 0)[-1] + 1], sites[PROMPT])
    named, inside = hub_name(lm.name) or lm.name, TEXT_PART * ("text_config" in lm.config)
    with new_folder(folder) as partial:
        return write_adapter(partial, lm.spec, sites, named, inside)


def export_front(
    lm: LanguageModel, task: Task, artifact: Artifact, path: str | os.PathLike
) -> np.ndarray:
    """Writes the vectors of the text and slots that every input begins with, as float32[S, E] in a
    .npy file, and returns their ids. Raises a UserError if the artifact does not fit the model or
    is no soft prompt, or the file exists."""
    if artifact.tensors.keys() != {PROMPT}:
        raise UserError("only a soft prompt can be written as embeddings: give the artifact of one")
    ids, data = front_ids(lm, task, artifact), io.BytesIO()
    np.save(data, np.asarray(lm.embed(ids, artifact.tensors[PROMPT])), allow_pickle=False)
    if Path(path).exists():
        raise UserError(f"'{path}' exists: give the name of a new file")
    try:
        atomic_write(path, data.getvalue())
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror}): give another") from error
    return ids


def front_ids(lm: LanguageModel, task: Task, artifact: Artifact) -> np.ndarray:
    """Returns int32[S] ids that every input begins with; slot j is -1 - j. Raises a UserError
    for a slot behind a field."""
    template = artifact.manifest["template"]
    # Texts that begin with another kind of token each: what they share belongs to the template.
    rows = [dict.fromkeys(field_names(template), text) for text in ("a", "1", "Z", "(")]
    examples, _ = api.encode(lm, task, rows, artifact)
    trunk, shared = examples[0].trunk, shared_length(examples)
    if (trunk[shared:] < 0).any():
        problem = f"the template {template!r} has a slot behind a field"
        others = "other programs have virtual tokens in front alone"
        raise UserError(f"{problem}, and {others}: train with the slots in front of all fields")
    return trunk[:shared]


def _checked(lm: LanguageModel, artifact: Artifact) -> Given:
    check_artifact(artifact, lm)
    given = from_tensors(artifact.tensors)
    check_given(lm.spec, given)
    return given


def import_adapter(
    lm: LanguageModel, task: Task, config: Any, folder: str | os.PathLike
) -> Artifact:
    """Returns an adapter of PEFT as an artifact for the task of a config. Raises a UserError if
    it is damaged, of a kind that is not supported, or of other shapes than the model's."""
    method, sites = read_adapter(Path(folder), lm.spec)
    given = Given(sites)
    check_given(lm.spec, given)
    settings: dict[str, Any] = {"name": method}
    for rank in [leaf.shape[1] for path, leaf in sites.items() if path.endswith("/a")][:1]:
        settings |= {"rank": rank, "alpha": float(rank)}  # B holds the scale
    values = config.to_dict() | {"method": settings}
    if PROMPT in sites:
        if task.chat is not None:
            own = "PEFT's virtual tokens come before BOS, which a chat has itself"
            advice = "config.task.as_chat=false and the chat's markup in config.task.template"
            raise UserError(f"{own}: give {advice}")
        if sum(map(task.template.count, ("{soft}", "{soft:"))) > 1:
            raise UserError("config.task.template has several slots: give it one {soft}")
        vectors, one = sites[PROMPT], with_prompt(task.template, "{soft:1}")
        asked, row = task._replace(template=one), dict.fromkeys(field_names(one), "a")
        trunk = encode_for(lm, asked, [row], Given({PROMPT: vectors[:1]}), ANY_LENGTH)[0].trunk
        count = int(np.argmax(trunk < 0))
        known = np.asarray(lm.embed(trunk[:count]), np.float32)
        far = 0.01 * np.abs(known).max(initial=0)  # int8 and bfloat16 round by less
        # PEFT's own start, which our exports do not name, may have BOS in it.
        is_ours = read_json(Path(folder, CONFIG)).get("prompt_tuning_init") != "TEXT"
        near = 0 < count < len(vectors) and np.allclose(vectors[:count], known, rtol=0, atol=far)
        if is_ours and near:
            # An export took what the template has in front of its slot with it.
            given, template = Given({PROMPT: vectors[count:]}), with_prompt(task.template, "{soft}")
        else:
            # PEFT's virtual tokens come first, before BOS.
            specials, first = lm.tokenizer.specials.items(), lm.tokenizer.bos_id
            bos = next((text for text, n in specials if n == first and lm.tokenizer.add_bos), "")
            template = "{soft}" + bos + with_prompt(task.template, "").removeprefix(bos)
        task, values["task"]["template"] = task._replace(template=template), template
        values["method"]["num_virtual_tokens"] = len(given.sites[PROMPT])
    return Artifact(to_tensors(given), make_manifest(lm, task, configs.build(values), {}))


def keep_prompt(
    lm: LanguageModel, task: Task, config: Any, prompt: str, demonstrations: Sequence[Record] = ()
) -> Artifact:
    """Returns a written prompt as an artifact without tensors: its template, the labels, and the
    demonstrations in front of every record."""
    task, values = task._replace(template=with_prompt(task.template, prompt)), config.to_dict()
    values["task"]["template"], values["demonstrations"]["number"] = task.template, 0
    manifest = make_manifest(lm, task, configs.build(values), {})
    shown = only_read(task, demonstrations)
    return Artifact({}, manifest | {"method": "written_prompt", "demonstrations": shown})
