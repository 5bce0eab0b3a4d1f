"""Small random models on disk, as Hugging Face folders and as GGUF files, for the tests."""

import dataclasses
import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from prompt_tuning_jax.models.decoder import param_shapes
from prompt_tuning_jax.models.files.gguf import tensor_names
from prompt_tuning_jax.models.spec import Rope, Spec
from prompt_tuning_jax.models.weight_names import tensors as file_tensors

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ Ġ")
BFLOAT16 = ml_dtypes.bfloat16


def bytes_to_characters() -> list[str]:
    """Returns the character that byte-level vocabularies write for each byte (GPT-2's table)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


VOCABULARY = (*SPECIALS, *bytes_to_characters(), *(merge.replace(" ", "") for merge in MERGES))
SPEC = Spec(
    family="llama",
    layers=3,
    width=24,
    heads=4,
    kv_heads=2,
    head_size=10,
    feedforward=36,
    vocabulary=len(VOCABULARY),
    max_positions=128,
    norm_epsilon=1e-5,
    tied_head=True,
    ropes=(Rope(10000.0, 10),),
)
# Wavelengths from 2 pi on, so that all three ranges of llama3 are there in a head of 10.
LLAMA3 = "llama3", (8.0, 1.0, 4.0, 32)


def changed(theta: float = 10000.0, scaling=(), **fields) -> Spec:
    """Returns the small spec with some fields changed; all of a head turns."""
    rope = Rope(theta, fields.get("head_size", SPEC.head_size), *scaling)
    return dataclasses.replace(SPEC, **{"ropes": (rope,), **fields})


def unscaled(spec: Spec) -> Spec:
    """Returns a spec whose rotary embedding is not stretched: GGUF holds factors instead."""
    ropes = tuple(Rope(rope.theta, rope.size) for rope in spec.ropes)
    return dataclasses.replace(spec, ropes=ropes)


# What the decoder, the readers and transformers are compared on. A further family is a row.
SPECS = {
    "llama": SPEC,
    "llama of one layer": changed(layers=1),
    "llama, untied, a key head each": changed(layers=2, kv_heads=4, tied_head=False),
    "llama of four layers, one key head": changed(layers=4, kv_heads=1, theta=500.0),
    "llama 3": changed(1000.0, LLAMA3),
}


# The order in which random numbers are drawn.
ORDER = (
    "embed input_layernorm q_proj k_proj v_proj o_proj post_attention_layernorm gate_proj up_proj "
)
ORDER = (ORDER + "down_proj norm lm_head").split()


def tensors(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random float32 tensors of a Llama by the names and in the axes of a folder."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def order(tensor):
        return ORDER.index(tensor.name.replace("_tokens", "").split(".")[-2])

    for tensor in sorted(file_tensors(spec), key=order):
        center = 1.0 if tensor.name.endswith("norm.weight") else 0.0
        noise = 0.2 * rng.standard_normal(tensor.shape)
        arrays[tensor.name] = (center + noise).astype(np.float32)
    return arrays


def leaves(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random leaves of any model by path: biases and norms too."""
    if spec.family == "llama" and not spec.biases:
        return expected(spec, tensors(spec, seed))
    rng, found = np.random.default_rng(seed), {}
    for path, shape in param_shapes(spec).items():
        center = 0.0 if spec.norm_offset or not path.endswith("norm/scale") else 1.0
        found[path] = (center + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    return found


def config(spec: Spec) -> dict:
    """Returns the `config.json` of a spec."""
    rope = spec.ropes[0]
    keys = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    scaling = {"rope_type": rope.kind, **dict(zip(keys, rope.numbers, strict=False))}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": spec.family,
        "hidden_act": "silu",
        "attention_bias": False,
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.width,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "intermediate_size": spec.feedforward,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": rope.theta,
        "rope_scaling": scaling if rope.numbers else None,
        "tie_word_embeddings": spec.tied_head,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def gguf_fields(spec: Spec) -> dict:
    """Returns the metadata of a spec as llama.cpp's converter writes it, without the tokenizer."""
    sizes = {
        "block_count": spec.layers,
        "context_length": spec.max_positions,
        "embedding_length": spec.width,
        "feed_forward_length": spec.feedforward,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        "rope.dimension_count": spec.head_size,
        "vocab_size": spec.vocabulary,
        "rope.freq_base": spec.ropes[0].theta,
        "attention.layer_norm_rms_epsilon": spec.norm_epsilon,
    }
    named = {f"{spec.family}.{key}": value for key, value in sizes.items()}
    return {"general.architecture": spec.family, **named}


def tokenizer_json() -> dict:
    """Returns a byte-level tokenizer of a few merges whose processor adds BOS."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials(SPECIALS),
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": {"type": "Sequence", "processors": [level, front_processor(SPECIALS[1])]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(VOCABULARY)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def specials(tokens) -> list[dict]:
    """Returns the entries of special tokens, which have the first ids, in a `tokenizer.json`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": token, **flags, "special": True}
        for number, token in enumerate(tokens)
    ]


