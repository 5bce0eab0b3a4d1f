"""Small tokenizers of the kinds that models have, trained here, as folders and as GGUF files."""

import json
from pathlib import Path

import gguf
import tiny_models
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# The rest of the patterns of Qwen 2 (single digits) and Llama 3 (up to three).
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str):
    pattern = tokenizers.Regex(WORDS + digits + REST)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), level])


def _byte_level(library, pre_tokenizer, normalizer=None):
    library.pre_tokenizer, library.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        library.normalizer = normalizer
    return {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}


def _spaces(library, prefix: str):
    """Gemma writes a space as a sign in its normalizer, Llama 2 with one more in front."""
    first = [normalizers.Prepend(prefix)] if prefix else []
    library.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    read = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*read, *([decoders.Strip(" ", 1)] if prefix else [])])
    # Merges stay inside words, as SentencePiece trains them, so that training takes no time.
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    return {"special_tokens": [*SPECIALS, *BYTES]}


def _make(kind: str) -> tuple[tokenizers.Tokenizer, type, dict]:
    spaced = {"fuse_unk": True, "byte_fallback": True, "unk_token": "<unk>"}
    model = models.BPE(**spaced if kind in ("llama 2", "gemma") else {})
    if kind == "unigram":
        model = models.Unigram()
    elif kind == "wordpiece":
        model = models.WordPiece(unk_token="<unk>")
    library, trainer = tokenizers.Tokenizer(model), trainers.BpeTrainer
    if kind == "gpt-2":
        more = _byte_level(library, pre_tokenizers.ByteLevel(add_prefix_space=False))
    elif kind == "smollm":
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        more = _byte_level(library, pre_tokenizers.Sequence([digits, level]))
    elif kind == "qwen2":
        more = _byte_level(library, _split(r"\p{N}"), normalizers.NFC())
    elif kind == "llama-bpe":
        more = _byte_level(library, _split(r"\p{N}{1,3}"))
    elif kind in ("llama 2", "gemma"):
        more = _spaces(library, "▁" if kind == "llama 2" else "")
    elif kind == "unigram":
        library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer, more = trainers.UnigramTrainer, {"unk_token": "<unk>"}
    else:
        library.normalizer = normalizers.BertNormalizer()
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer, more = trainers.WordPieceTrainer, {}
    return library, trainer, more


# The class that a folder names, and what its processor puts in front and behind.
KINDS = {
    "gpt-2": ("GPT2Tokenizer", "", ""),
    "smollm": ("GPT2Tokenizer", "", ""),
    "qwen2": ("Qwen2Tokenizer", "", ""),
    "llama-bpe": ("PreTrainedTokenizerFast", "<s>", ""),
    "llama 2": ("LlamaTokenizer", "<s>", ""),
    "gemma": ("GemmaTokenizer", "<s>", ""),
    "unigram": ("T5Tokenizer", "", "</s>"),
    "wordpiece": ("BertTokenizer", "<s>", "</s>"),
}


def train(kind: str, lines, size: int = 900) -> tokenizers.Tokenizer:
    """Returns a tokenizer of a kind with the vocabulary of some lines."""
    library, trainer, more = _make(kind)
    settings = {"special_tokens": SPECIALS, "show_progress": False, "vocab_size": size} | more
    library.train_from_iterator(lines, trainer(**settings))
    if kind in ("llama 2", "gemma"):
        library.pre_tokenizer = None
        content = json.loads(library.to_str())  # bytes are no special tokens
        content["added_tokens"] = content["added_tokens"][: len(SPECIALS)]
        library = tokenizers.Tokenizer.from_str(json.dumps(content))
    _, front, behind = KINDS[kind]
    if front or behind:
        named = [(token, SPECIALS.index(token)) for token in (front, behind) if token]
        parts = " ".join(filter(None, (front, "$A", behind)))
        library.post_processor = processors.TemplateProcessing(single=parts, special_tokens=named)
    return library


def write_folder(folder: Path, kind: str, lines, **named) -> Path:
    """Writes a folder of a tiny model with such a tokenizer."""
    tiny_models.write_folder(folder)
    train(kind, lines).save(str(folder / "tokenizer.json"))
    tokens = dict(zip(("unk", "bos", "eos", "pad"), SPECIALS, strict=True))
    tokens = {f"{name}_token": token for name, token in tokens.items()}
    if kind == "wordpiece":
        tokens |= {"cls_token": "<s>", "sep_token": "</s>"}
    named = {"tokenizer_class": KINDS[kind][0], **tokens, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def write_gguf(path: Path, folder: Path, kind: str) -> Path:
    """Writes the tokenizer of a folder as a GGUF file of a model without tensors."""
    content = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    spaced = kind in ("llama 2", "gemma")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama" if spaced else "gpt2")
    writer.add_token_list(tokens)
    special = [2 if token == "<unk>" else 3 for token in SPECIALS]
    kinds = [*special, *[6 if token in BYTES else 1 for token in tokens[len(SPECIALS) :]]]
    writer.add_token_types(kinds)
    if spaced:
        ranks = {merge.replace(" ", ""): -float(n) for n, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([ranks.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(kind == "llama 2")
    else:
        writer.add_tokenizer_pre(kind)
        writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
