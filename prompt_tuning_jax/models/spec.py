"""What a frozen model is: the sizes and options of a decoder, from the files of each family by
`families.py`. An option that is off costs nothing."""

import dataclasses

from prompt_tuning_jax.errors import UserError

FAR = 2**30  # the window of a layer that sees all positions


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotary embedding: the first `size` (r) dimensions of a head turn with the position."""

    theta: float  # base of the wavelengths
    size: int  # r, how many dimensions of a head turn
    kind: str = "default"  # how wavelengths are stretched, see `positions.frequencies`
    numbers: tuple = ()  # of the kind, in the order there


@dataclasses.dataclass(frozen=True)
class Spec:
    """Sizes and options of a decoder-only model. Hashable, so that a module can hold it."""

    family: str  # e.g. 'llama'
    layers: int  # L
    width: int  # D
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # d
    feedforward: int  # F
    vocabulary: int  # V
    max_positions: int  # how many positions the model can see
    norm_epsilon: float  # added to the mean square (RMSNorm) or to the variance (LayerNorm)
    tied_head: bool  # whether the head's matrix is the embedding
    ropes: tuple[Rope, ...] = ()  # the rotary embeddings; none if positions are learned
    # Which of `ropes` each layer uses, or their number for none; () if all use the first.
    layer_ropes: tuple[int, ...] = ()
    # For each layer, how many positions a query sees, its own included; () if all.
    layer_windows: tuple[int, ...] = ()
    learned_positions: bool = False  # whether each position has a trained vector
    position_offset: int = 0  # rows of that table before the first position (OPT: 2)
    norm: str = "rms"  # 'rms' or 'layer', which has a bias too
    norm_offset: float = 0.0  # added to a norm's scale (Gemma: 1)
    # Of the norms: 'before' attention and feed-forward, on their 'output' (OLMo 2), 'both' (Gemma
    # 2), or 'after' the sum (OPT-350m).
    placement: str = "before"
    final_norm: bool = True  # whether there is one after the last layer
    parallel: bool = False  # whether the feed-forward reads what attention reads (GPT-NeoX)
    activation: str = "silu"  # 'silu', 'relu', 'gelu' (exact) or 'gelu_tanh'
    gated: bool = True  # whether the activation multiplies a second projection
    biases: tuple[str, ...] = ()  # which linear layers have one, of q k v o gate up down
    qk_norm: str = ""  # 'head' (over each head: Qwen 3), 'row' (over all heads: OLMo 2), or ''
    scale: float = 0.0  # of queries; 0 is d**-0.5
    # Scores and logits are cap * tanh(x / cap), if it is not 0.
    attention_cap: float = 0.0
    final_cap: float = 0.0
    embedding_scale: float = 1.0  # what the embeddings are multiplied by (Gemma: sqrt(D))
    embedding_width: int = 0  # of embeddings and the tied head, if it is not D (OPT-350m)

    @property
    def prompt_width(self) -> int:
        """The size of a virtual token's vector, which is that of an embedding."""
        return self.embedding_width or self.width

    def __post_init__(self):
        if self.heads % self.kv_heads:
            heads = f"{self.heads} query heads and {self.kv_heads} key heads"
            raise UserError(f"{heads}: the first must be a multiple of the second.")
        for rope in self.ropes:
            if rope.size % 2 or not 0 < rope.size <= self.head_size:
                turn = f"{rope.size} dimensions of a head of size {self.head_size} turn"
                raise UserError(f"{turn}; expected an even number, at most the size.")
            if rope.theta < 1:
                # Frequencies would rise above one radian a position, and out of float32.
                raise UserError(f"the rotary base is {rope.theta:g}; expected at least 1.")
        for name in ("layer_ropes", "layer_windows"):
            if (found := len(getattr(self, name))) not in (0, self.layers):
                problem = f"the list of {name.removeprefix('layer_')} by layer has {found} entries"
                raise UserError(f"{problem}; expected {self.layers}, one for each layer.")


def linear_layers(spec: Spec) -> dict[str, tuple[str, str]]:
    """Returns the matrices of a block: by name the letters of their axes, output and input."""
    found = {"attention/q": ("Hd", "D"), "attention/k": ("Kd", "D"), "attention/v": ("Kd", "D")}
    found |= {"attention/o": ("D", "Hd"), "feedforward/gate": ("F", "D")}
    found |= {"feedforward/up": ("F", "D"), "feedforward/down": ("D", "F")}
    return {name: axes for name, axes in found.items() if spec.gated or "gate" not in name}


def matrices(spec: Spec) -> dict[str, str]:
    """Returns the letters of the axes of the frozen matrices by path; L is that of a stack."""
    found = {"embed/embedding": "V E", "head/weight": "V D"}
    found |= {"project_in/weight": "D E", "project_out/weight": "E D"}
    for module, (outputs, inputs) in linear_layers(spec).items():
        found[f"layers/{module}/weight"] = f"L {outputs} {inputs}"
        found[f"last/{module}/weight"] = f"{outputs} {inputs}"
    return found


def axis_sizes(spec: Spec) -> dict[str, int]:
    """Returns the sizes of the model's axes by their letters; E is the width of embeddings."""
    return {
        "L": spec.layers,
        "V": spec.vocabulary,
        "D": spec.width,
        "E": spec.prompt_width,
        "F": spec.feedforward,
        "K": spec.kv_heads,
        "d": spec.head_size,
        "Hd": spec.heads * spec.head_size,
        "Kd": spec.kv_heads * spec.head_size,
    }