def front_processor(*tokens: str, behind: tuple[str, ...] = ()) -> dict:
    """Returns a processor that puts special tokens in front of a text, and some behind it."""
    text = {"Sequence": {"id": "A", "type_id": 0}}

    def named(tokens):
        return [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]

    single = [*named(tokens), text, *named(behind)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token: {"id": token, "ids": [SPECIALS.index(token)], "tokens": [token]}
            for token in (*tokens, *behind)
        },
    }


def write_folder(
    folder: Path,
    spec: Spec = SPEC,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    dtype=np.float32,
    shards: int = 1,
) -> Path:
    """Writes a Hugging Face folder with a tokenizer; its tensors in one file or several."""
    arrays = tensors(spec) if arrays is None else arrays
    arrays = {name: np.ascontiguousarray(array.astype(dtype)) for name, array in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(spec)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    named = {
        "pad_token": SPECIALS[0],
        "bos_token": {"__type": "AddedToken", "content": SPECIALS[1]},
        "eos_token": SPECIALS[2],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if shards == 1:
        save_file(arrays, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(arrays.items())[shard::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def rewrite(path, **changes):
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


# A vocabulary that writes a space as a sign, and the steps of tokenizers that put one in front.
SPACED_MERGES = (("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"))
SPACED_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
SPACED_TOKENS += (*"▁abcdefghijklmnopqrstuvwxyz\n", *map("".join, SPACED_MERGES))
LLAMA2 = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
SPACED_STEPS = {
    scheme: {"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": scheme}}
    for scheme in ("first", "always", "never")
} | {"llama 2": {"normalizer": LLAMA2, "pre_tokenizer": None}}


def write_spaced_folder(folder: Path, steps: str, **named) -> Path:
    """Writes a folder whose tokenizer has such steps, and whose config has the entries `named`."""
    write_folder(folder)
    rewrite(
        folder / "tokenizer.json",
        **SPACED_STEPS[steps],
        added_tokens=specials(SPACED_TOKENS[:3]),
        post_processor=None,
        decoder={"type": "Fuse"},
        model={
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(SPACED_TOKENS)},
            "merges": SPACED_MERGES,
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": "<unk>",
        },
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    rewrite(folder / "tokenizer_config.json", **names, **named)
    return folder


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """Orders the rows of a query or key as llama.cpp's converter does, for rope of neighbours."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def write_gguf(
    path: Path,
    spec: Spec = SPEC,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    factors: np.ndarray | None = None,
    fields: dict[str, str] | None = None,
    pre: str = "gpt-2",
) -> Path:
    """Writes a GGUF file as llama.cpp's converter does; `fields` are further strings by key."""
    arrays = tensors(spec) if arrays is None else arrays
    known = {**gguf_fields(spec), "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    known |= fields or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, known.pop("general.architecture"))
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in known.items():
        add[type(value)](key, value)
    writer.add_token_list(list(VOCABULARY))
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(VOCABULARY) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    names = tensor_names("llama", spec.layers)
    for name, array in arrays.items():
        rotary = name.endswith(("q_proj.weight", "k_proj.weight"))
        name = names.get_name(name, (".weight", ".bias")) or name
        array = permute(array, array.shape[0] // spec.head_size) if rotary else array
        kind = quantization if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected(spec: Spec, arrays: dict[str, np.ndarray], dtype=np.float32) -> dict:
    """Returns the leaves, by path, that reading these tensors should give."""
    leaves: dict = {}
    for tensor in file_tensors(spec):
        array, (path,) = arrays[tensor.name].astype(dtype), tensor.leaves
        stack = path.replace("last/", "layers/")
        if tensor.layer is not None:
            before = leaves.get(stack, np.zeros((0, *array.shape), dtype))
            leaves[stack] = np.concatenate([before, array[None]])
        else:
            leaves[path] = array
            if stack != path:
                leaves.setdefault(stack, np.zeros((0, *array.shape), dtype))
    return leaves


def flatten(tree: dict) -> dict[str, np.ndarray]:
    """Returns the leaves of a tree of dicts by path."""
    return traverse_util.flatten_dict(tree, sep="/")


def assert_tree(params, wanted):
    """Checks for the same leaves, dtypes and numbers."""
    leaves = flatten(params)
    assert leaves.keys() == wanted.keys()
    for path, leaf in leaves.items():
        assert leaf.dtype == wanted[path].dtype, path
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
