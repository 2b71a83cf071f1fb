"""A stack: servers and services as processes that belong to one folder."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from replank_local import artifacts, ports, processes, state, tools
from replank_local.credentials import Secrets
from replank_local.endpoints import Endpoints
from replank_local.errors import NotRunning, StackError
from replank_local.processes import Identity
from replank_local.progress import Progress
from replank_local.servers import SERVERS, TEST_SERVERS
from replank_local.together import together
from replank_local.unit import Place, Unit

_POLL: Final = 0.05


class Stack:
    """Servers and services of one folder: started, stopped, killed and found again, also by a later program.

    In the folder are ``state.json`` (ports and processes), ``secrets/``, ``data/`` and ``logs/``. As a context manager
    it starts what it is made of and stops it at the end::

        async with Stack(tmp_path, servers=["postgres", "kafka"]) as stack:
            await stack.kill("kafka")       # SIGKILL, as a crash
            await stack.start("kafka")      # same data, same port

    ``lifetime="process"``: the data goes when the stack is closed, and a small helper process ends everything should
    this program die, whatever kills it. ``lifetime="detached"``: processes and data stay when this program ends.

    One program changes a folder at a time: commands hold `replank_local.native.held`.
    """

    def __init__(
        self,
        root: Path,
        *,
        servers: Iterable[str] = TEST_SERVERS,
        units: Iterable[Unit] = (),
        choose_ports: Literal["free", "usual"] = "free",
        lifetime: Literal["process", "detached"] = "process",
        progress: Progress | None = None,
    ) -> None:
        """``servers`` are names of `SERVERS`; ``units`` are more processes, started when asked for by name."""
        self.root = root.resolve()
        self.servers = tuple(servers)
        unknown = set(self.servers) - SERVERS.keys()
        if unknown:
            raise StackError(f"no such server: {', '.join(sorted(unknown))}", fix=f"there are {', '.join(SERVERS)}")
        self.units: dict[str, Unit] = {name: SERVERS[name] for name in self.servers}
        self.units.update({unit.name: unit for unit in units})
        self.progress = progress or Progress()
        self._choose_ports = choose_ports
        self._lifetime = lifetime
        self._reaper: subprocess.Popen[bytes] | None = None
        # Others may pass through, as the account of a server has to, but see nothing on the way.
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        (self.root / "data").mkdir(mode=0o711, exist_ok=True)
        (self.root / "logs").mkdir(mode=0o700, exist_ok=True)
        self.secrets = Secrets(self.root / "secrets")
        self.state = state.load(self.root)

    # What is where

    @property
    def ports(self) -> Mapping[str, int]:
        return self.state.ports

    @property
    def endpoints(self) -> Endpoints:
        """The addresses of the servers of this stack."""
        mine = {port for unit in self.units.values() for port in unit.ports}
        return Endpoints({name: port for name, port in self.state.ports.items() if name in mine}, self.secrets)

    def log(self, name: str) -> Path:
        """The log file of a unit."""
        return self.root / "logs" / f"{name}.log"

    def identity(self, name: str) -> Identity | None:
        """The process of a unit as it was last started; None when it was stopped since, or never started."""
        return self.state.processes.get(name)

    def running(self, name: str) -> bool:
        """Whether the process of a unit is alive now."""
        identity = self.identity(name)
        return identity is not None and processes.alive(identity)

    def any_running(self) -> bool:
        return any(self.running(name) for name in self.state.processes)

    # Starting and stopping

    async def __aenter__(self) -> Self:
        try:
            await self.start(*self.servers)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, *names: str) -> None:
        """Start these units at the same time, and wait until each is ready. Those that run are left alone.

        Raises `StackError` (and `MissingTools`) naming the unit, with the end of its log. What was started stays.
        """
        units = [self.units[name] for name in names if not self.running(name)]
        tools.require(unit.name for unit in units)
        for unit in units:
            # What was killed may have left children that still hold its port and its data.
            await self._end_leftovers(unit.name)
        self._give_ports(units)
        if self._lifetime == "process" and self._reaper is None:
            self._reaper = self._spawn_reaper()
        await together(*(self._start_unit(unit) for unit in units))
        await together(*(self.wait_ready(name) for name in names))

    async def restart(self, name: str) -> None:
        """Stop a unit in order, and start it on the same data and ports."""
        await self.stop(name)
        await self.start(name)

    async def stop(self, *names: str) -> None:
        """Stop these units in order, at the same time; one that does not end within its grace is killed. Data stays."""
        await together(*(self._stop_unit(name, quick=False) for name in names))

    async def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """End a unit as a crash does: SIGKILL to it and to all its children, or another deadly signal to it alone.

        Returns when they are gone. The unit stays known as one that should run: `status` calls it dead.
        """
        identity = self.identity(name)
        if identity is None or not processes.alive(identity):
            raise NotRunning(name)
        await processes.end(identity, signum, grace=self._unit_grace(name))

    def signal(self, name: str, signum: signal.Signals) -> None:
        """Signal a unit and all its children, and do not wait: SIGSTOP and SIGCONT, as a process that hangs."""
        identity = self.identity(name)
        if identity is None or not processes.alive(identity):
            raise NotRunning(name)
        for member in processes.family(identity):
            processes.send(member, signum)

    async def stop_all(self, *, quick: bool = False) -> None:
        """Stop whatever this folder's state lists: services before the servers they need.

        ``quick`` ends servers at once, for data that nobody needs any more.
        """
        names = list(self.state.processes)
        servers = [name for name in names if name in SERVERS]
        await together(*(self._stop_unit(name, quick=quick) for name in names if name not in servers))
        await together(*(self._stop_unit(name, quick=quick) for name in servers))

    async def close(self) -> None:
        """Stop everything. What was only for this program ends quickly, with its data and its helper process."""
        temporary = self._lifetime == "process"
        await self.stop_all(quick=temporary)
        if temporary:
            await asyncio.to_thread(self._remove_data_folder)
        if self._reaper is not None:
            await asyncio.to_thread(self._reaper.communicate)
            self._reaper = None

    async def wait_ready(self, name: str, *, within: float | None = None) -> None:
        """Wait until a unit does its work. Raises `StackError` when it dies first or takes too long."""
        unit = self.units[name]
        seconds = unit.start_within if within is None else within
        deadline = time.monotonic() + seconds
        while not await self.is_ready(name):
            if not self.running(name):
                raise StackError(f"{name} ended while it was starting; {self._end_of_log(name)}")
            if time.monotonic() > deadline:
                raise StackError(f"{name} was not ready within {seconds:.0f} s; {self._end_of_log(name)}")
            await asyncio.sleep(_POLL)

    async def is_ready(self, name: str) -> bool:
        """Whether a unit does its work now."""
        if not self.running(name):
            return False
        try:
            async with asyncio.timeout(10):
                return await self.units[name].ready(self._place())
        except (OSError, TimeoutError):
            return False

    def adopt(self, name: str, identity: Identity) -> None:
        """Make a process that was started otherwise part of this stack: it is stopped with it."""
        self.state.processes[name] = identity
        state.save(self.root, self.state)

    def forget(self, name: str) -> None:
        """Strike a process from what this stack knows, without touching it."""
        del self.state.processes[name]
        state.save(self.root, self.state)

    def claim_ports(self, *names: str) -> None:
        """Give these units their ports now, so that others can be told before they start."""
        self._give_ports([self.units[name] for name in names if not self.running(name)])

    def remove_data(self) -> None:
        """Remove all that the stack wrote. Raises `StackError` while something of it runs."""
        if self.any_running():
            raise StackError("the stack is running", fix="stop it with `make down` first")
        self._remove_data_folder()
        for part in ("logs", "secrets", "env"):
            shutil.rmtree(self.root / part, ignore_errors=True)
        for part in ("state.json", "compose.env"):
            (self.root / part).unlink(missing_ok=True)

    # How

    def _remove_data_folder(self) -> None:
        for folder in (self.root / "data").glob("*"):
            if folder.is_symlink():  # to where the account of a server could reach it
                shutil.rmtree(folder.resolve(), ignore_errors=True)
        shutil.rmtree(self.root / "data", ignore_errors=True)

    def _place(self) -> Place:
        return Place(self.root, self.state.ports, self.secrets, durable=self._lifetime == "detached")

    def _give_ports(self, units: Iterable[Unit]) -> None:
        """Give each port of these units a number: the one it had, else its usual one, else a free one."""
        taken = set(self.state.ports.values())
        for unit in units:
            for name, usual in unit.ports.items():
                had = self.state.ports.get(name)
                if had is not None and ports.is_free(had):
                    continue
                wanted = usual if self._choose_ports == "usual" else None
                if wanted is None or wanted in taken or not ports.is_free(wanted):
                    wanted = ports.free_port(taken)
                if had is not None or (self._choose_ports == "usual" and wanted != usual):
                    self.progress.say(unit.name, f"port {had or usual} is taken by somebody else: using {wanted}")
                self.state.ports[name] = wanted
                taken.add(wanted)
        state.save(self.root, self.state)

    async def _end_leftovers(self, name: str) -> None:
        identity = self.state.processes.get(name)
        if identity is not None:
            await processes.end(identity, signal.SIGKILL, grace=5)

    async def _start_unit(self, unit: Unit) -> None:
        if unit.artifact is not None:
            await artifacts.ensure(unit.artifact(), self.progress)
        command = await unit.prepare(self._place())
        try:
            identity = processes.spawn(
                command.argv,
                log=self.log(unit.name),
                cwd=command.cwd,
                environment=command.environment,
                account=command.account,
            )
        except OSError as error:
            raise StackError(f"{unit.name} cannot be started: {error}") from error
        self.adopt(unit.name, identity)
        began = time.monotonic()
        await self.wait_ready(unit.name)
        port = self.state.ports[next(iter(unit.ports))]
        self.progress.say(unit.name, f"ready on {ports.HOST}:{port} after {time.monotonic() - began:.1f} s")

    async def _stop_unit(self, name: str, *, quick: bool) -> None:
        identity = self.state.processes.get(name)
        if identity is None:
            return
        unit = self.units.get(name) or SERVERS.get(name)
        signum = signal.SIGTERM
        if unit is not None:
            signum = unit.quick_signal if quick else unit.stop_signal
        was_running = processes.alive(identity)
        in_order = await processes.end(identity, signum, grace=self._unit_grace(name))
        if was_running:
            self.progress.say(name, "stopped" if in_order else "did not stop in time and was killed")
        del self.state.processes[name]
        state.save(self.root, self.state)

    def _unit_grace(self, name: str) -> float:
        unit = self.units.get(name) or SERVERS.get(name)
        return unit.stop_within if unit else 20.0

    def _end_of_log(self, name: str) -> str:
        lines = "\n  ".join(processes.tail(self.log(name), 10))
        return f"the end of {self.log(name)}:\n  {lines}"

    def _spawn_reaper(self) -> subprocess.Popen[bytes]:
        """A process that ends this stack when this program is gone: then the other end of its standard input closes."""
        return subprocess.Popen(
            [sys.executable, "-m", "replank_local.reaper", str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
