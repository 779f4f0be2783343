"""Users as plain data: the same events give the same list, the future never leaks, unknown IDs are refused by name."""

import dataclasses
import datetime

import numpy as np
import pytest

import leadre
from leadre.data.moment import recently_live
from leadre.errors import InputError

USER = "user-00039"


@pytest.fixture(scope="module")
def model(run):
    return run.model()


@pytest.fixture(scope="module")
def request_(run):
    """A test request of USER, after most of their events."""
    return [request for request in run.requests("test") if request.user_id == USER][-1]


def scores(recommendations):
    return [(ad.ad_id, ad.score) for ad in recommendations]


def test_described_user_gets_the_list_of_the_known_one(run, model, request_):
    described = run.user(USER)
    assert len(described.events) > 20 and described.profile
    known = model.recommend(USER, at=request_.at, live=request_.live)
    assert known == model.recommend(described, at=request_.at, live=request_.live)
    plain = [dataclasses.replace(event, at=event.at.isoformat()) for event in described.events]
    assert known == model.recommend(leadre.User(plain, described.profile), at=request_.at, live=request_.live)


def test_every_recommender_takes_a_described_user(run, request_):
    described = run.user(USER)
    for name in ("item_knn", "own_frequency"):
        channel = run.channel(name)
        assert channel.recommend(described, at=request_.at) == channel.recommend(USER, at=request_.at)


@pytest.mark.parametrize("name", ["model", "own_frequency"])
def test_events_at_or_after_the_time_do_not_count(run, model, request_, name):
    model = model if name == "model" else run.channel(name)
    described = run.user(USER)
    before = [event for event in described.events if event.at < request_.at]
    at_once = leadre.Event(described.events[0].item_id, request_.at, described.events[0].domain)
    last = leadre.Event(request_.live[0], request_.at - datetime.timedelta(microseconds=1), "ad")
    past = leadre.User(before, described.profile)
    known = model.recommend(USER, at=request_.at, live=request_.live)
    assert len(before) < len(described.events)
    assert model.recommend(past, at=request_.at, live=request_.live) == known
    assert scores(
        model.recommend(leadre.User([*before, at_once], described.profile), at=request_.at, live=request_.live)
    ) == scores(known)
    changed = model.recommend(leadre.User([*before, last], described.profile), at=request_.at, live=request_.live)
    assert scores(changed) != scores(known)


def test_time_defaults_to_just_after_the_last_event(run, model):
    last = run.market.last_us
    assert model.recommend(USER) == model.recommend(USER, at=last + 1)
    later = leadre.User([leadre.Event("ad-0001", last + 10, "ad")])
    live = ["ad-0001", "ad-0002"]
    assert scores(model.recommend(later, live=live)) == scores(model.recommend(later, at=last + 11, live=live))
    assert scores(model.recommend(later, live=live)) != scores(model.recommend(later, at=last + 10, live=live))


def test_live_ads_alone_are_recommended(run, model, request_):
    live = request_.live[3:9]
    assert {ad.ad_id for ad in model.recommend(USER, at=request_.at, live=live, k=50)} == set(live)
    assert scores(model.recommend(USER, at=request_.at, live=[*live[::-1], *live])) == scores(
        model.recommend(USER, at=request_.at, live=live)
    )
    by_default = model.recommend(USER, at=request_.at, k=100)
    lately = recently_live(run.market.logs, round(request_.at.timestamp() * 1e6), 7)
    assert {ad.ad_id for ad in by_default} == set(run.ads["ad_id"].gather(lately))
    assert by_default.live == len(lately)


@pytest.mark.parametrize("name", ["model", "als"])
def test_nothing_live_gives_an_empty_list(run, model, name):
    recommender = model if name == "model" else run.channel(name)
    assert len(recommender.recommend(USER, live=[])) == 0


@pytest.mark.parametrize("name", ["model", "als"])
def test_new_leaves_out_objects_of_the_history(run, model, name):
    recommender = model if name == "model" else run.channel(name)
    had = set(run.ads.filter(run.ads["ad_id"].is_in([e.item_id for e in run.user(USER).events]))["object_id"])
    assert had & {ad.object_id for ad in recommender.recommend(USER, k=100)}
    assert not had & {ad.object_id for ad in recommender.recommend(USER, k=100, new=True)}


def test_profile_and_placements_reach_the_model(run, model):
    user = leadre.User([leadre.Event("ad-0001", "2025-02-03T10:00", "ad")])
    options = {"at": "2025-02-03T11:00", "live": ["ad-0001", "ad-0002", "ad-0003"]}
    plain = scores(model.recommend(user, **options))
    assert scores(model.recommend(dataclasses.replace(user, profile={"age": "55+"}), **options)) != plain
    assert scores(model.recommend(user, placement_id="placement-2", **options)) != plain
    seen = leadre.User([dataclasses.replace(user.events[0], placement_id="placement-1")])
    assert scores(model.recommend(seen, **options)) != plain


