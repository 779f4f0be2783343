"""A part of a simulated day: 12 campaigns through worker, writer and ledger, on the clock of the simulation."""

import asyncio
import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from leadre import artifact, config
from leadre.auction.pacing.plan import even
from leadre.errors import InputError
from leadre.evaluate.simulation import measure, prices, run, world
from leadre.evaluate.simulation.bidder import Bidder
from leadre.evaluate.simulation.exchange import NOBODY, DayLog, Exchange
from leadre.evaluate.simulation.options import MarketOptions
from leadre.serve.settings import Settings
from leadre.types import Campaign, Verdict
from leadre.units import US_PER_HOUR

OPTIONS = MarketOptions(
    campaigns=12,
    requests=20_000,
    users=30,
    cpc_share=0.5,
    cpa_share=0.0,
    click_rate=0.03,
    budget_low=0.002,
    budget_high=0.02,
    plan="asap",
    first_price=0.5,
)
PACED = dataclasses.replace(OPTIONS, plan="even", cpc_share=0.0)
OBJECTS = [f"object-{number}" for number in range(40)]


@dataclasses.dataclass
class Simulation:
    """One day, and the ledger's figures at its end: campaign ID -> nanos charged and reserved."""

    world: world.World
    log: DayLog
    charges: list
    charged: dict
    reserved: dict


def simulate(folder, requests, seed=0, options=OPTIONS):
    """The first requests of the burst of a day."""
    law = prices.built_in()
    drawn = world.draw(options, OBJECTS, OBJECTS, law, seed)
    auctions = world.auctions(options, law, 0, seed)
    first = int(np.searchsorted(auctions.at_us_N, world.START_US + 14 * US_PER_HOUR))
    auctions = auctions.part(first, first + requests)

    async def day():
        async with Bidder(folder, drawn, Settings(public_url="https://ads.test"), seed) as bidder:
            exchange = Exchange(bidder, drawn, seed)
            log = await exchange.run_day(auctions, lambda n=1, note="": None)
            await exchange.drain(int(auctions.at_us_N[-1]) + 1)
            names = [campaign.campaign_id for campaign in drawn.campaigns]
            charged = {name: bidder.writer.ledger.spent(name) for name in names}
            reserved = {name: bidder.writer.ledger.reserved(name) for name in names}
            assert bidder.writer.ledger.verify() == []
        return log, list(run.charges_of(bidder.paths, drawn, [log])), charged, reserved

    return Simulation(drawn, *asyncio.run(day()))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("simulated") / "state", 400)


def test_ledger_and_event_log_have_the_money_of_the_exchange(simulated):
    log = simulated.log
    of_log = dict.fromkeys(simulated.charged, 0)
    for charge in simulated.charges:
        of_log[simulated.world.campaigns[charge.campaign].campaign_id] += charge.nanos
    assert of_log == simulated.charged
    paid = np.bincount(np.maximum(log.campaign_N, 0), log.paid_nanos_N, OPTIONS.campaigns)
    for row, campaign in enumerate(simulated.world.campaigns):
        assert simulated.charged[campaign.campaign_id] <= campaign.daily_nanos
        if campaign.bid_type == "cpm":
            assert simulated.charged[campaign.campaign_id] == paid[row]
    assert any(
        campaign.bid_type == "cpc" and simulated.charged[campaign.campaign_id] for campaign in simulated.world.campaigns
    )


def test_winners_bid_the_price_at_least_and_losers_less(simulated):
    log = simulated.log
    price_N = log.auctions.price_nanos_N
    won_N = log.paid_nanos_N > 0
    lost_N = (log.campaign_N != NOBODY) & ~won_N
    assert won_N.any() and lost_N.any()
    assert (log.bid_nanos_N[won_N] >= price_N[won_N]).all()
    assert (log.bid_nanos_N[lost_N] < price_N[lost_N]).all()
    first_N = log.auctions.is_first_price_N
    assert (log.paid_nanos_N[won_N & first_N] == log.bid_nanos_N[won_N & first_N]).all()
    assert (log.paid_nanos_N[won_N & ~first_N] == price_N[won_N & ~first_N]).all()


