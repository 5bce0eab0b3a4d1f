"""Tables of the names of tensors in Hugging Face folders, for `families.py`.

A row is a module of ours, the folder's, and how a tensor there is cut. The leaf 'bias' is '.bias'
in a folder, any other '.weight'. Rows that a model's module does not read are left out.
"""

from collections.abc import Sequence

Table = dict[str, Sequence[str]]


def make_table(layer: str, inside: str, outside: str = "") -> Table:
    """Returns a table from rows 'ours theirs [how]': those `inside` a layer, whose name in a folder
    is `layer` with {} for its number, and those `outside`, which are Llama's by default. `ours` may
    be several layers, 'attention/q,k,v', below each other in one tensor. `how` is 'T' if it is
    transposed, or 'heads' if rows are in order of heads first."""
    table: Table = {}
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
attention/q       self_attn.q_proj
attention/k       self_attn.k_proj
attention/v       self_attn.v_proj
attention/o       self_attn.o_proj
attention/q_norm  self_attn.q_norm
attention/k_norm  self_attn.k_norm
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
IN_LAYER = "model.layers.{}."
LLAMA = make_table(IN_LAYER, ATTENTION + MLP + NORMS_BEFORE)
GEMMA2 = make_table(IN_LAYER, ATTENTION + MLP + NORMS_BOTH)
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
    ATTENTION
    + """
    attention_norm    self_attn_layer_norm
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
