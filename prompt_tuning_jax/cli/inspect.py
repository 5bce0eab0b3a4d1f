"""The command `inspect`: what can be read from a soft prompt or a prefix."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning_jax import api
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.cli.machine import load_model, open_artifact
from prompt_tuning_jax.cli.show import print_facts, print_table, say
from prompt_tuning_jax.data.task import select_records
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.inspection import nearest_tokens, prefix_attention, replace_slots
from prompt_tuning_jax.models.sites import PREFIX, PROMPT
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.run.report import TRAIN_COLOR, VALIDATION_COLOR, new_figure, save_figure
from prompt_tuning_jax.storage import atomic_write, new_folder

NEIGHBOURS = 3
# Examples that are scored in all: about a minute on 2 cores with a model of 135M.
SCORED, FEWEST = 1500, 16
WAYWARD = "such readings mislead: a good prompt can be near almost any text (Khashabi et al. 2022)"


def inspect_artifact(
    folder: str, split: str | None, out: str | None, parallel: Sequence[str] = ()
) -> dict[str, Any]:
    """Inspects an artifact on a split, by default on as much of its validation split as takes about
    a minute. Writes what it returns to the folder `out`, if any, with a picture."""
    artifact, config, task = open_artifact(folder, parallel)
    if artifact.tensors.keys() not in ({PROMPT}, {*PREFIX.values()}):
        raise UserError(
            f"the artifact is of the method {artifact.manifest['method']!r}: only a soft prompt or"
            " a prefix has virtual tokens to inspect"
        )
    vectors = artifact.tensors.get(PROMPT, ())
    name = split or config.task.validation
    rows = select_records(task, name)
    count = len(rows) if split else max(SCORED // (2 * len(vectors) + 2), FEWEST)
    lm = load_model(config)
    examples, given = api.encode(lm, task, rows[:: max(len(rows) // count, 1)][:count], artifact)
    say(f"scores are of {len(examples)} of {len(rows)} records of {name}")

    def measure(ids: Mapping[int, int | None]) -> dict[str, float]:
        changed = replace_slots(examples, ids)
        answers = np.array([example.answer for example in changed])
        scores = scoring.finite(lm, scoring.score(lm, changed, given))
        return scoring.loss_and_accuracy(scores, answers)

    found: dict[str, Any] = {"note": WAYWARD} | measure({})
    if PROMPT in artifact.tensors:
        found["tokens"] = nearest_tokens(lm, vectors, NEIGHBOURS)
        ids = [each["cosine"][0]["id"] for each in found["tokens"]]
        found["all_replaced"] = measure(dict(enumerate(ids)))
        for slot, each in enumerate(with_progress(found["tokens"], "tokens", say, len(ids))):
            each |= {"replaced": measure({slot: ids[slot]}), "without": measure({slot: None})}
    else:
        found["attention"] = prefix_attention(lm, given, examples).tolist()
    if out is not None:
        draw = _draw_tokens if "tokens" in found else _draw_attention
        text = json.dumps(found, indent=1, ensure_ascii=False)
        with new_folder(out) as place:
            atomic_write(place / "inspection.json", f"{text}\n".encode())
            save_figure(draw(found), place / "inspection.png")
    return found


def print_inspection(found: Mapping[str, Any]) -> None:
    """Prints what `inspect_artifact` returned, for people."""
    rows = [
        {"position": str(place), "attention": f"{100 * share:.2f} %"}
        for place, share in enumerate(found.get("attention", ()))
    ] or [_cells(place, each) for place, each in enumerate(found["tokens"])]
    print_table(rows, texts=["nearest by cosine", "by product"])
    print()
    print_facts({name: each for name, each in found.items() if name not in ("tokens", "attention")})


def _cells(place: int, found: Mapping[str, Any]) -> dict[str, str]:
    nearest = found["cosine"][0]
    return {
        "token": str(place),
        "nearest by cosine": _name(nearest),
        "cosine": f"{nearest['cosine']:.3f}",
        "distance": f"{nearest['distance']:.3g}",
        "by product": _name(found["product"][0]),
        "product": f"{found['product'][0]['product']:.3g}",
        "loss, replaced": f"{found['replaced']['loss']:.3f}",
        "without": f"{found['without']['loss']:.3f}",
    }


def _name(found: Mapping[str, Any]) -> str:
    """Returns a token's text, with its id if it is a part of a character."""
    return repr(found["token"]) + f" {found['id']}" * ("\ufffd" in found["token"])


def _draw_attention(found):
    figure, axes = new_figure(9, 3.6)
    shares = [100 * share for share in found["attention"]]
    axes.bar(range(len(shares)), shares, color=TRAIN_COLOR)
    axes.set(xlabel="position of the prefix", ylabel="attention (%)")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    return figure


def _draw_tokens(found):
    tokens, places = found["tokens"], range(len(found["tokens"]))
    figure, (left, right) = new_figure(9, 1.5 + 0.2 * len(tokens), 2)
    for name, label, style in (
        ("replaced", "replaced by its nearest token", {"color": TRAIN_COLOR, "marker": "o"}),
        ("without", "left out", {"color": VALIDATION_COLOR, "marker": "D"}),
    ):
        changes = [each[name]["loss"] - found["loss"] for each in tokens]
        left.plot(changes, places, linestyle="", markersize=5, label=label, **style)
    left.axvline(0, color="black", linewidth=0.8)
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2)
    right.barh(places, [one["cosine"][0]["cosine"] for one in tokens], color=TRAIN_COLOR, zorder=2)
    words = [_name(each["cosine"][0])[:16].replace("$", r"\$") for each in tokens]
    left.set_yticks(places, [f"{word}  {place}" for place, word in enumerate(words)])
    right.set_yticks(places, [])
    left.set(xlabel="change of the loss (nats)", ylim=(len(tokens) - 0.5, -0.5))
    right.set(xlabel="cosine of the nearest token", ylim=(len(tokens) - 0.5, -0.5))
    return figure
