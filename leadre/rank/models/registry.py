"""The rankers by name."""

from __future__ import annotations

from collections.abc import Mapping

from leadre.rank.models.autoint import AutoInt
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.dien import Dien
from leadre.rank.models.din import Din
from leadre.rank.models.din_paper import DinPaper
from leadre.rank.models.esmm import Esmm
from leadre.rank.models.finalmlp import FinalMlp, FinalMlpSplit
from leadre.rank.models.gdcn import Gdcn
from leadre.rank.models.hcn import Hcn
from leadre.rank.models.hstu import Hstu
from leadre.rank.models.infnet import InfNet
from leadre.rank.models.mlcc import Mlcc
from leadre.rank.models.muse import Muse
from leadre.rank.models.sdim import Sdim
from leadre.rank.models.shared import Ranker
from leadre.rank.models.tin import Tin
from leadre.rank.models.towers import Coarse
from leadre.rank.models.two_tower import TwoTower

RANKERS: Mapping[str, Ranker] = {
    "autoint": AutoInt(),
    "dcnv2": DcnV2(),
    "dien": Dien(),
    "din": Din(),
    "din_paper": DinPaper(),
    "esmm": Esmm(),
    "finalmlp": FinalMlp(),
    "finalmlp_split": FinalMlpSplit(),
    "gdcn": Gdcn(),
    "hcn": Hcn(),
    "hstu": Hstu(),
    "infnet": InfNet(),
    "mlcc": Mlcc(),
    "muse": Muse(),
    "sdim": Sdim(),
    "tin": Tin(),
    "two_tower": TwoTower(),
}
COARSE = tuple(name for name, ranker in RANKERS.items() if isinstance(ranker, Coarse))
