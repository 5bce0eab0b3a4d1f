"""What the documents quote is what the code says, and what they tell to type is understood."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from prompt_tuning_jax.cli import main
from prompt_tuning_jax.config import KEYS, load

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
VALUE = "\0"  # stands where the code puts a value into a text


def skeletons():
    """Every text in the package, with `VALUE` for what is formatted into it."""
    found = set()
    for path in (ROOT / "prompt_tuning_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(map(text_of, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def text_of(part):
    return part.value if isinstance(part, ast.Constant) else VALUE


def quoted(path):
    """The lines of indented blocks, without their indentation."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if re.match(" {4,}[^ ]", line)]


def is_command(line):
    return "prompt-tuning" in line.split()


def said(message, texts):
    """Whether some text of the code can be `message`, in which … stands for anything."""
    message = re.sub("^(error|warning): ", "", message)
    pieces = [re.escape(piece) for piece in message.split("…")]
    # A value may be written out in the document, as a number that never changes.
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    return any(pattern.search(text) or fits(text, message) for text in texts)


def fits(text, message):
    """Whether `message` is `text` with its values filled in."""
    if VALUE not in text or len(text.replace(VALUE, "")) < 20:
        return False
    pattern = ".+".join(map(re.escape, text.split(VALUE)))
    return re.fullmatch(pattern, message, re.DOTALL) is not None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_message_that_is_quoted_is_in_the_code(path):
    texts = skeletons()
    messages = [line for line in quoted(path) if not is_command(line)]
    assert messages
    for message in messages:
        assert said(message, texts), message


def test_a_message_that_is_not_in_the_code_is_found_out():
    texts = skeletons()
    real = "error: the artifact is for the model …, and this is …: load the model"
    assert said(real, texts)
    assert not said(real.replace("load", "take"), texts)
    assert not said("error: 5 updates in a column", texts)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_is_understood(path):
    commands = [line for line in quoted(path) if is_command(line)]
    assert commands
    for line in commands:
        words = shlex.split(line)
        overrides, rest = main._split(words[words.index("prompt-tuning") + 1 :])
        command = main.program.commands[rest[0]]
        context = command.make_context(rest[0], rest[1:], obj=overrides)
        if "config_path" in context.params:
            load(str(ROOT / context.params["config_path"]), overrides)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_key_that_is_named_is_one(path):
    text = path.read_text(encoding="utf-8")
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.\w+)", text))
    assert named and named <= KEYS.keys(), named - KEYS.keys()
    for word in re.findall(r"--config\.([\w.]+)=?", text):
        assert word in KEYS, word
    for option in set(re.findall(r"--[a-z_]+(?=[^.a-z_])", text)) - {"--upgrade"}:
        options = {
            name for each in main.program.commands.values() for p in each.params for name in p.opts
        }
        assert option in options | {"--config"}, option
