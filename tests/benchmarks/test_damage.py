"""The campaign of damages finds a store that hands out what is damaged."""

from pathlib import Path

import numpy as np
import pytest

from app.artifacts.checked import Checked
from benchmarks.damage import Campaign
from benchmarks.damaged_service import service

PLACE = "local store"


@pytest.mark.slow
def test_damage_is_refused_by_the_service_and_seen_by_the_campaign_if_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(tmp_path, remote=False) as one:
        campaign = Campaign(one, np.random.default_rng(1))
        uses = {
            one.artifacts["timing cache"][0]: (campaign._time, "timing_cache_begun_anew"),
            one.artifacts["external data"][0]: (campaign._define, "blob_damaged"),
        }
        for digest, (use, refused) in uses.items():
            one.forget()
            campaign._damage(PLACE, "bit", digest, [])
            assert (use(digest), campaign._download(digest)) == (refused, "refused")
            assert campaign._heal([digest])
            assert (use(digest), campaign._download(digest)) == ("right", "right")

        monkeypatch.setattr(Checked, "_is_whole", lambda *_: True)
        for digest, (use, _refused) in uses.items():
            campaign._damage(PLACE, "bit", digest, [])
            assert (use(digest), campaign._download(digest)) == ("WRONG", "WRONG")
            one.places[PLACE].write(digest, one.contents[digest], in_place=True)
