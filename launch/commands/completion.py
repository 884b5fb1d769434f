"""`pointsman completion SHELL`: the script that lets a shell complete commands, options, settings and runs."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    add_completion_class,
    get_completion_class,
    shell_complete,
    split_arg_string,
)

from launch.commands.kinds import define

VARIABLE = "_POINTSMAN_COMPLETE"  # set by the scripts when they ask
SHELLS = ("bash", "zsh", "fish")


@add_completion_class
class Bash(BashComplete):
    """Bash, which cuts words at `=` and is told where no blank is to follow.

    COMP_WORDS is the line up to the cursor, whole; what Bash has cut off a word is cut off the answer by the script.
    """

    name = "bash"
    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' item value
    COMPREPLY=()
    for item in $(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "$1"); do
        value=${item#*,}
        case $item in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            *)
                [[ $value == *[=.] ]] && compopt -o nospace
                [[ $COMP_WORDBREAKS == *=* && $value == *=?* ]] && value=${value##*=}
                COMPREPLY+=("$value")
                ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        at_new_word = line[-1:].isspace() or int(os.environ.get("COMP_CWORD", "0")) >= len(words)
        return (words[1:], "") if at_new_word else (words[1:-1], words[-1])


def complete(group: click.Command, instruction: str) -> int:
    """Answer a shell, or print its script; `instruction` is such as bash_source or bash_complete."""
    return shell_complete(group, {}, "pointsman", VARIABLE, instruction)


@define(
    notes="""\
    bash  add to ~/.bashrc:  eval "$(pointsman completion bash)"
    zsh   add to ~/.zshrc:   eval "$(pointsman completion zsh)"
    fish  once:              pointsman completion fish > ~/.config/fish/completions/pointsman.fish""",
)
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL", help=f"the shell: {', '.join(SHELLS)}")
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print the script that lets a shell complete commands, options, settings, presets and runs."""
    script = get_completion_class(shell)
    assert script is not None, "click knows all of SHELLS"
    print(script(ctx.find_root().command, {}, "pointsman", VARIABLE).source(), end="")
    return 0
