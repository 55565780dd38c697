"""What a measurement is, and what becomes of a program that is missing, hangs, answers nonsense or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gpuhost_exporter.errors import Hung, Malformed, SourceError
from gpuhost_exporter.sources.tools import Answer
from gpuhost_exporter.verify.result import Result

Waiting = Callable[[], object]  # called now and then while a program runs
ROOM_TO_HANG = 3.0  # times what it is planned to take, after which a program counts as hung


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user named: a folder to write in, a host on which perftest listens, a state directory."""

    folder: str | None = None
    peer: str | None = None
    storage: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """`seconds`: what it is planned to take."""

    name: str
    seconds: float
    run: Callable[[Waiting], Sequence[Result]]


Planned = Measurement | Result  # or why it is left out


class Failed(SourceError):
    """The program ended and says that it could not do its work."""

    kind = "failed"


def succeeded(program: str, answer: Answer) -> str:
    """Its output. Raises Failed."""
    if answer.status != 0:
        raise Failed(f"{program} ended with {answer.status}: {answer.complaint()}")
    return answer.output


@contextmanager
def attempt(check: str, device: str, results: list[Result]) -> Iterator[None]:
    """Turn what goes wrong into a result. To hang or to fail is the hardware's, or at least not for us to excuse."""
    try:
        yield
    except (Hung, Failed) as error:
        results.append(Result(check, device, "fail", why=str(error)))
    except Malformed as error:
        results.append(Result(check, device, "warn", why=f"answer not understood: {error}"))
    except SourceError as error:
        results.append(Result(check, device, "skipped", why=str(error)))
