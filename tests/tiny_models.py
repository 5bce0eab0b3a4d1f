"""Small random Llamas on disk, as Hugging Face folders and as GGUF files, for the tests."""

import dataclasses
import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from prompt_tuning_jax.models import weight_names as names
from prompt_tuning_jax.models.spec import Spec

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ Ġ")


def bytes_to_characters() -> list[str]:
    """The character that byte-level vocabularies write for each byte (GPT-2's table)."""
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
    rope_theta=10000.0,
    rope_scaling=None,
    norm_epsilon=1e-5,
    tied_head=True,
)


def tensors(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors by the names and in the order of axes of a Hugging Face folder."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, slot in names.wanted(spec, "folder"):
        shape = names.axes(spec, slot.name.axes)
        center = 1.0 if name.endswith("norm.weight") else 0.0
        arrays[name] = (center + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    return arrays


def config(spec: Spec) -> dict:
    """The `config.json` of a spec."""
    scaling = spec.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "rope_theta": spec.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
        "tie_word_embeddings": spec.tied_head,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tokenizer_json() -> dict:
    """A byte-level tokenizer of a few merges whose processor adds BOS."""
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, token in enumerate(SPECIALS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    template = [{"SpecialToken": {"id": SPECIALS[1], "type_id": 0}}]
    template += [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {**level, "use_regex": True},
                {
                    "type": "TemplateProcessing",
                    "single": template,
                    "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {
                        SPECIALS[1]: {"id": SPECIALS[1], "ids": [1], "tokens": [SPECIALS[1]]}
                    },
                },
            ],
        },
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(VOCABULARY)},
            "merges": [merge.split(" ") for merge in MERGES],
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
    """A Hugging Face folder with a tokenizer; its tensors in one file or several."""
    arrays = tensors(spec) if arrays is None else arrays
    arrays = {name: np.ascontiguousarray(array.astype(dtype)) for name, array in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(spec)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    named = {
        "pad_token": SPECIALS[0],
        "bos_token": {"__type": "AddedToken", "content": SPECIALS[1]},
        "eos_token": "<|eos|>",
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
    """Puts keys into a JSON file; None takes one out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key as llama.cpp's converter orders them, for rope of neighbours."""
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
    """A GGUF file as llama.cpp's converter writes it, with `fields`, strings by key, beside."""
    arrays = tensors(spec) if arrays is None else arrays
    fields = dict(fields or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", "llama"))
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.width)
    writer.add_feed_forward_length(spec.feedforward)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_size)
    writer.add_value_length(spec.head_size)
    writer.add_rope_dimension_count(spec.head_size)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_epsilon)
    writer.add_vocab_size(spec.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(VOCABULARY))
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(VOCABULARY) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    for key, value in fields.items():
        writer.add_string(key, value)
    ours = {slot: name for name, slot in names.wanted(spec, "gguf")}
    slots = dict(names.wanted(spec, "folder"))
    for name, array in arrays.items():
        slot = slots.get(name)
        if slot is not None and slot.name.rotary:
            array = permute(array, array.shape[0] // spec.head_size)
        kind = quantization if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)
        writer.add_tensor(ours[slot] if slot else name, data, raw_dtype=kind)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected(spec: Spec, arrays: dict[str, np.ndarray], dtype=np.float32) -> dict:
    """The leaves, by path, that reading these tensors should give, made the slow way."""
    leaves: dict = {}
    for name, slot in names.wanted(spec, "folder"):
        leaf = arrays[name].astype(dtype)
        if slot.layer is None:
            leaves[slot.name.ours] = leaf
        elif slot.layer == spec.layers - 1:
            leaves[f"last/{slot.name.ours}"] = leaf
            leaves.setdefault(f"layers/{slot.name.ours}", np.zeros((0, *leaf.shape), dtype))
        else:
            stack = leaves.get(f"layers/{slot.name.ours}", np.zeros((0, *leaf.shape), dtype))
            leaves[f"layers/{slot.name.ours}"] = np.concatenate([stack, leaf[None]])
    return leaves


def flatten(tree: dict, stem: str = "") -> dict[str, np.ndarray]:
    """Leaves of a tree of dicts by path."""
    leaves = {}
    for name, value in tree.items():
        path = f"{stem}{name}"
        leaves |= flatten(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return leaves


def changed(**fields) -> Spec:
    """The small spec with some fields changed."""
    return dataclasses.replace(SPEC, **fields)


BFLOAT16 = ml_dtypes.bfloat16


def assert_tree(params, wanted):
    """The same leaves, dtypes and numbers."""
    leaves = flatten(params)
    assert leaves.keys() == wanted.keys()
    for path, leaf in leaves.items():
        assert leaf.dtype == wanted[path].dtype, path
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