def test_recommendation_has_the_facts_of_its_ad(run, model):
    row_of = {row["ad_id"]: row for row in run.ads.iter_rows(named=True)}
    recommendations = model.recommend(USER)
    assert len(recommendations) == 10
    for ad in recommendations:
        assert (ad.object_id, ad.title) == (row_of[ad.ad_id]["object_id"], row_of[ad.ad_id]["title"])
        assert ad.semantic_id == run.codebook.semantic_id(ad.object_id)
    probabilities = {ad.object_id: np.exp(ad.score) for ad in model.recommend(USER, k=100)}
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-3)  # among all live objects


def test_recommendations_are_a_sequence_a_table_and_a_frame(model):
    recommendations = model.recommend(USER, at="2025-05-20T08:30:59", k=3)
    head, columns, first, *_ = repr(recommendations).splitlines()
    assert head == f"3 of {recommendations.live} live ads at 2025-05-20 08:30 UTC, ranked by sft"
    assert columns.split() == ["score", "ad_id", "semantic", "ID", "title"]
    best = recommendations[0]
    assert first.split()[2:4] == [best.ad_id, "-".join(map(str, best.semantic_id))] and first.endswith(best.title)
    assert list(recommendations)[1:] == list(recommendations[1:])
    assert recommendations.frame.columns == [field.name for field in dataclasses.fields(leadre.Recommendation)]
    assert recommendations.frame["ad_id"].to_list() == [ad.ad_id for ad in recommendations]


def test_users_and_events_have_short_reprs(run):
    user = run.user(USER)
    assert repr(user) == f"User({len(user.events)} events, age={user.profile['age']!r})"
    event = leadre.Event("a", "2025-01-01", "ad", 5, "top")
    assert repr(event) == "Event('a', '2025-01-01', 'ad', 5, placement_id='top')"
    assert eval(repr(user.events[0]), {"Event": leadre.Event}).item_id == user.events[0].item_id


def event(item_id, domain="content", at="2025-02-03", **fields):
    return leadre.User([leadre.Event(item_id, at, domain, **fields)])


@pytest.mark.parametrize(
    ("user", "options", "message"),
    [
        ("user-x", {}, "user 'user-x' is not in the tables; describe the user by events"),
        (event("zz"), {}, r"events\[0\]: the tables have no content 'zz'; leave it out, or add them to the tables"),
        (event("zz", "ad"), {}, r"events\[0\]: the tables have no ad 'zz'"),
        (event("ad-0001"), {}, r"events\[0\]: the tables have no content 'ad-0001'; it is of the domain 'ad'"),
        (event("content-0001", "ad"), {}, "no ad 'content-0001'; it is of the domain 'content'"),
        (event("ad-0001", "web"), {}, r"events\[0\]: domain 'web'; must be 'content' or 'ad'"),
        (event("ad-0001", "ad", at="soon"), {}, r"events\[0\]: at 'soon': must be an ISO time"),
        (
            event("ad-0001", "ad", placement_id="placement"),
            {},
            r"events\[0\]: placement_id: unknown placement 'placement'; the nearest is 'placement-",
        ),
        (leadre.User([("ad-0001", "2025-02-03")]), {}, r"events\[0\] is \('ad-0001'.*; write leadre.Event"),
        (leadre.User((), {"aeg": "55+"}), {}, "profile: unknown column 'aeg'; the nearest is 'age'"),
        (USER, {"live": ["ad-0001", "zz"]}, "live: 1 of 2 ads are not in the tables, 'zz' among them"),
        (USER, {"live": "ad-0001"}, r"live 'ad-0001': must be a list of ad IDs"),
        (USER, {"at": "2031-01-01"}, "the tables show no live ad in the 7 days before 2031-01-01"),
        (USER, {"at": "yesterday"}, "at 'yesterday': must be an ISO time"),
        (USER, {"placement_id": "placement-9"}, "placement_id: unknown placement 'placement-9'"),
        (USER, {"k": 0}, "k 0: must be at least 1"),
        (7, {}, "user 7: must be the ID of a user, as text"),
        (event("ad-0001", "ad", value_nanos=2.5), {}, r"events\[0\]: value_nanos 2.5: must be a whole number"),
        (event("ad-0001", "ad", value_nanos=-1), {}, r"value_nanos -1: must be a whole number of billionths"),
    ],
)
def test_unknown_ids_and_invalid_values_are_refused_by_name(run, user, options, message):
    with pytest.raises(InputError, match=message):
        run.recommend(user, **options)