def test_reservations_of_all_bids_end(simulated):
    assert set(simulated.reserved.values()) == {0}


def test_demand_without_budget_is_at_least_what_was_spent(simulated):
    demand_C = simulated.log.demand_nanos_HC.sum(0)
    for row, campaign in enumerate(simulated.world.campaigns):
        if campaign.bid_type == "cpm":
            assert demand_C[row] >= 0.9 * simulated.charged[campaign.campaign_id]  # exploration wins auctions besides
    assert (simulated.log.eligible_QC.sum(0) > 0).all()


@pytest.mark.parametrize(("options", "is_below"), [(PACED, True), (dataclasses.replace(PACED, pacer="off"), False)])
def test_paced_campaigns_bid_below_their_value(tmp_path, options, is_below):
    day = simulate(tmp_path / "state", 60, options=options)
    bid_C = np.array([campaign.bid_nanos for campaign in day.world.campaigns])
    bids_N = day.log.campaign_N != NOBODY
    assert bids_N.any()
    assert ((day.log.bid_nanos_N < bid_C[day.log.campaign_N]) == is_below)[bids_N].all()


def test_equal_seeds_give_equal_days(tmp_path):
    first, second, other = (simulate(tmp_path / name, 60, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.charges == second.charges != other.charges
    assert (first.log.bid_nanos_N == second.log.bid_nanos_N).all()


def test_clicks_follow_the_known_rates(simulated):
    log = simulated.log
    drawn = simulated.world
    of_clicks = [row for row, campaign in enumerate(drawn.campaigns) if campaign.bid_type == "cpc"]
    clicks = sum(charge.campaign in of_clicks for charge in simulated.charges)
    won_N = (log.paid_nanos_N > 0) & np.isin(log.campaign_N, of_clicks)
    bid_C = np.array([campaign.bid_nanos for campaign in drawn.campaigns])
    expected = (log.value_nanos_N[won_N] / bid_C[log.campaign_N[won_N]]).sum()
    assert expected > 5
    assert abs(clicks - expected) < 4 * np.sqrt(expected) + 1


def hand_log(*auctions):
    """Auctions of one campaign: (bid, paid, value, best value, verdict, price)."""
    log = DayLog.empty(
        world.Auctions(
            at_us_N=world.START_US + np.arange(len(auctions)) * US_PER_HOUR,
            user_N=np.zeros(len(auctions), int),
            site_N=np.zeros(len(auctions), int),
            price_nanos_N=np.array([row[5] for row in auctions]),
            is_first_price_N=np.ones(len(auctions), bool),
        ),
        campaigns=1,
    )
    for n, (bid, paid, value, best, verdict, _) in enumerate(auctions):
        log.campaign_N[n] = 0 if bid else NOBODY
        log.bid_nanos_N[n] = bid
        log.paid_nanos_N[n] = paid
        log.value_nanos_N[n] = value
        log.best_N[n] = 0
        log.best_value_nanos_N[n] = best
        log.verdict_N[n] = verdict.code
    return log


def test_regret_of_hand_worked_auctions():
    log = hand_log(
        (10, 10, 12, 12, Verdict.BID, 7),  # won, overpaid 3
        (10, 10, 8, 8, Verdict.BID, 10),  # won at 2 above the value
        (5, 0, 9, 9, Verdict.BID, 6),  # missed 3: the bid was too low
        (0, 0, 0, 20, Verdict.NO_BUDGET, 6),  # missed 14
        (0, 0, 0, 4, Verdict.NO_BUDGET, 6),  # worth less than the price
    )
    answers = measure.regret(log)
    assert (answers.overpaid_nanos, answers.overpaid) == (3, 1)
    assert (answers.lost_nanos, answers.lost) == (2, 1)
    assert answers.missed_nanos == {measure.BID_TOO_LOW: 3, Verdict.NO_BUDGET.value: 14}
    assert answers.missed == {measure.BID_TOO_LOW: 1, Verdict.NO_BUDGET.value: 1}


@pytest.mark.parametrize(("spent_at_hours", "off_plan"), [((6, 12, 18, 24), 0.25), ((12, 12, 12, 12), 0.5)])
def test_off_plan_is_the_largest_difference_of_the_day(spent_at_hours, off_plan):
    campaign = Campaign(campaign_id="c", advertiser_id="a", name="c", bid_type="cpm", bid_nanos=10, daily_nanos=400)
    log = hand_log(*[(10, 10, 12, 12, Verdict.BID, 10)] * 24)
    log.demand_nanos_HC[:] = 1.06 * 400 / 24
    charges = [measure.Charge(0, 0, world.START_US + hours * US_PER_HOUR - 1, 100) for hours in spent_at_hours]
    (day,) = measure.campaign_days([campaign], [even()], log, [*charges, measure.Charge(0, 1, 0, 77)], 0)
    assert day.spent == 1.0
    assert day.off_plan == pytest.approx(off_plan, abs=1 / world.MINUTES)
    assert day.is_feasible
    assert day.charges_of_budget == 40 and not day.is_judged
    log.demand_nanos_HC[3] *= 0.9
    (day,) = measure.campaign_days([campaign], [even()], log, charges, 0)
    assert not day.is_feasible


def test_prices_are_drawn_from_the_histogram_of_their_site(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"cheap": [0, 1, 3], "dear": {"price_counter_train": [0] * 50 + [1]}}))
    law = prices.read(path)
    site_N = np.repeat([0, 1], 4_000)
    price_N = law.draw(site_N, np.random.default_rng(0))
    assert set(price_N[site_N == 1]) == {500_000}  # a CPM of .50
    assert np.isclose((price_N[site_N == 0] == 20_000).mean(), 0.75, atol=0.03)
    assert law.expected(20_000) == (0.5, pytest.approx(0.5 * 17_500))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "site -> list of counts"),
        ('{"a": 3}', "site 'a': must be a list"),
        ('{"a": [1, -2]}', "site 'a': entry 1 is -2"),
        ('{"a": [0, 0]}', "site 'a': needs a count above 0"),
    ],
)
def test_faulty_prices_are_refused_with_their_place(tmp_path, text, message):
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        prices.read(path)


