"""SLURM: batch scripts for runs, as text; a pure function, that submits nothing."""

from fedmpi.slurm.options import JobOptions, option_names, options
from fedmpi.slurm.script import script

__all__ = ["JobOptions", "option_names", "options", "script"]
