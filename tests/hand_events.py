"""Events of two users by hand, rows (user, at_us, domain, object, value_nanos): for the fixture `hand`."""

from leadre.data.histories import AD, CONTENT

EVENTS = [
    # user 0: three visits
    (0, 10, AD, 3, 100),
    (0, 20, AD, 3, 50),
    (0, 20, AD, 5, 7),
    (0, 20, CONTENT, 1, 0),
    (0, 30, AD, 5, 9),
    (0, 30, CONTENT, 3, 2),
    # user 1: one visit, at the time of a visit of user 0
    (1, 30, AD, 6, 1),
]
