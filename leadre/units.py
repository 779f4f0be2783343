"""Constants of time and money. Names carry the unit: times end in _us, _ms or _s, money in _nanos."""

from __future__ import annotations

S_PER_MINUTE = 60
S_PER_HOUR = 3_600
S_PER_DAY = 86_400
US_PER_S = 1_000_000
US_PER_HOUR = S_PER_HOUR * US_PER_S
US_PER_DAY = S_PER_DAY * US_PER_S
EPOCH_ORDINAL = 719_163  # date.toordinal() of 1970-01-01, day 0 of the days that US_PER_DAY counts

NANOS_PER_UNIT = 1_000_000_000  # int64 billionths of a currency unit: of a dollar, of a euro
NANOS_PER_CPM = 1_000_000  # a CPM (price of 1,000 impressions) of 1.0, in nanos for one impression
