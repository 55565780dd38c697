"""Checkpoints, found by what a job does: it writes, or copies out of its GPUs, while they stand.

One Watch a job. It is led along the time that is being settled, a few seconds behind the present, and may look at
everything up to the present: what has begun is known to be a checkpoint, if it is one, before it is booked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gpuhost_exporter.ledger.network import Networks
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds

Mode = Literal["sync", "async", "remote"]
UNKNOWN_MOUNT = "unknown"
_BLOCKED_SECONDS = 30.0  # for so long after its last bytes a writer in D makes up for what is no checkpoint yet
_BLIND_SECONDS = 30.0  # nothing is told of a job's GPUs while a reader is replaced: that is no end
_TAIL_SHARE = 0.1
_SLOW_SHARE = 0.4  # of the rate that makes one: to slow storage, and more than a job logs
_FAR = 3.0  # times its usual idle share, or half the way from it to all: then a GPU stands
_CALL_SECONDS = 10.0  # a write that was under way when its job was first seen may take so long to be counted, whole
_USUAL_SECONDS = 60.0  # what a job writes all the time is learned over so long
_SENT_SECONDS = 1.0  # at the rate of an upload: so much has to be sent
_UNSENT_SECONDS = 1.5  # copies after which so long nothing was sent are no upload


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that is over. `stalled` is the part of its duration for which GPUs stood; `gpu_seconds` what that cost.
    `whole`: its beginning was seen; else its duration, bytes and mode are of a remnant."""

    job: str
    mount: str
    mode: Mode
    started: float
    seconds: float
    stalled: float
    bytes: float
    gpu_seconds: float
    name: str = ""  # as its process marked it
    whole: bool = True

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class _Episode:
    """Under observation; a checkpoint once `known`."""

    started: float
    active: float  # until when it has done something
    wrote_at: float
    blind: float = 0.0  # seconds since `active` of which nothing is told
    head: float = 0.0  # seconds at the start of its first stretch for which the GPUs still worked
    tail: float = 0.0  # and at the end of its last one, for which they worked again
    known: bool = False
    fast: bool = False  # it has copied, or written at the rate that makes one; else the GPUs must stand throughout
    whole: bool = True
    told: bool = False  # the job's bytes are known
    stalls: list[tuple[float, float]] = field(default_factory=list)
    stalled: float = 0.0
    wrote_stalled: float = 0.0
    wrote_beside: float = 0.0  # while the GPUs worked
    made: float = 0.0  # in all, without what was only copied
    copied: float = 0.0
    sent: float = 0.0
    mounts: dict[str, float] = field(default_factory=dict)
    gpu_seconds: float = 0.0


