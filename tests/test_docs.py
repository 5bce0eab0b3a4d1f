"""The messages that the documents quote are in the code, and their commands and keys exist."""

import ast
import re
import shlex
from pathlib import Path

from prompt_tuning_jax.cli import main
from prompt_tuning_jax.cli.words import split_overrides
from prompt_tuning_jax.config import load
from prompt_tuning_jax.config.schema import all_keys

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
VALUE = "\0"  # stands where the code puts a value into a text


def skeletons():
    """Every text in the package, with `VALUE` for each value that is formatted into it."""
    found = set()
    for path in (ROOT / "prompt_tuning_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.add("".join(part if isinstance(part, str) else VALUE for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def quoted():
    """The lines of indented blocks, but not of fenced code: commands, and messages."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    text = re.sub("^```.*?^```", "", "\n".join(texts), flags=re.DOTALL | re.MULTILINE)
    lines = re.findall("^ {4,}([^ ].*)", text, re.MULTILINE)
    commands = [line for line in lines if "prompt-tuning" in line.split()]
    return commands, [line for line in lines if line not in commands]


def said(message, texts):
    """Whether some text of the code can be `message`, in which … stands for anything, or its parts
    between colons are texts of the code."""
    message = re.sub("^(error|warning): ", "", message)
    problem, _, advice = message.partition(": ")
    if advice and said(problem, texts) and said(advice, texts):
        return True
    pieces = [re.escape(piece.strip()) for piece in message.split("…")]
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    return any(pattern.search(text) or fits(text, message) for text in texts)


def fits(text, message):
    """Whether `message` is `text` with its values filled in, such as a number that is constant."""
    if VALUE not in text or len(text.replace(VALUE, "")) < 20:
        return False
    pattern = ".+".join(map(re.escape, text.split(VALUE)))
    return re.fullmatch(pattern, message, re.DOTALL) is not None


def test_every_quoted_message_is_in_the_code():
    texts, (_, messages) = skeletons(), quoted()
    assert len(messages) > 20
    assert [message for message in messages if not said(message, texts)] == []


def test_every_command_is_understood():
    commands, _ = quoted()
    assert len(commands) > 10
    for line in commands:
        words = shlex.split(line)
        overrides, rest = split_overrides(
            words[words.index("prompt-tuning") + 1 :], main.program.commands
        )
        command = main.program.commands[rest[0]]
        context = command.make_context(rest[0], rest[1:], obj=overrides)
        if context.params.get("config"):
            load(str(ROOT / context.params["config"]), overrides)


def test_every_key_and_option_exists():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    keys = all_keys().keys()
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.\w+)[`=]", text))
    named |= set(re.findall(r"--config\.([\w.]+\w)", text)) - {"KEY"}
    assert len(named) > 10 and named <= keys, named - keys
    commands = (main.program, *main.program.commands.values())
    options = {name for each in commands for option in each.params for name in option.opts}
    # Lines of other programs are in blocks of their own.
    text = re.sub(r"```(sh|yaml)\n.*?```", "", text, flags=re.DOTALL)
    found = set(re.findall(r"(?<!\w)--[a-z_]+(?=[^.a-z_])", text))
    found -= {"--upgrade", "--help", "--local"}  # of other programs
    assert found <= options, found - options
