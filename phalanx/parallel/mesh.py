"""Workers as a grid of data x pipeline x tensor: the one place that checks the product."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True, slots=True)
class Mesh:
    """How many workers each way of cutting takes; `data * pipeline * tensor` is the size of the world."""

    data: int
    pipeline: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, world_size: int, *, data: int | None = None, pipeline: int = 1, tensor: int = 1) -> Mesh:
        """Return the mesh of a world; `data` is what is left over where it is not given.

        Raises:
            UserError: the product is not the world's size; says which numbers are.
        """
        for name, given in (("stages", pipeline), ("tensor", tensor), ("data", 1 if data is None else data)):
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {given!r}")
        model = pipeline * tensor
        found = world_size // model if data is None else data
        if found >= 1 and found * model == world_size:
            return cls(found, pipeline, tensor)
        what = " x ".join(
            part
            for part, wanted in (
                (f"{pipeline} stages", pipeline > 1),
                (f"{tensor} tensor ranks", tensor > 1),
                ("whole copies" if data is None else f"{data} copies", True),
            )
            if wanted
        )
        raise UserError(
            f"{world_size} workers cannot be {what}; give {_worlds(world_size, model, data)}{_ways(world_size, model)}"
        )


def _worlds(world_size: int, model: int, data: int | None) -> str:
    if data is not None:
        return f"{model * data} workers"
    below = world_size // model * model
    return " or ".join(str(size) for size in (below, below + model) if size) + " workers"


def _ways(world_size: int, model: int) -> str:
    divisors = [n for n in range(2, world_size + 1) if world_size % n == 0 and n != model]
    return f", or a model cut in {', '.join(map(str, divisors))}" if divisors else ""
