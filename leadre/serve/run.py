"""Answers bid requests: OpenRTB in, ads out, inside a deadline.

Starts a writer (money and events), the language model, the management API and bid workers, each a process, starts
anew whichever of them dies, and stops them in the opposite order when it is told to (SIGTERM): first the workers, which
answer what they have begun. State lies in one folder; the first start fills its book from the ads of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import artifact, config, progress
from leadre.clock import SystemClock
from leadre.errors import InputError
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Plan, Timing
from leadre.serve.settings import Settings
from leadre.tune import run as tune


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve``."""

    host: str = config.option("127.0.0.1", "address to listen on; others than loopback want an operator's key first")
    port: int = config.option(8080, "port for bids, events and health")
    manage_port: int = config.option(8081, "port of the management API, the status page and its documentation")
    public_url: str = config.option("", "how browsers reach the port; https, unless it is this machine (default)")
    origins: tuple[str, ...] = config.option((), "pages that may ask for bids, added to those registered at the API")
    workers: int = config.option(1, "processes that answer bid requests")
    state: str = config.option("", "folder of books, events and lists; default work/<run>/state")
    store: str = config.option("", "where lists, profiles and caps are: lmdb:FOLDER or redis://...; default in state")
    generate: bool = config.option(True, "let the language model answer for users without a stored list")
    beam: int = config.option(24, "beams of an online generation")
    seat: str = config.option("leadre", "our name in the auction")
    vendor_id: int = config.option(0, "our number on the Global Vendor List; 0 = none, so no TC string grants anything")
    gdpr_when_absent: bool = config.option(False, "treat requests that do not say so as under the GDPR")
    exploration: float = config.option(0.02, "share of places whose ad is drawn blindly among the best, and logged so")
    tmax_ms: int = config.option(200, "deadline of requests that name none")
    network_ms: float = config.option(10.0, "of each deadline, what the way back takes")
    shed_ms: float = config.option(25.0, "a request that has waited longer for its turn gets no bid at once")
    retain_days: int = config.option(90, "events, lists and profiles are kept so long")


def run(config: Config) -> None:
    """Serve until told to stop. InputError for options that cannot be met, ArtifactError where the run has no ads."""
    _check(config)
    paths = paths_of(config)
    tables = artifact.read(config.folder("data"), artifact.TABLES)
    from leadre.serve.processes import bootstrap, supervisor

    bootstrap.fill(paths, tables)
    origins = bootstrap.register_origins(paths, config.origins)
    bootstrap.check_exposure(paths, (config.host,))
    bootstrap.create_operator_key(paths, SystemClock())
    plan = Plan(
        paths=paths,
        settings=settings_of(config),
        host=config.host,
        port=config.port,
        manage_port=config.manage_port,
        workers=config.workers,
        timing=Timing(tmax_ms=config.tmax_ms, network_ms=config.network_ms, shed_ms=config.shed_ms),
        tables=config.folder("data"),
        codebook=config.folder("semid"),
        model=model_of(config),
        beam=config.beam,
        retain_days=config.retain_days,
    )
    progress.say(f"serve: bids at {settings_of(config).public_url}, management at {config.host}:{config.manage_port}")
    progress.say(f"serve: pages that may ask: {', '.join(sorted(origins)) or 'none; name them by --origins'}")
    supervisor.run(plan)


def model_of(config: Config) -> Path | None:
    """The model that answers online (`tune.latest`); None where there is none, or none is wanted."""
    folder = tune.latest(config)
    return folder if config.generate and folder.exists() else None


def paths_of(config: Config) -> StatePaths:
    """Where the state lies that ``config`` names."""
    from leadre.store import spec_in

    folder = Path(config.state) if config.state else config.folder("state")
    return StatePaths(folder=folder, store=spec_in(folder, config.store))


def place(given: config.Common, stages: Path | None, state: str) -> StatePaths:
    """Where the state lies for another stage of the verb: as it was told, else as [serve] of the file ``stages`` says.

    InputError as from `config.load`.
    """
    flags = {"run": given.run, "work": str(given.work)} | ({"state": state} if state else {})
    return paths_of(config.load(Config, section="serve", path=stages, flags=flags))


def settings_of(config: Config) -> Settings:
    """What workers are told. InputError for a public URL that browsers must not be sent to."""
    return Settings(
        public_url=config.public_url or f"http://127.0.0.1:{config.port}",
        seat=config.seat,
        vendor_id=config.vendor_id,
        gdpr_when_absent=config.gdpr_when_absent,
        exploration=config.exploration,
    )


def _check(config: Config) -> None:
    """Raise InputError for options that cannot be met, before anything is read."""
    for name, least in (("workers", 1), ("beam", 1), ("tmax_ms", 1), ("retain_days", 1)):
        if getattr(config, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants {least} or more")
    if not 0 <= config.exploration < 1:
        raise InputError(f"--exploration {config.exploration}: wants a share from 0 to below 1")
    if config.port == config.manage_port:
        raise InputError(f"--port and --manage-port are both {config.port}; give the management API one of its own")
