"""`pgolf`: the verbs. Each is a file of `search.commands` and imported when it is called, so `--help` is instant."""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from typing import NoReturn

import click

from pgolf_model.errors import UserError

COMMANDS = {
    "data": "Build, fetch and check token shards.",
    "list": "List spaces, presets, built-in studies and runs.",
    "init": "Print a built-in study as a file of your own.",
    "size": "Predict an artifact's bytes before training.",
    "doctor": "Check data, environment and this machine's speed before paying.",
    "trial": "Train, pack and score one configuration.",
    "search": "Run a study, or go on with one.",
    "stop": "Stop the process that runs a study.",
    "ablate": "Compare one-knob changes with the control on paired seeds.",
    "status": "Show how far a study is.",
    "show": "Show one trial against the control, with the end of its log.",
    "judge": "Accept or reject a score that was too good to believe.",
    "pareto": "Write the page with bpb against bytes.",
    "quantize": "Pack one checkpoint to any sizes and score each.",
    "export": "Write the best trial as a submission folder.",
    "verify": "Run a submission folder and recount everything it claims.",
    "evaluate": "Score an artifact or a submission on any shards.",
}
FUNCTIONS = {"list": "list_"}  # verbs whose function needs another name than the verb


class LazyGroup(click.Group):
    """A group whose commands are imported on first use; their one-line help is known without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"search.commands.{cmd_name}")
        command: click.Command = getattr(module, FUNCTIONS.get(cmd_name, cmd_name))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pgolf")
def cli() -> None:
    """Search Parameter Golf: the best language model whose code and weights fit in 16,000,000 bytes.

    \b
    Launch a study, look at its Pareto front, export its best trial:
      pgolf data build --builtin --out data/builtin
      pgolf search demo.toml
      pgolf pareto demo
      pgolf export demo --out submission
      pgolf verify submission
    """


def main() -> None:
    """Entry point: what the user can mend is one clear message, a fault of ours is a traceback."""
    try:
        code = cli.main(standalone_mode=False)  # what ctx.exit() said, or what the command returned
    except click.Abort:
        raise SystemExit(130) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        _fail(error)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            place = error.filename or "while writing"
            _fail(UserError(f"no space left on the device ({place})", hint="free some and run it again"))
        _fail(UserError(str(error)))
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(error: UserError) -> NoReturn:
    """Print what is wrong and, on a line of its own, what to do."""
    print(error.lines(), file=sys.stderr)
    raise SystemExit(error.exit_code)


if __name__ == "__main__":
    main()
