"""``densekd COMMAND``: find the command's file, run it, turn a user's error into one message and status 2."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings

from densekd.errors import NonFiniteError, UserError, first_line
from densekd.ops.files import disk_error
from densekd.ops.names import did_you_mean, printable

# command -> (file in this folder, what it does)
COMMANDS = {
    "demo": (
        "demo",
        "train a teacher on built-in scenes, distil it, show the table (minutes, on a CPU)",
    ),
    "train": ("train", "train one network alone"),
    "distill": ("distill", "train a student with a frozen teacher"),
    "evaluate": ("evaluate", "score a weights file on a split"),
    "predict": ("predict", "write a network's answers for images, as pictures and numbers"),
    "compare": ("compare", "show several networks' answers side by side, moving or still"),
    "export": ("export", "write a network as ONNX, OpenVINO, torch.export or TFLite, checked"),
    "latency": ("latency", "show what one image costs a network: parameters, MACs, milliseconds"),
    "ablate": ("ablate", "student alone, +Pi, +Pi+Pa, +Pi+Pa+Ho, or the values of one setting"),
    "doctor": ("doctor", "say what would stop or spoil a run on this machine, before it starts"),
    "report": ("report", "write one page of runs: scores, curves, images, costs, settings"),
    "watch": ("watch", "show a run in the browser while it trains"),
    "serve": ("serve", "try networks in the browser: student beside teacher on images you drop"),
    "bench": ("bench", "show where a training step spends its time"),
    "tune": ("tune", "find the fastest form of a recipe's step on this machine, by measuring"),
    "taps": ("taps", "list the tensors of a network that terms can compare"),
    "data": ("data", "check a data set; write the built-in scenes to disk"),
    "list": ("list", "models, losses, datasets, tasks or configs that have a name"),
    "config": ("config", "show or validate a recipe"),
    "completion": ("completion", "print the completion script of bash, zsh or fish"),
}


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [
        "usage: densekd COMMAND ...",
        "",
        "Distil a large dense predictor into a small fast one.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "densekd COMMAND --help explains a command; densekd --version prints the version.",
        "Any setting of a recipe can be given as --section.key VALUE (see densekd config show RECIPE).",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        import densekd

        print(densekd.__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        return fail(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}", 2)
    module = importlib.import_module(f"densekd.cli.{COMMANDS[name][0]}")
    leave_out_warnings()
    try:
        return module.command(rest)
    except NonFiniteError as error:
        return fail(str(error), 1)
    except UserError as error:
        return fail(str(error), 2, every_rank=error.one_rank)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(str(disk_error(error)), 2, every_rank=True)
    except RuntimeError as error:
        if lost := lost_process(error):
            return fail(lost, 1, every_rank=True)
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
            raise
        return fail(
            f"out of memory: {first_line(error)}\nLower data.batch_size (train.accumulate keeps the "
            "effective batch), data.crop or evaluate.batch_size, or set train.amp bf16.",
            1,
            every_rank=True,  # one process of several may be the only one that meets it
        )


# What gloo, NCCL and the store in which processes meet say when one of them has gone.
GONE = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Broken pipe|Timed out|timed out|remote process exited"
)


def lost_process(error: RuntimeError) -> str | None:
    """The message where an exchange failed because another process of the run has ended; None of another error."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not GONE.search(str(error)):
        return None
    rank = os.environ.get("RANK", "?")
    return (
        f"process {rank}: another process of this run has ended or cannot be reached "
        f"({first_line(error)[:200]}). Its own output says why; --resume goes on from the last checkpoint"
    )


# Libraries whose notes on their own future a user of densekd cannot act on.
LIBRARIES = (
    r"(torch|torchvision|timm|transformers|segmentation_models_pytorch|huggingface_hub)(\.|$)"
)


def leave_out_warnings() -> None:
    """Leave out what libraries tell their developers; `python -W default` or PYTHONWARNINGS shows everything."""
    if sys.warnoptions:
        return
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=LIBRARIES)


def fail(message: str, status: int, *, every_rank: bool = False) -> int:
    # Under torchrun every rank meets most errors; one message is enough.
    if every_rank or os.environ.get("RANK", "0") == "0":
        # Names in a message may be a stranger's: the terminal shows them and does not obey them.
        print(f"densekd: error: {printable(message, chr(10))}", file=sys.stderr)
    return status
