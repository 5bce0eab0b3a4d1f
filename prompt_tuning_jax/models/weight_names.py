"""The names of each family's tensors: ours, in a Hugging Face folder, and in GGUF.

A new family is a table here, a row in `FAMILIES`, and what `spec.py` reads for it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prompt_tuning_jax.models.spec import Spec


class Leaf(NamedTuple):
    """A leaf of the model: its path, its name in a folder and in GGUF ('{}' is the layer), the
    letters of its axes, and whether GGUF interleaves its rows for the rotary embedding."""

    path: str
    folder: str
    gguf: str
    axes: str
    rotary: bool = False

    @property
    def layered(self) -> bool:
        """Whether every layer has one."""
        return "{}" in self.folder


EMBEDDING, HEAD = "embed/embedding", "head/weight"


def _parse(text: str) -> tuple[Leaf, ...]:
    """One leaf a line: path, both names without '.weight', axes, and 'rotary' if it is so."""
    rows = (line.split() for line in text.strip().splitlines())
    return tuple(
        Leaf(path, f"{folder}.weight", f"{gguf}.weight", axes, rotary == ["rotary"])
        for path, folder, gguf, axes, *rotary in rows
    )


LLAMA = _parse("""
embed/embedding         model.embed_tokens                       token_embd         V,D
attention_norm/scale    model.layers.{}.input_layernorm          blk.{}.attn_norm   D
attention/q/weight      model.layers.{}.self_attn.q_proj         blk.{}.attn_q      Hd,D rotary
attention/k/weight      model.layers.{}.self_attn.k_proj         blk.{}.attn_k      Kd,D rotary
attention/v/weight      model.layers.{}.self_attn.v_proj         blk.{}.attn_v      Kd,D
attention/o/weight      model.layers.{}.self_attn.o_proj         blk.{}.attn_output D,Hd
feedforward_norm/scale  model.layers.{}.post_attention_layernorm blk.{}.ffn_norm    D
feedforward/gate/weight model.layers.{}.mlp.gate_proj            blk.{}.ffn_gate    F,D
feedforward/up/weight   model.layers.{}.mlp.up_proj              blk.{}.ffn_up      F,D
feedforward/down/weight model.layers.{}.mlp.down_proj            blk.{}.ffn_down    D,F
final_norm/scale        model.norm                               output_norm        D
head/weight             lm_head                                  output             V,D
""")
FAMILIES = {"llama": LLAMA}


def table(spec: Spec) -> list[Leaf]:
    """Returns the leaves of the model: without a head if that is tied."""
    return [leaf for leaf in FAMILIES[spec.family] if leaf.path != HEAD or not spec.tied_head]


def tensor_names(spec: Spec, source: str) -> Iterator[tuple[str, Leaf, int | None]]:
    """Yields each tensor that the model needs: its name in a 'folder' or in 'gguf', its leaf, and
    its layer, if any."""
    for leaf in table(spec):
        name = getattr(leaf, source)
        for layer in range(spec.layers) if leaf.layered else [None]:
            yield name.format(layer), leaf, layer


def part_of(leaves: Mapping[str, Any], spec: Spec, leaf: Leaf, layer: int | None) -> Any:
    """Returns the array of a leaf, or the part of its stack that belongs to a layer."""
    if layer is None:
        return leaves[leaf.path]
    last = layer == spec.layers - 1
    return leaves[f"last/{leaf.path}"] if last else leaves[f"layers/{leaf.path}"][layer]


def linear_layers(spec: Spec) -> dict[str, Leaf]:
    """Returns the matrices of a block, each by the name of its layer, such as 'attention/q'."""
    layered = (leaf for leaf in table(spec) if leaf.layered and leaf.path.endswith("/weight"))
    return {leaf.path.removesuffix("/weight"): leaf for leaf in layered}


def axis_sizes(spec: Spec) -> dict[str, int]:
    """Returns the sizes of the model's axes by their letters."""
    return {
        "L": spec.layers,
        "V": spec.vocabulary,
        "D": spec.width,
        "F": spec.feedforward,
        "K": spec.kv_heads,
        "d": spec.head_size,
        "Hd": spec.heads * spec.head_size,
        "Kd": spec.kv_heads * spec.head_size,
    }


def leaf_shape(spec: Spec, leaf: Leaf) -> tuple[int, ...]:
    """Returns the sizes of a leaf's axes in one layer."""
    sizes = axis_sizes(spec)
    return tuple(sizes[letter] for letter in leaf.axes.split(","))


def param_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf of the frozen tree by its path: the matrices of all layers
    but the last are one stack, those of the last layer stand on their own."""
    shapes = {}
    for leaf in table(spec):
        shape = leaf_shape(spec, leaf)
        if leaf.layered:
            shapes[f"layers/{leaf.path}"] = (spec.layers - 1, *shape)
        shapes[f"last/{leaf.path}" if leaf.layered else leaf.path] = shape
    return shapes
