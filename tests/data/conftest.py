"""Small byte-level tokenizers, and the headlines with their tokenizer."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer, read_tokenizer

LINES = [
    "Headline: Claxton hunting first major medal\nTopic: sports",
    "Headline: Ad sales boost Time Warner profit\nTopic: business",
    "Headline: Musicians to tackle US red tape\nTopic: entertainment",
    "Headline: Labour plans maternity pay rise\nTopic: politics",
    "Headline: Ink helps drive democracy in Asia\nTopic: technology",
    "The text is {text} with a {soft} slot; the naïve café, Привет, 日本語, 🙂🙂",
    "Question: is it good? Answer: yes no maybe great terrible",
] * 4


class Trimmed:
    """A tokenizer with the same ids, whose offsets leave out the space in front of a word."""

    def __init__(self, tokenizer: Tokenizer):
        self.specials, self.bos_id = tokenizer.specials, tokenizer.bos_id
        self.particular, self.embeddings = tokenizer.particular, tokenizer.embeddings
        self.library = tokenizers.Tokenizer.from_str(tokenizer.library.to_str())
        self.library.post_processor = processors.ByteLevel(trim_offsets=True)
        self.library.encode_special_tokens = True

    def encode(self, text, *, continues=False):
        encoding = self.library.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets


def train(**splitting) -> Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **splitting)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    facts = Facts(bos=0, eos=1, pad=1, add_bos=False, chat_template=None)
    return Tokenizer(json.loads(library.to_str()), facts)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train()


@pytest.fixture(scope="session")
def unsplit() -> Tokenizer:
    """A tokenizer with tokens such as `: s` that reach from one word into the next."""
    return train(use_regex=False)


@pytest.fixture(scope="session")
def trimmed(tokenizer) -> Trimmed:
    return Trimmed(tokenizer)


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    return read_tokenizer("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def bbc_config():
    return configs.load(None).task