def test_command_writes_figures_campaigns_and_report(market, tmp_path, said):
    work, _ = market
    (tmp_path / "tiny").mkdir()
    shutil.copytree(work / "tiny" / "data", tmp_path / "tiny" / "data")
    options = {"run": "tiny", "work": str(tmp_path), "days": "1", "campaigns": "12", "requests": "60", "users": "30"}
    settings = config.load(run.Config, section="evaluate-simulate", path=None, flags=options)
    run.run(settings)
    folder = artifact.read(tmp_path / "tiny" / "evaluate-simulate", run.SIMULATION).path
    figures = json.loads((folder / "simulation.json").read_text())
    assert figures["requests"] == 60 and 0 < figures["wins"] <= figures["bids"]
    with (folder / "campaigns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and sum(int(row["wins"]) for row in rows) == figures["wins"]
    for name in ("spend.png", "market.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 3 and "campaign-0011" in page
    assert any("requests/s" in line for line in said)
    said.clear()
    run.run(settings)
    assert said == [f"simulate: {folder} is current, nothing to do"]


def test_budget_bounds_in_the_wrong_order_are_refused(tmp_path):
    flags = {"work": str(tmp_path), "budget_low": "0.5"}
    with pytest.raises(InputError, match=r"--budget-low 0\.5 is above --budget-high 0\.05"):
        run.run(config.load(run.Config, section="evaluate-simulate", path=None, flags=flags))
