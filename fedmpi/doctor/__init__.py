"""``fedmpi doctor``: what this installation, machine and launch look like to fedmpi, and what would go wrong.

Everything here says what it found before it judges, works without an MPI library, and leaves nothing behind.
"""

from fedmpi.doctor.command import doctor

__all__ = ["doctor"]
