"""Text to ids and back: the model's own tokenizer, from GGUF metadata or a Hugging Face folder."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import processors

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.files import gguf as gguf_file
from prompt_tuning_jax.models.files.weights import locate, read_json

MOST_GROWTH = 1000  # characters that a file's replacements may make of one
CONTROL, USER_DEFINED = 3, 4  # GGUF's token types that are matched whole in a text

LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
SPACE = "\u2581"  # how SentencePiece writes one


class Splitting(NamedTuple):
    """How a byte-level vocabulary cuts text before merging, and whether a word that is in the
    vocabulary is taken whole; BOS is added where the file does not say."""

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    add_bos: bool = False


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": True,
}
# By `tokenizer.ggml.pre`.
SPLITTINGS = {
    "smollm": Splitting(single_digits=True),
    "gpt-2": Splitting(),
    "llama-bpe": Splitting(LLAMA3_PATTERN, whole_words=True, add_bos=True),
}


class Facts(NamedTuple):
    """What a tokenizer's files say beside its vocabulary; `add_bos` None: its processor decides."""

    bos: str | int | None
    eos: str | int | None
    pad: str | int | None
    add_bos: bool | None
    chat_template: str | None


class Tokenizer:
    """A model's tokenizer. Text never becomes a special token, whatever it spells.

    Attributes:
      size: how many ids there are; a model may have embeddings for more.
      highest: the largest id that a text, its beginning or its end can have.
      embeddings: how many the model has, None where no model is known: a template may name a
        special token that has none.
      specials: markup to id, e.g. '<|im_start|>': 1.
      particular: of these, by markup, what takes the white space beside it (`lstrip`, `rstrip`) or
        is itself only as a word of its own (`single_word`).
      bos_id, eos_id, pad_id: None where the model has none.
      add_bos: whether the model's own tokenizer puts BOS in front of a text.
      chat_template: the jinja source, None where there is none.
      fingerprint: SHA-256 of all that decides about ids, the same on every version of the library.
    """

    def __init__(self, vocabulary: Mapping[str, Any], facts: Facts):
        """Takes a parsed `tokenizer.json` and the facts beside it."""
        for step in ("normalizer", "decoder"):
            if growth(vocabulary.get(step)) > MOST_GROWTH:
                raise ValueError(f"its {step} makes over {MOST_GROWTH} characters of one")
        words = vocabulary.get("model")
        if isinstance(words, dict) and words.get("dropout") is not None:
            # Left from the tokenizer's training: merges left out at random.
            vocabulary = {**vocabulary, "model": {**words, "dropout": None}}
        self.library = tokenizers.Tokenizer.from_str(json.dumps(vocabulary))
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = True
        self.bos_id, self.eos_id, self.pad_id = (
            self.library.token_to_id(token) if isinstance(token, str) else token
            for token in (facts.bos, facts.eos, facts.pad)
        )
        added_front = front(self.library) if facts.add_bos is None else []
        if len(added_front) == 1 and (self.bos_id is None or isinstance(facts.bos, int)):
            self.bos_id = added_front[0]  # transformers does not heed config.json either
        if added_front not in ([], [self.bos_id]):
            raise ValueError(
                f"its post_processor puts {short(added_front)} in front of a text, expected at "
                f"most the BOS token, {self.bos_id}: change the one or the other"
            )
        self.size = self.library.get_vocab_size()
        for number in (self.bos_id, self.eos_id, self.pad_id):
            if number is not None and number >= self.size:
                raise ValueError(f"it names id {number} and has {self.size}")
        add_bos = bool(added_front) if facts.add_bos is None else facts.add_bos
        self.add_bos: bool = add_bos and self.bos_id is not None
        self.chat_template = facts.chat_template
        added = self.library.get_added_tokens_decoder().items()
        self.specials = {token.content: number for number, token in added if token.special}
        self.particular = {
            token.content: token
            for _, token in added
            if token.special and (token.lstrip or token.rstrip or token.single_word)
        }
        ends = [number for number in (self.bos_id, self.eos_id) if number is not None]
        words = self.library.get_vocab().items()
        spelled = [number for token, number in words if token not in self.specials]
        self.embeddings: int | None = None
        self.highest = max([*spelled, *ends], default=0)
        # A processor that adds nothing: others add BOS, or trim the space off a token's offsets.
        self.library.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        decisive = [vocabulary, self.bos_id, self.eos_id, self.pad_id, self.add_bos]
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self.inside = self.library
        steps = vocabulary.get("pre_tokenizer")
        if without_first(steps) != steps:
            changed = {**json.loads(self.library.to_str()), "pre_tokenizer": without_first(steps)}
            self.inside = tokenizers.Tokenizer.from_str(json.dumps(changed))
            self.inside.encode_special_tokens = True

    def encode(
        self, text: str, *, continues: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and where each begins and ends in it, in characters.

        Where several tokens make one character, each has that character's offsets.

        Args:
          text: what to cut.
          continues: whether it stands behind another text or a special token: some tokenizers put a
            space in front of what begins, and of that alone.
        """
        library = self.inside if continues else self.library
        with panics(f"a text of {len(text)} characters cannot be cut into tokens"):
            encoding = library.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special ones spelled out; bytes that are not UTF-8 become U+FFFD."""
        with panics(f"{len(ids)} tokens cannot be turned into text"):
            return self.library.decode(list(ids), skip_special_tokens=False)


@contextlib.contextmanager
def panics(what: str) -> Iterator[None]:
    """Turns what the library raises, a plain Exception, or a panic as of a pattern that needs too
    long, into a UserError."""
    try:
        yield
    except BaseException as error:  # which a panic is, of a class that cannot be imported
        if type(error).__name__ not in ("Exception", "PanicException"):
            raise
        raise UserError(
            f"{what}: the model's tokenizer.json is at fault ({reason(error)})."
        ) from error


def reason(error: BaseException) -> str:
    """What the library says, which may be all of a damaged file."""
    return repr(str(error)[:200])[1:-1]


def front(library: tokenizers.Tokenizer) -> list[int]:
    """What a tokenizer's processor puts in front of a text."""
    encoding = library.encode("a")
    added = encoding.special_tokens_mask
    return encoding.ids[: added.index(0)] if 0 in added else []


def without_first(part: Any) -> Any:
    """A part of a `tokenizer.json` whose steps put no space in front of a text that begins."""
    if isinstance(part, list):
        return [without_first(inside) for inside in part]
    if not isinstance(part, dict):
        return part
    never = {"prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else {}
    return {key: without_first(inside) for key, inside in part.items()} | never


def growth(part: Any) -> int:
    """How many characters the replacements in a part of a `tokenizer.json`, which may follow one
    another, make of one; not counted beyond `MOST_GROWTH`."""
    made = 1
    if isinstance(part, dict):
        content = part.get("content")
        made = max(len(content), 1) if isinstance(content, str) else 1
        part = list(part.values())
    for inside in part if isinstance(part, list) else ():
        made = min(made * growth(inside), MOST_GROWTH + 1)
    return made


def read(path: str) -> Tokenizer:
    """Reads the tokenizer of a model.

    Args:
      path: as for `weights.read`.

    Raises:
      UserError: the model is missing, or its tokenizer is missing, damaged or not supported.
    """
    found = locate(path)
    vocabulary, facts = from_folder(found) if found.is_dir() else from_gguf(found)
    wrong = f"the tokenizer of '{path}' cannot be read"
    try:
        with panics(wrong):
            return Tokenizer(vocabulary, facts)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{wrong}: {reason(error)}.") from error


def from_folder(folder: Path) -> tuple[dict[str, Any], Facts]:
    """What `tokenizer.json`, `tokenizer_config.json` and `config.json` say, and what earlier
    versions kept in `special_tokens_map.json`."""
    vocabulary = read_json(folder / "tokenizer.json")
    named, model, earlier = (
        read_json(folder / file) if (folder / file).exists() else {}
        for file in ("tokenizer_config.json", "config.json", "special_tokens_map.json")
    )
    if "added_tokens_decoder" not in named:
        named = {**named, **earlier}
    if rebuilt_as_llama(folder, vocabulary, named, model):
        vocabulary = as_llama(vocabulary, named)
    return vocabulary, Facts(
        bos=special(named, model, "bos"),
        eos=special(named, model, "eos"),
        pad=special(named, model, "pad"),
        add_bos=None,  # as transformers: what tokenizer_config.json says of it is not heeded
        chat_template=read_template(folder, named),
    )


def rebuilt_as_llama(
    folder: Path, vocabulary: Mapping[str, Any], named: Mapping[str, Any], model: Mapping[str, Any]
) -> bool:
    """Whether transformers 5 takes the vocabulary alone of this `tokenizer.json`."""
    kind = named.get("tokenizer_class") or model.get("tokenizer_class")
    words = vocabulary.get("model")
    if kind not in LLAMA_CLASSES or not isinstance(words, dict):
        return False
    merged = {"vocab", "merges"} <= words.keys()
    return merged and b'"ByteLevel"' not in (folder / "tokenizer.json").read_bytes()


def as_llama(vocabulary: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` with the steps of transformers' LlamaTokenizer, whatever its own are: it
    puts a space in front of a text, of what follows a special token too where it is `legacy`."""
    spaced = named.get("add_prefix_space")
    scheme = "always" if named.get("legacy") else "first"
    scheme = scheme if spaced or spaced is None else "never"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    words = {key: vocabulary["model"][key] for key in ("vocab", "merges")}
    return {
        **vocabulary,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "fuse_unk": True, "byte_fallback": True, **words},
    }


def special(named: Mapping[str, Any], model: Mapping[str, Any], kind: str) -> str | int | None:
    """BOS, EOS or padding: the token that the tokenizer's config names, or the model's id."""
    token = named.get(f"{kind}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
        return token
    number = model.get(f"{kind}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if type(number) is int and number >= 0 else None


def read_template(folder: Path, named: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, a string, or the one called 'default' in a list."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    template = named.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        named_so = [entry for entry in entries if entry.get("name") == "default"]
        template = named_so[-1].get("template") if named_so else None
    return template if isinstance(template, str) else None


def from_gguf(path: Path) -> tuple[dict[str, Any], Facts]:
    """A `tokenizer.json` made of a GGUF file's fields."""
    fields = gguf_file.read(path).fields
    model, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(cut) if isinstance(cut, str) else None
    if model != "gpt2" or splitting is None:
        raise UserError(
            f"{path} has a tokenizer of model {short(model)} that splits text as {short(cut)}; "
            f"supported: model 'gpt2' that splits as {', '.join(SPLITTINGS)}; use the Hugging Face "
            "folder."
        )
    tokens, merges, kinds = (
        fields.get(f"tokenizer.ggml.{key}", []) for key in ("tokens", "merges", "token_type")
    )
    if not all(isinstance(part, list) for part in (tokens, merges, kinds)) or not tokens:
        raise UserError(f"{path} has a tokenizer without a list of tokens, merges or token types.")
    vocabulary = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": bool(kind == CONTROL),
            }
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitting_steps(splitting)},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": splitting.whole_words,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    prefix, template = "tokenizer.ggml.", fields.get("tokenizer.chat_template")
    named = {key.removeprefix(prefix): value for key, value in fields.items()}
    return vocabulary, Facts(
        bos=special({}, named, "bos"),
        eos=special({}, named, "eos"),
        pad=special({}, named, "padding"),
        add_bos=bool(fields.get("tokenizer.ggml.add_bos_token", splitting.add_bos)),
        chat_template=template if isinstance(template, str) else None,
    )


def splitting_steps(splitting: Splitting) -> list[dict[str, Any]]:
    """The pre-tokenizers, in turn, as `tokenizer.json` spells them."""
    steps: list[dict[str, Any]] = []
    if splitting.single_digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if splitting.pattern:
        pattern = {"Regex": splitting.pattern}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    return [*steps, {**BYTE_LEVEL, "use_regex": splitting.pattern is None}]
