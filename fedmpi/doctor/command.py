"""``fedmpi doctor``: the command itself; its help imports neither torch nor mpi4py."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("doctor")
@click.argument("config", required=False, metavar="[CONFIG]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, as for train.")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder that a run would get.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--trial/--no-trial", default=True, show_default=True, help="Try mpirun with some small processes.")
@click.pass_context
def doctor(
    ctx: click.Context, config: str | None, overrides: tuple[str, ...], out: Path | None, *, as_json: bool, trial: bool
) -> None:
    """Look at installation, machine, MPI and run folder, and say what would go wrong.

    Takes what train takes, and looks at the run that this would describe. Alone it tries mpirun as well; started
    through mpirun or srun it looks at every rank. Exit code 1 when something would fail.
    """
    from fedmpi.config import load_config  # noqa: PLC0415 - help stays fast
    from fedmpi.doctor.examination import Question, examine  # noqa: PLC0415
    from fedmpi.doctor.rendering import as_text_or_json  # noqa: PLC0415
    from fedmpi.doctor.world import outer_rank  # noqa: PLC0415

    arguments = [*([config] if config else []), *(word for value in overrides for word in ("--set", value))]
    arguments += ["--out", str(out)] if out else []
    comm, examination = examine(Question(load_config(config, overrides), out, tuple(arguments), trial))
    code = 0
    if examination is not None:
        code = examination.code
        if outer_rank() == 0:
            click.echo(as_text_or_json(examination, wants_json=as_json))
    if comm is not None and comm.size > 1:
        from fedmpi.doctor.together import tell  # noqa: PLC0415 - needs MPI

        code = tell(comm, code)
    ctx.exit(code)
