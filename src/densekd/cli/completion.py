"""``densekd completion``: a script that completes commands, options, settings and names when Tab is pressed."""

from __future__ import annotations

import importlib
import io
import re
from contextlib import redirect_stdout, suppress
from typing import Literal

import tyro

from densekd.cli.arguments import parse
from densekd.config.load import list_configs, setting_names
from densekd.config.names import MODELS

OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)(?![\w.-])")
# What may follow a command, besides files.
RECIPES = ("train", "distill", "evaluate", "ablate", "bench", "data check", "data shard", "taps")
WORDS = {
    "list": "models losses datasets tasks configs",
    "data": "check shard synthesize",
    "config": "show validate",
    "completion": "bash zsh fish",
}

BASH = """# densekd: completion for bash and zsh. In ~/.bashrc or ~/.zshrc: eval "$(densekd completion bash)"
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_densekd() {
  local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="%(commands)s"
  else
    case "$command" in
%(cases)s
    esac
    case "$word" in
      --*.*) words="%(settings)s" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  case "$word" in
    -*) ;;
    *) [ "$COMP_CWORD" -gt 1 ] && COMPREPLY+=($(compgen -f -- "$word")) ;;
  esac
}
complete -o filenames -F _densekd densekd
"""


def command(arguments: list[str]) -> int:
    def completion(shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]) -> int:
        """Print the shell's completion of densekd: commands, options, settings, recipes and networks.

        bash and zsh: eval "$(densekd completion bash)" in ~/.bashrc or ~/.zshrc.
        fish: densekd completion fish > ~/.config/fish/completions/densekd.fish

        Args:
            shell: bash, zsh or fish.
        """
        print(fish() if shell == "fish" else bash(), end="")
        return 0

    return parse(completion, "completion", arguments)


def words_of() -> dict[str, list[str]]:
    """Command -> what may follow it: its options as --help has them, and its names."""
    from densekd.cli.main import COMMANDS  # which finds this file by its name

    found = {}
    for name, (file, _) in COMMANDS.items():
        subs = [f"{name} {word}" for word in WORDS["data"].split()] if name == "data" else [name]
        words: list[str] = []
        for sub in subs:
            words += OPTION.findall(help_of(file, sub.split()[1:]))
        words += WORDS.get(name, "").split()
        if name in RECIPES or name in ("config", "data"):
            words += [recipe.removesuffix(".yaml") for recipe in list_configs()]
        if name == "taps":
            words += MODELS
        found[name] = list(dict.fromkeys([*words, "--help"]))
    return found


def help_of(file: str, words: list[str]) -> str:
    """What a command prints for --help."""
    text = io.StringIO()
    module = importlib.import_module(f"densekd.cli.{file}")
    with redirect_stdout(text), suppress(SystemExit):
        module.command([*words, "--help"])
    return text.getvalue()


def bash() -> str:
    words = words_of()
    cases = [f'      {name}) words="{" ".join(words[name])}" ;;' for name in words]
    return BASH % {
        "commands": " ".join([*words, "--help", "--version"]),
        "cases": "\n".join(cases),
        "settings": " ".join(f"--{name}" for name in setting_names()),
    }


def fish() -> str:
    from densekd.cli.main import COMMANDS

    lines = ["# densekd: completion for fish. Write it to ~/.config/fish/completions/densekd.fish"]
    for name, (_, text) in COMMANDS.items():
        lines.append(f"complete -c densekd -n __fish_use_subcommand -f -a {name} -d '{text}'")
    for name, words in words_of().items():
        here = f"complete -c densekd -n '__fish_seen_subcommand_from {name}'"
        plain = [word for word in words if not word.startswith("--")]
        if plain:
            lines.append(f"{here} -a '{' '.join(plain)}'")
        lines += [f"{here} -l {word[2:]}" for word in words if word.startswith("--")]
    lines += [f"complete -c densekd -l {name}" for name in setting_names()]
    return "\n".join(lines) + "\n"
