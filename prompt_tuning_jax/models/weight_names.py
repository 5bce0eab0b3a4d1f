"""How each family's tensors are called: ours, in a Hugging Face folder, and in GGUF.

A further family is a table here, a row in `FAMILIES`, and what `spec.py` reads for it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from prompt_tuning_jax.models.spec import Spec


class Name(NamedTuple):
    """One leaf: our path, both formats' names ('{}' is the layer), its axes as files order them,
    and whether GGUF interleaves its rows for the rotary embedding."""

    ours: str
    folder: str
    gguf: str
    axes: str
    rotary: bool = False


EMBEDDING, HEAD = "embed/embedding", "head/weight"
LLAMA = (
    Name(EMBEDDING, "model.embed_tokens.weight", "token_embd.weight", "V D"),
    Name(
        "attention_norm/scale",
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
        "D",
    ),
    Name(
        "attention/q/weight",
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
        "Hd D",
        rotary=True,
    ),
    Name(
        "attention/k/weight",
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
        "Kd D",
        rotary=True,
    ),
    Name(
        "attention/v/weight",
        "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_v.weight",
        "Kd D",
    ),
    Name(
        "attention/o/weight",
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
        "D Hd",
    ),
    Name(
        "feedforward_norm/scale",
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
        "D",
    ),
    Name(
        "feedforward/gate/weight",
        "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_gate.weight",
        "F D",
    ),
    Name(
        "feedforward/up/weight",
        "model.layers.{}.mlp.up_proj.weight",
        "blk.{}.ffn_up.weight",
        "F D",
    ),
    Name(
        "feedforward/down/weight",
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
        "D F",
    ),
    Name("final_norm/scale", "model.norm.weight", "output_norm.weight", "D"),
    Name(HEAD, "lm_head.weight", "output.weight", "V D"),
)
FAMILIES = {"llama": LLAMA}


class Slot(NamedTuple):
    """Where a tensor goes: its leaf's row in the table, and its layer if it is in one."""

    name: Name
    layer: int | None


def rows(spec: Spec) -> list[Name]:
    """The table of the model's family, without the head where that is tied."""
    return [row for row in FAMILIES[spec.family] if row.ours != HEAD or not spec.tied_head]


def wanted(spec: Spec, source: str) -> Iterator[tuple[str, Slot]]:
    """Each tensor that the model needs, as the file names it, with its slot."""
    for row in rows(spec):
        name = getattr(row, source)
        if "{}" in name:
            for layer in range(spec.layers):
                yield name.format(layer), Slot(row, layer)
        else:
            yield name, Slot(row, None)


def axes(spec: Spec, letters: str) -> tuple[int, ...]:
    """The sizes that a row of the table gives in letters."""
    sizes = {
        "V": spec.vocabulary,
        "D": spec.width,
        "F": spec.feedforward,
        "Hd": spec.heads * spec.head_size,
        "Kd": spec.kv_heads * spec.head_size,
    }
    return tuple(sizes[letter] for letter in letters.split())
