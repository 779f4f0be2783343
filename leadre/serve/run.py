"""Answers bid requests: OpenRTB in, ads out, inside a deadline.

Starts the writer (money and events), the table writer, the model server, the management API and the bid workers, each
as a process, and restarts any that dies. SIGTERM stops them in the opposite order: first the workers, which finish the
requests that they have begun. All state is in one folder; the first start fills its campaign store from the ads of the
run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import artifact, config, extras, progress, stderr
from leadre.clock import SystemClock
from leadre.errors import InputError
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Network, Pages, Plan, Timing
from leadre.serve.settings import EXP_S, MechanismName, Settings
from leadre.tune.latest import latest


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve``."""

    host: str = config.option(
        "127.0.0.1", "address to listen on; other than loopback, an operator's key is needed first"
    )
    port: int = config.option(8080, "port for bids, events and health", at_least=0, at_most=65535)
    manage_port: int = config.option(
        8081, "port of the management API, the status page and its documentation", at_least=0, at_most=65535
    )
    public_url: str = config.option("", "URL of the port for browsers; https, unless it is this machine (default)")
    origins: tuple[str, ...] = config.option((), "pages that may request bids, added to those registered at the API")
    workers: int = config.option(1, "bid worker processes", at_least=1)
    state: str = config.option("", "folder of campaigns, budgets, events and lists; default work/<run>/state")
    store: str = config.option(
        "", "store of lists, profiles and caps: lmdb:FOLDER or redis://...; default in the state folder"
    )
    generate: bool = config.option(True, "generate online for users without a stored list")
    beam: int = config.option(24, "beams of an online generation", at_least=1)
    rank: bool = config.option(True, "price ads by the published ranker, at first that of the run if it has one")
    seat: str = config.option("leadre", "our seat in the auction")
    vendor_id: int = config.option(
        0, "our number on the Global Vendor List; 0 = none, so no TC string grants anything", at_least=0
    )
    gdpr_when_absent: bool = config.option(False, "apply the GDPR to requests without a GDPR signal")
    gdpr_by_country: bool = config.option(
        True, "apply it to such requests from the European Economic Area, the United Kingdom and Switzerland"
    )
    pass_unknown_category: bool = config.option(
        True, "show ads without a category of the request's taxonomy where it blocks categories"
    )
    pass_unknown_language: bool = config.option(True, "show ads of unknown language where a request allows languages")
    exploration: float = config.option(
        0.02, "share of imps whose ad is drawn uniformly among the best, and logged so", at_least=0, below=1
    )
    mechanism: MechanismName = config.option(
        "first_price", "rule by which /v1/recommend charges an ad: its bid, or by the ads that it outranks"
    )
    slot_effects: tuple[float, ...] = config.option(
        (1.0,),
        "how often the ad of each slot of /v1/recommend is seen, relative to the first; descending",
        above=0,
        at_most=1,
    )
    squashing: float = config.option(
        1.0,
        "power of the rate in the order of /v1/recommend: 1 ranks by bid x rate, 0 by the bid of the event alone",
        at_least=0,
        at_most=1,
    )
    exp_s: int = config.option(
        EXP_S, "seconds after a bid in which it may be shown: budget and frequency cap are reserved as long", at_least=1
    )
    post_view: bool = config.option(False, "count conversions of users who saw the ad and did not click")
    timing: Timing = config.group(Timing())
    network: Network = config.group(Network())
    review: bool = config.option(True, "show ads of accounts only after an operator has approved them")
    pages: Pages = config.group(Pages())
    require_callers: bool = config.option(
        False, "refuse bid requests of exchanges while `leadre serve caller` has added none; else any is admitted"
    )
    retain_days: int = config.option(90, "days for which events, lists and profiles are kept", at_least=1)


def run(config: Config) -> None:
    """Serve until SIGTERM. Raises InputError for options that cannot be met, ArtifactError if the run has no ads."""
    if config.port == config.manage_port:
        raise InputError(f"--port and --manage-port are both {config.port}; choose another --manage-port")
    config.network.trusted()  # refuses what is no address before a process starts
    model = model_of(config)
    if model is not None:
        extras.require(f"online generation with {model}", "generate", otherwise="set --generate false")
    paths = paths_of(config)
    tables = artifact.read(config.folder("data"), artifact.TABLES)
    from leadre.serve.processes import bootstrap, ranker_bootstrap, supervisor

    with bootstrap.owned(paths):
        stderr.decouple()
        with bootstrap.errors(paths):
            bootstrap.fill(paths, tables)
            if config.rank:
                ranker_bootstrap.publish(paths, config.folder("rank-train"), config.folder("rank-calibrate"))
            origins = bootstrap.register_origins(paths, config.origins)
            bootstrap.check_exposure(paths, (config.host,))
            callers = bootstrap.describe_callers(paths, settings_of(config), config.host)
        progress.say(f"serve: pages that may request bids: {', '.join(sorted(origins)) or 'none; set --origins'}")
        progress.say(f"serve: {callers}")
        with bootstrap.errors(paths):
            bootstrap.offer_operator_key(paths, SystemClock())
        supervisor.run(_plan(config, paths, model))


def _plan(config: Config, paths: StatePaths, model: Path | None) -> Plan:
    return Plan(
        paths=paths,
        settings=settings_of(config),
        host=config.host,
        port=config.port,
        manage_port=config.manage_port,
        workers=config.workers,
        timing=config.timing,
        tables=config.folder("data"),
        codebook=config.folder("semid"),
        model=model,
        beam=config.beam,
        retain_days=config.retain_days,
        ranks=config.rank,
        network=config.network,
        reviews_accounts=config.review,
        pages=config.pages,
    )


def model_of(config: Config) -> Path | None:
    """Folder of the model that generates online (`tune.latest`); None without a model, or with ``generate`` off."""
    folder = latest(config)
    return folder if config.generate and folder.exists() else None


def paths_of(config: Config) -> StatePaths:
    """The paths of the state folder that ``config`` selects."""
    from leadre.store import spec_in

    folder = Path(config.state) if config.state else config.folder("state")
    return StatePaths(folder=folder, store=spec_in(folder, config.store))


def paths_for(command: config.Common, stages: Path | None, state: str) -> StatePaths:
    """The state paths for another command on the same bidder: ``state`` if set, else as [serve] of ``stages`` has it.

    Raises InputError as `config.load` does.
    """
    flags = {"run": command.run, "work": str(command.work)} | ({"state": state} if state else {})
    return paths_of(config.load(Config, section="serve", path=stages, flags=flags))


def settings_of(config: Config) -> Settings:
    """The settings of workers. Raises InputError for a public URL that browsers must not be sent to, and slot effects
    that rise.
    """
    effects = config.slot_effects
    if not effects or list(effects) != sorted(effects, reverse=True):
        raise InputError(f"--slot-effects {list(effects)}: name at least one, none above the one before it")
    return Settings(
        public_url=config.public_url or f"http://127.0.0.1:{config.port}",
        seat=config.seat,
        vendor_id=config.vendor_id,
        gdpr_when_absent=config.gdpr_when_absent,
        gdpr_by_country=config.gdpr_by_country,
        pass_unknown_category=config.pass_unknown_category,
        pass_unknown_language=config.pass_unknown_language,
        exploration=config.exploration,
        mechanism=config.mechanism,
        slot_effects=config.slot_effects,
        squashing=config.squashing,
        exp_s=config.exp_s,
        post_view=config.post_view,
        workers=config.workers,
        require_callers=config.require_callers,
    )