class Watch:
    def __init__(self, job: str, limits: Thresholds) -> None:
        self.job = job
        self._limits = limits
        self._episode: _Episode | None = None
        self._usual = 0.0  # bytes per second that the job writes while it trains
        self._stood_since: float | None = None  # its GPUs, without a break
        self._known_since: float | None = None  # its GPUs have been told of, and its processes
        self._heard = False
        self._seen_working = False

    @property
    def running_since(self) -> float | None:
        """When the checkpoint in progress began; None while there is none."""
        episode = self._episode
        return episode.started if episode and episode.known else None

    @property
    def running(self) -> tuple[str, Mode] | None:
        """Mount and mode of the checkpoint in progress, as far as it has come; None while there is none."""
        episode = self._episode
        if episode is None or not episode.known:
            return None
        mode = self._mode(episode)
        if mode == "remote" and episode.active - episode.started < self._limits.checkpoint_quiet_seconds:
            mode = "sync"  # what is copied out first is often written next
        return UNKNOWN_MOUNT if mode == "remote" else last_mount(episode.mounts, episode.made), mode

    @property
    def may_upload(self) -> bool:
        """Whether it matters what the host's network adapters send: there are copies, and files have not got them."""
        episode = self._episode
        return episode is not None and episode.copied > 0 and episode.made < self._limits.checkpoint_bytes

    def covers(self, since: float, at: float) -> bool:
        """Whether the job stood for a checkpoint at some moment of that stretch."""
        episode = self._episode
        if episode is None or not episode.known:
            return False
        return any(begin < at and since < end for begin, end in episode.stalls)

    def cost(self, gpu_seconds: float) -> None:
        """Time that was booked to the checkpoint in progress."""
        if self._episode:
            self._episode.gpu_seconds += gpu_seconds

    def interrupt(self) -> Checkpoint | None:
        """Go by what the job marks from now on. Returns the checkpoint that was in progress."""
        episode, self._episode = self._episode, None
        return self._closed(episode) if episode and episode.known else None

    def advance(
        self,
        since: float,
        at: float,
        pieces: Sequence[Sequence[Piece]],
        works: Sequence[Work],
        networks: Networks | None = None,
        *,
        starting: bool = False,
        blind: bool = False,
    ) -> Checkpoint | None:
        """Go on from one moment to the next. `pieces`: of each GPU of the job, up to the present; `works`: of the job;
        `networks`: of the host, where it has any that tell; `starting`: none of its GPUs has done anything yet that
        could be saved; `blind`: of some nothing is told.

        Returns the checkpoint that ended.
        """
        limits = self._limits
        if at <= since:
            return None
        if starting:  # weights that are fetched are no checkpoint, and not what the job writes all the time
            self._seen_working, self._stood_since = True, None
            return self.interrupt()
        here = [[piece for piece in of_gpu if piece.since < at and since < piece.at] for of_gpu in pieces]
        here = [of_gpu for of_gpu in here if of_gpu]
        standing = [[piece for piece in of_gpu if stands(piece, self._limits)] for of_gpu in here]
        still = bool(here) and 2 * sum(map(bool, standing)) >= len(here)
        stood_since = self._follow(since, here, standing, works, still=still)
        copies = bool(here) and 2 * sum(any(piece.copying for piece in of_gpu) for of_gpu in here) >= len(here)
        wrote = _bytes(works, since, at, _wrote)
        made = _bytes(works, since, at, _made)
        # The last of many writers is slow: while the GPUs still stand for it, little is enough.
        going_on = still and self._episode is not None and self._episode.active >= since
        own = any(work.rung in ("process", "cgroup") for work in works)  # else the host's logs are the job's, too
        share = _TAIL_SHARE if going_on else _SLOW_SHARE if still and own else 1.0
        beyond = wrote - self._usual * (at - since)
        writing = beyond >= share * limits.write_bytes_per_second * (at - since)
        fast = copies or beyond >= limits.write_bytes_per_second * (at - since)
        around = [work for work in works if work.since < at and since < work.at]
        blocked = any(work.writer_blocked for work in around)
        if self._episode and not (still or self._episode.known or self._episode.fast):
            self._episode = None
        episode = self._episode
        if episode is None:
            if not (still and (writing or copies)):
                self._usual += (wrote / (at - since) - self._usual) * min(1.0, (at - since) / _USUAL_SECONDS)
                return None
            first = [of_gpu[0] for of_gpu in standing if of_gpu]
            begin = max(since, min(piece.since for piece in first))
            episode = self._episode = _Episode(started=begin, active=at, wrote_at=at, head=_worked(first))
            known_since = since if self._known_since is None else self._known_since
            episode.whole = self._seen_working or begin - known_since >= _CALL_SECONDS
            # The window of writes in which it began: what came then is its own, if not usual.
            early = [work for work in works if work.since < since < work.at]
            if early and stood_since is not None:  # and so is its time, if the GPUs stood already
                episode.started, episode.head = max(stood_since, min(work.since for work in early)), 0.0
                episode.stalled = begin - episode.started
            usual = sum(self._usual * (since - work.since) for work in early)
            episode.wrote_stalled = max(0.0, _bytes(early, 0.0, since, _wrote) - usual)
            episode.made = max(0.0, _bytes(early, 0.0, since, _made) - usual)
        episode.told = any(work.rung != "none" for work in works)
        episode.fast |= fast
        if writing or copies:
            episode.wrote_at = at
        # An fsync or storage that hangs may take any time. Who reads in D is at something else.
        reads = any(work.read >= limits.read_bytes_per_second * work.seconds for work in around)
        held_up = blocked and ((episode.known and not reads) or at - episode.wrote_at < _BLOCKED_SECONDS)
        sent = networks.uploaded(since, at, self._stood(pieces, since)) if networks and episode.copied else 0.0
        episode.sent += sent
        if still and (writing or copies or held_up or sent):
            begin = max(since, min(piece.since for of_gpu in standing for piece in of_gpu))
            end = min(at, max(piece.at for of_gpu in standing for piece in of_gpu))
            episode.active, episode.blind = end, 0.0
            episode.tail = _worked([of_gpu[-1] for of_gpu in standing if of_gpu])
            episode.stalled += end - begin
            _extend(episode.stalls, begin, end)
            stood = _bytes(works, begin, end, _wrote)  # the GPUs may have gone on within it
            episode.wrote_stalled += stood
            episode.wrote_beside += wrote - stood
            episode.made += made if writing or copies or held_up else 0.0  # no log beside an upload is its own
            episode.copied += copied(pieces, since, at)
        elif writing and here:  # that a job without GPUs still saves nobody knows: HOST's bytes are everybody's
            episode.active, episode.blind = at, 0.0
            episode.wrote_beside += wrote
            episode.made += made
        elif blind and not here and episode.known and episode.blind < _BLIND_SECONDS:
            episode.blind += at - since
            episode.made += made if writing else 0.0
        else:  # what is left of the window in which it ended
            episode.made += _bytes([work for work in works if work.since < episode.active], since, at, _made)
        if wrote:
            for work in works:
                if work.since < at and since < work.at and work.wrote:
                    mount = work.mount or UNKNOWN_MOUNT
                    episode.mounts[mount] = episode.mounts.get(mount, 0.0) + wrote
        unsent = episode.told and networks is not None and self._unsent(episode, at, pieces, networks)
        if not episode.known:
            until = math.inf if episode.fast else self._stood(pieces, at)[1]
            so_far = self._bytes_so_far(episode, at, until, pieces, works, unsent=unsent)
            episode.known = so_far >= limits.checkpoint_bytes
        if at - episode.active - episode.blind >= limits.checkpoint_quiet_seconds:
            self._episode = None
            # One that was taken for an upload while it copied may turn out to be none.
            none = not episode.known or (unsent and episode.made < limits.checkpoint_bytes)
            return None if none else self._closed(episode)
        return None

    def _follow(
        self,
        since: float,
        here: Sequence[Sequence[Piece]],
        standing: Sequence[Sequence[Piece]],
        works: Sequence[Work],
        *,
        still: bool,
    ) -> float | None:
        """Keep what tells whether a beginning is seen. Returns since when the GPUs have stood, if they did before."""
        before = self._stood_since
        if not still:
            self._stood_since = None
            self._seen_working |= bool(here)
        elif before is None:
            first = [of_gpu[0] for of_gpu in standing if of_gpu]
            self._stood_since = max(since, min(piece.since for piece in first)) + _worked(first)
        if here and self._known_since is None:
            self._known_since = since
        if works and self._known_since is not None and not self._heard:
            self._known_since, self._heard = max(self._known_since, works[0].since), True
        return before

    def _unsent(self, episode: _Episode, at: float, pieces: Sequence[Sequence[Piece]], networks: Networks) -> bool:
        """Whether the host's adapters tell that what was copied went nowhere: an offload to the host's memory."""
        later = networks.uploaded(at, math.inf, self._stood(pieces, at))
        if episode.sent + later >= self._limits.upload_bytes_per_second * _SENT_SECONDS:
            return False
        last = max((piece.at for of_gpu in pieces for piece in of_gpu if piece.copying), default=episode.started)
        return networks.told_after(last) >= _UNSENT_SECONDS

    def _stood(self, pieces: Sequence[Sequence[Piece]], moment: float) -> tuple[float, float]:
        """From when until when all GPUs of the job stand around that moment, as far as is known."""
        begin, end = -math.inf, math.inf
        for of_gpu in pieces:
            for piece in of_gpu:
                if not stands(piece, self._limits):
                    begin = max(begin, piece.at) if piece.at <= moment else begin
                    end = min(end, piece.since) if piece.at > moment else end
        return begin, end

    @staticmethod
    def _bytes_so_far(
        episode: _Episode,
        at: float,
        until: float,
        pieces: Sequence[Sequence[Piece]],
        works: Sequence[Work],
        *,
        unsent: bool,
    ) -> float:
        """With what has come since the moment that is being settled, and is written before `until`."""
        made = episode.made + _bytes(works, at, until, _made)
        return made if unsent else max(made, episode.copied + copied(pieces, at, math.inf))

    def _mode(self, episode: _Episode) -> Mode:
        if episode.told and episode.made < self._limits.checkpoint_bytes <= episode.copied:
            return "remote"
        return "async" if episode.wrote_beside > episode.wrote_stalled else "sync"

    def _closed(self, episode: _Episode) -> Checkpoint:
        mode = self._mode(episode)
        # What is still written when the GPUs go on is the end of a window, unless it is most of it.
        end = episode.active if mode == "async" else episode.stalls[-1][1] - episode.tail
        return Checkpoint(
            job=self.job,
            mount=UNKNOWN_MOUNT if mode == "remote" else last_mount(episode.mounts, episode.made),
            mode=mode,
            started=episode.started + episode.head,
            seconds=max(0.0, end - episode.started - episode.head),
            stalled=max(0.0, episode.stalled - episode.head - episode.tail),
            bytes=episode.made if episode.made >= self._limits.checkpoint_bytes else max(episode.made, episode.copied),
            gpu_seconds=episode.gpu_seconds,
            whole=episode.whole,
        )


