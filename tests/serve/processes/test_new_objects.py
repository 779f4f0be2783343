"""Objects of new ads get the IDs that `leadre semid --extend` would give them."""

from __future__ import annotations

import numpy as np
import pytest

from leadre import artifact, database
from leadre.errors import InputError
from leadre.semid import codebook as codebooks
from leadre.semid import embed
from leadre.serve.catalogue import database as records
from leadre.serve.processes import new_objects
from leadre.serve.processes.new_objects import NewAds, ObjectCoder

from ..conftest import make_ad, make_campaign


@pytest.fixture
def semid(work):
    return artifact.read(work / "served" / "semid", artifact.CODEBOOK)


def api_ad(name, **fields):
    return make_ad(name, object_id=name, created_at_us=1, **fields)


def test_new_objects_get_the_ids_of_an_extended_codebook(semid, monkeypatch):
    monkeypatch.setattr(new_objects, "AT_ONCE", 2)
    encoder = semid.meta["config"]["encoder"]
    codebook = codebooks.load(semid)
    coder = ObjectCoder(codebook, encoder)
    ads = [api_ad(name, title="Red tea", brand="Leaf") for name in ("n1", "n2", "n3")]
    ads += [make_ad("twin", object_id="n1", title="Another"), make_ad("old", object_id=codebook.object_ids[0])]
    codes = []
    while (new := coder.assign(ads)).object_ids:
        codes += list(zip(new.object_ids, new.codes_NL.tolist(), strict=True))
    text_ND = embed.embed(["Red tea | Leaf"] * 3, encoder)
    extended = codebook.encode(text_ND, ["n1", "n2", "n3"])
    assert codes == list(zip(("n1", "n2", "n3"), extended.codes_OL[-3:].tolist(), strict=True))
    assert len(np.unique(extended.codes_OL, axis=0)) == len(extended.codes_OL)


def test_new_objects_get_predicted_collaborative_columns(semid):
    codebook = codebooks.load(semid)
    titles = ["Red tea", "Trail shoes", "Kitchen lamp", "Road bike"]
    encoder = semid.meta["config"]["encoder"]
    new = ObjectCoder(codebook, encoder).assign([api_ad(title, title=title) for title in titles])
    vectors = codebook.complete(embed.embed(titles, encoder))
    assert vectors[:, codebook.text_width :].any(axis=1).all()
    assert np.array_equal(new.codes_NL[:, :-1], codebook.quantiser.encode(vectors))


def test_encoder_that_is_gone_is_an_input_error(semid):
    coder = ObjectCoder(codebooks.load(semid), "/nowhere")
    with pytest.raises(InputError, match="/nowhere"):
        coder.assign([api_ad("n1")])
    assert not coder.assign([]).object_ids


def test_ads_made_or_changed_since_are_read_once(campaign_store, manage_db):
    campaign_store.put_campaign(make_campaign())
    campaign_store.put_ad(make_ad("imported"))
    reader = database.connect(manage_db, records.MIGRATIONS, read_only=True)
    new_ads = NewAds()
    assert new_ads.read(reader) == []
    for name in ("b", "a"):
        campaign_store.put_ad(api_ad(name))
    assert [ad.ad_id for ad in new_ads.read(reader)] == ["b", "a"]
    assert new_ads.read(reader) == []
    campaign_store.put_ad(api_ad("a", title="Boots"))
    assert [ad.title for ad in new_ads.read(reader)] == ["Boots"]
    reader.close()
