"""The names of each family's tensors in a Hugging Face folder, and how they make our leaves.

A row of a table is a module of ours, the folder's, and how a tensor there is cut. Its leaves follow
from the module: 'bias' is '.bias' in a folder, any other '.weight'. What a model has, and of which
shape, is what its module reads (`decoder.param_shapes`). The gguf package knows the names there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.spec import Spec

EMBEDDING, HEAD = "embed/embedding", "head/weight"


def make_table(layer: str, inside: str, outside: str = "") -> dict[str, Sequence[str]]:
    """Returns a table from rows 'ours theirs [how]': those `inside` a layer, whose name in a folder
    is `layer` with {} for its number, and those `outside`, which are Llama's by default.

    `ours` may be several layers, 'attention/q,k,v', whose rows stand below each other in one
    tensor. `how` is 'T' if it is transposed, or 'heads' if rows are in order of heads first.
    """
    table: dict[str, Sequence[str]] = {}
    for text, place, start in ((outside or TOP, "", ""), (inside, "last/", layer)):
        rows = (line.split() for line in text.splitlines() if line.strip())
        table |= {place + ours: (start + theirs, *how) for ours, theirs, *how in rows}
    return table


TOP = """
embed       model.embed_tokens
final_norm  model.norm
head        lm_head
"""
ATTENTION = """
attention/q  self_attn.q_proj
attention/k  self_attn.k_proj
attention/v  self_attn.v_proj
attention/o  self_attn.o_proj
"""
MLP = """
feedforward/gate  mlp.gate_proj
feedforward/up    mlp.up_proj
feedforward/down  mlp.down_proj
"""
NORMS_BEFORE = """
attention_norm    input_layernorm
feedforward_norm  post_attention_layernorm
"""
NORMS_BOTH = """
attention_norm        input_layernorm
attention_out_norm    post_attention_layernorm
feedforward_norm      pre_feedforward_layernorm
feedforward_out_norm  post_feedforward_layernorm
"""
NORMS_OUTPUT = """
attention_out_norm    post_attention_layernorm
feedforward_out_norm  post_feedforward_layernorm
"""
QK_NORMS = """
attention/q_norm  self_attn.q_norm
attention/k_norm  self_attn.k_norm
"""
IN_LAYER = "model.layers.{}."
LLAMA = make_table(IN_LAYER, ATTENTION + MLP + NORMS_BEFORE)
QWEN3 = make_table(IN_LAYER, ATTENTION + MLP + NORMS_BEFORE + QK_NORMS)
GEMMA2 = make_table(IN_LAYER, ATTENTION + MLP + NORMS_BOTH)
GEMMA3 = make_table(IN_LAYER, ATTENTION + MLP + NORMS_BOTH + QK_NORMS)
OLMO2 = make_table(IN_LAYER, ATTENTION + MLP + NORMS_OUTPUT + QK_NORMS)
PHI3 = make_table(
    IN_LAYER,
    NORMS_BEFORE
    + """
    attention/q,k,v      self_attn.qkv_proj
    attention/o          self_attn.o_proj
    feedforward/gate,up  mlp.gate_up_proj
    feedforward/down     mlp.down_proj
    """,
)
GPT2 = make_table(
    "transformer.h.{}.",
    """
    attention_norm    ln_1
    attention/q,k,v   attn.c_attn  T
    attention/o       attn.c_proj  T
    feedforward_norm  ln_2
    feedforward/up    mlp.c_fc     T
    feedforward/down  mlp.c_proj   T
    """,
    """
    embed       transformer.wte
    positions   transformer.wpe
    final_norm  transformer.ln_f
    head        lm_head
    """,
)
GPT_NEOX = make_table(
    "gpt_neox.layers.{}.",
    NORMS_BEFORE
    + """
    attention/q,k,v   attention.query_key_value  heads
    attention/o       attention.dense
    feedforward/up    mlp.dense_h_to_4h
    feedforward/down  mlp.dense_4h_to_h
    """,
    """
    embed       gpt_neox.embed_in
    final_norm  gpt_neox.final_layer_norm
    head        embed_out
    """,
)
OPT = make_table(
    "model.decoder.layers.{}.",
    """
    attention_norm    self_attn_layer_norm
    attention/q       self_attn.q_proj
    attention/k       self_attn.k_proj
    attention/v       self_attn.v_proj
    attention/o       self_attn.out_proj
    feedforward_norm  final_layer_norm
    feedforward/up    fc1
    feedforward/down  fc2
    """,
    """
    embed        model.decoder.embed_tokens
    positions    model.decoder.embed_positions
    project_in   model.decoder.project_in
    project_out  model.decoder.project_out
    final_norm   model.decoder.final_layer_norm
    head         lm_head
    """,
)
TABLES: dict[str, Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "smollm3", "gemma"), LLAMA),
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "olmo2": OLMO2,
    "phi3": PHI3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
}


class Tensor(NamedTuple):
    """A tensor of a file, and what it makes of our leaves.

    Attributes:
      name: in the file.
      shape: in the file.
      leaves: paths, as in `param_shapes`; several if the tensor holds one below the other.
      layer: which layer's part of a stack it is, or None: the leaf is no stack.
      how: 'T', 'heads' or ''.
      heads: how many 'heads' means.
    """

    name: str
    shape: tuple[int, ...]
    leaves: tuple[str, ...]
    layer: int | None
    how: str
    heads: int


def tensors(spec: Spec, layers: Any = None) -> Iterator[Tensor]:
    """Yields what a folder of the model holds; of some `layers` alone, if they are given."""
    shapes = param_shapes(spec)
    for ours, (theirs, *how) in TABLES[spec.family].items():
        place, _, names = ours.rpartition("/")
        modules = [f"{place}/{name}".lstrip("/") for name in names.split(",")]
        kinds = [path.rpartition("/") for path in shapes]
        for leaf in [leaf for module, _, leaf in kinds if module == modules[0]]:
            parts = [f"{module}/{leaf}" for module in modules]
            sizes = [shapes[path] for path in parts]
            shape = (sum(size[0] for size in sizes), *sizes[0][1:])
            turned = "T" in how and len(shape) == 2
            shape = shape[::-1] if turned else shape
            rest = (("T" if turned else "") or ("heads" if "heads" in how else ""), spec.heads)
            name = theirs + (".bias" if leaf == "bias" else ".weight")
            if not ours.startswith("last/"):
                yield Tensor(name, shape, tuple(parts), None, *rest)
                continue
            for number in range(spec.layers) if layers is None else layers:
                last = number == spec.layers - 1
                paths = parts if last else [path.replace("last/", "layers/", 1) for path in parts]
                index = None if last else number
                yield Tensor(name.format(number), shape, tuple(paths), index, *rest)


def split(tensor: Tensor, array: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
    """Cuts a file's array into the parts of its leaves, of so many rows each."""
    if tensor.how == "T":
        array = array.T
    if tensor.how == "heads":  # [H, 3, d, ...]
        parts = array.reshape(tensor.heads, len(rows), -1, *array.shape[1:])
        return [part.reshape(-1, *array.shape[1:]) for part in parts.swapaxes(0, 1)]
    ends = [0, *itertools.accumulate(rows)]
    return [array[begin:end] for begin, end in itertools.pairwise(ends)]


def join(tensor: Tensor, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Puts the parts together as the file has them: undoes `split`."""
    if tensor.how == "heads":
        cut = [part.reshape(tensor.heads, -1, *part.shape[1:]) for part in parts]
        return np.concatenate(cut, axis=1).reshape(tensor.shape)
    whole = np.concatenate(parts)
    return np.ascontiguousarray(whole.T if tensor.how == "T" else whole)


def parts_of(leaves: Mapping[str, Any], tensor: Tensor) -> list[Any]:
    """Returns the arrays of a tensor's leaves, or the parts of their stacks."""
    found = [leaves[path] for path in tensor.leaves]
    return found if tensor.layer is None else [stack[tensor.layer] for stack in found]


def module_name(spec: Spec, layer: str) -> str | None:
    """Returns the folder's name of a linear layer, with {} for its number; None if it is fused with
    others there, or transposed."""
    row = TABLES[spec.family].get(f"last/{layer}")
    return row[0] if row is not None and len(row) == 1 else None