def last_mount(mounts: Mapping[str, float], made: float) -> str:
    """Of the bytes written by mount, in the order in which it came to them: where most of what was made has gone."""
    known = {name: wrote for name, wrote in mounts.items() if name != UNKNOWN_MOUNT}
    large = [name for name, wrote in known.items() if wrote >= made / 2]
    return large[-1] if large else max(known, key=lambda name: known[name], default=UNKNOWN_MOUNT)


def _worked(pieces: Sequence[Piece]) -> float:
    """Seconds of a stretch for which GPUs that stood for the rest of it worked: the mean. Spinning is standing."""
    return sum(piece.busy * piece.seconds for piece in pieces if piece.working) / len(pieces)


def _wrote(work: Work) -> float:
    return work.wrote


def _made(work: Work) -> float:
    return work.made


def _bytes(works: Sequence[Work], since: float, at: float, of: Callable[[Work], float]) -> float:
    """What of it came in that stretch, taken to come evenly in each window."""
    total = 0.0
    for work in works:
        common = min(at, work.at) - max(since, work.since)
        if common > 0:
            total += of(work) * common / work.seconds
    return total


def stands(piece: Piece, limits: Thresholds) -> bool:
    """Whether the GPU has no work, or none but to wait for others: it idles far more than it does while it works."""
    usual = piece.usual_idle
    return piece.idle > max(limits.gap_ratio, min(_FAR * usual, (1.0 + usual) / 2)) or piece.spinning


def copied(pieces: Sequence[Sequence[Piece]], since: float, at: float) -> float:
    """Bytes that left these GPUs in that stretch while they stood."""
    total = 0.0
    for of_gpu in pieces:
        for piece in of_gpu:
            common = min(at, piece.at) - max(since, piece.since)
            if common > 0:
                total += piece.copied * common / piece.seconds
    return total


def _extend(stalls: list[tuple[float, float]], since: float, at: float) -> None:
    """Join what adjoins: a checkpoint of an hour is one stretch."""
    if stalls and stalls[-1][1] >= since:
        stalls[-1] = (stalls[-1][0], at)
    else:
        stalls.append((since, at))
