#!/usr/bin/env python3
"""Writes table.tsv: cron expressions with the instants they fire at.

This is a second implementation, in another language, on another calendar (datetime) and other zone code (zoneinfo). It
knows nothing of the engine: it walks day by day, asks each field in turn, tries both readings of each local time, and
looks for the end of a gap minute by minute. The table is committed; this script is how it was made and is run again
only to add lines:  python3 make_table.py > table.tsv
"""

import datetime as dt
import re
from zoneinfo import ZoneInfo

UTC = dt.timezone.utc
DAY = dt.timedelta(days=1)
MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
WEEKDAYS = "SUN MON TUE WED THU FRI SAT".split()
WORDS = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}


def number(text, names, first):
    return first + names.index(text.upper()) if text.upper() in names else int(text)


def plain(item, low, high, names=(), first=0):
    """The values of one list item, in the order a step counts them."""
    item, _, step = item.partition("/")
    if item in "*?":
        values = list(range(low, high + 1))
    elif "-" in item:
        a, b = (number(part, names, first) for part in item.split("-"))
        if a <= b:
            values = list(range(a, b + 1))
        else:
            values = list(range(a, high + 1)) + list(range(low, b + 1))
    else:
        a = number(item, names, first)
        values = list(range(a, high + 1)) if step else [a]
    return values[:: int(step or 1)]


def simple(field, low, high, names=(), first=0):
    return {value for item in field.split(",") for value in plain(item, low, high, names, first)}


def month_end(day):
    return (day.replace(day=28) + 4 * DAY).replace(day=1) - DAY


def works(day):
    return day.isoweekday() <= 5


def day_fits(field, day):
    for item in field.upper().split(","):
        end = month_end(day)
        if item == "L":
            fits = day == end
        elif item == "LW":
            fits = day == max(d for d in (end, end - DAY, end - 2 * DAY) if works(d))
        elif item.startswith("L-"):
            fits = day == end - int(item[2:]) * DAY
        elif item.endswith("W"):
            wanted = int(item[:-1])
            fits = False
            if wanted <= end.day:
                aim = day.replace(day=wanted)
                near = [aim + n * DAY for n in (0, -1, 1, -2, 2)]
                fits = day == next(d for d in near if works(d) and d.month == day.month)
        else:
            fits = day.day in plain(item, 1, 31)
        if fits:
            return True
    return False


def weekday_fits(field, day):
    weekday = day.isoweekday() % 7
    for item in field.upper().split(","):
        if "#" in item:
            name, nth = item.split("#")
            fits = number(name, WEEKDAYS, 0) % 7 == weekday and (day.day + 6) // 7 == int(nth)
        elif item.endswith("L"):
            fits = number(item[:-1], WEEKDAYS, 0) % 7 == weekday and (day + 7 * DAY).month != day.month
        else:
            fits = weekday in {value % 7 for value in plain(item, 0, 6, WEEKDAYS, 0)}
        if fits:
            return True
    return False


def instants(expression, zone, start, gap, overlap, count):
    fields = WORDS.get(expression, expression).split()
    seconds = simple(fields[0], 0, 59) if len(fields) > 5 else {0}
    years = simple(fields[6], 1970, 2399) if len(fields) > 6 else None
    minute, hour, day_field, month, weekday_field = fields[1:6] if len(fields) > 5 else fields
    fixed = minute[0] != "*" and hour[0] != "*"
    gap = gap or ("RUN_AFTER" if fixed else "SKIP")
    overlap = overlap or ("FIRST" if fixed else "BOTH")
    either = day_field[0] not in "*?" and weekday_field[0] not in "*?"
    minutes, hours = simple(minute, 0, 59), simple(hour, 0, 23)
    months = simple(month, 1, 12, MONTHS, 1)
    tz = ZoneInfo(zone)
    found = set()
    day = start.astimezone(tz).date() - 2 * DAY
    enough = None
    while day.year < 2400 and (enough is None or day <= enough):
        fits = [day_fits(day_field, day), weekday_fits(weekday_field, day)]
        if day.month in months and (years is None or day.year in years) and (any(fits) if either else all(fits)):
            for h in hours:
                for m in minutes:
                    for s in seconds:
                        found |= resolve(dt.datetime(day.year, day.month, day.day, h, m, s), tz, gap, overlap)
            found = {at for at in found if at >= start}
            if enough is None and len(found) >= count:
                enough = day + 3 * DAY  # No change of clocks reorders more than that.
        day += DAY
    return sorted(found)[:count]


def resolve(local, tz, gap, overlap):
    readings = []
    for fold in (0, 1):
        at = local.replace(tzinfo=tz, fold=fold).astimezone(UTC)
        if at.astimezone(tz).replace(tzinfo=None) == local and at not in readings:
            readings.append(at)
    readings.sort()
    if len(readings) == 2:
        return set({"FIRST": readings[:1], "LAST": readings[1:], "BOTH": readings}[overlap])
    if readings or gap == "SKIP":
        return set(readings)
    at = local.replace(tzinfo=UTC) - dt.timedelta(hours=27)
    at = at.replace(second=0)
    shown = lambda instant: instant.astimezone(tz).replace(tzinfo=None)
    minute = dt.timedelta(minutes=1)
    while not (shown(at) > local and shown(at - minute) < local):
        at += minute
    return {at}


def main():
    lines = []
    for group in (PLAIN, DATES, SECONDS, FAR):
        start, expressions = group
        for expression in expressions.strip().splitlines():
            lines.append((expression.strip(), "UTC", start, "", ""))
    for zone, start, expressions in CHANGES:
        for expression in (expressions or AROUND_CHANGES).strip().splitlines():
            expression, _, rules = expression.strip().partition("|")
            gap, _, overlap = rules.strip().partition(" ")
            lines.append((expression.strip(), zone, start, gap.strip("-"), overlap.strip("-")))
    print("# expression\tzone\tfrom\tdst_gap\tdst_overlap\tinstants (made by make_table.py, not by the engine)")
    for expression, zone, start, gap, overlap in lines:
        begin = dt.datetime.fromisoformat(start)
        fires = instants(expression, zone, begin, gap, overlap, 4)
        text = " ".join(at.strftime("%Y-%m-%dT%H:%M:%SZ") for at in fires)
        print("\t".join((expression, zone, start.replace("+00:00", "Z"), gap, overlap, text)))


PLAIN = ("2026-11-24T15:00:00+00:00", """
    * * * * *
    */2 * * * *
    */7 * * * *
    */15 * * * *
    */59 * * * *
    */60 * * * *
    0 * * * *
    30 * * * *
    59 * * * *
    0,30 * * * *
    5,10,15 * * * *
    1-5 * * * *
    58-2 * * * *
    50-10/5 * * * *
    10/15 * * * *
    7/13 * * * *
    0-59/20 * * * *
    3-40/9 * * * *
    0-10,50-59 * * * *
    0,15-20,45/5 * * * *
    0 */2 * * *
    0 */5 * * *
    0 */12 * * *
    0 */24 * * *
    0 2 * * *
    0 0 * * *
    59 23 * * *
    0 9-17 * * *
    0 22-2 * * *
    0 22-4/2 * * *
    15 6,18 * * *
    0 8/3 * * *
    30 */6 * * *
    */20 9-17 * * *
    */10 0,12 * * *
    5-59/10 22-1 * * *
    0 0 * * MON
    0 0 * * mon
    0 0 * * 1
    0 0 * * 0
    0 0 * * 7
    0 0 * * SUN
    0 0 * * MON-FRI
    0 0 * * 1-5
    0 0 * * FRI-MON
    0 0 * * 5-1
    0 0 * * SAT,SUN
    0 0 * * 6,0
    0 0 * * 6,7
    0 0 * * 5-7
    0 0 * * 0-6
    0 0 * * 1/2
    0 0 * * */2
    0 0 * * */3
    0 0 * * TUE/2
    0 0 * * MON-FRI/2
    0 0 * * THU-TUE/2
    0 0 * * Wed
    30 9 * * MON-FRI
    */30 9-17 * * Mon-Fri
    0 12 * * TUE,thu
    0 0 * jan *
    0 0 * 1 *
    0 0 1 JAN,JUL *
    0 0 1 */3 *
    0 0 1 2/3 *
    0 0 1 NOV-FEB *
    0 0 1 11-2 *
    0 0 1 10-4/3 *
    0 0 1 Jun-Aug *
    @yearly
    @annually
    @monthly
    @weekly
    @daily
    @midnight
    @hourly
""")
DATES = ("2024-01-31T23:59:00+00:00", """
    0 0 1 * *
    0 0 15 * *
    0 0 29 * *
    0 0 30 * *
    0 0 31 * *
    0 0 1,15 * *
    0 0 1-7 * *
    0 0 28-3 * *
    0 0 25-5/4 * *
    0 0 */2 * *
    0 0 */10 * *
    0 0 */31 * *
    0 0 10/10 * *
    0 0 13 * FRI
    0 0 1 * MON
    0 0 1,15 * MON-FRI
    0 0 1-7 * MON
    0 0 31 * SUN
    0 0 */2 * MON
    0 0 */7 * 1-5
    0 0 13 * */5
    0 0 */13 * */5
    0 0 1-31 * MON
    0 0 ? * MON
    0 0 13 * ?
    0 0 ? * ?
    0 0 L * *
    0 0 l * *
    0 0 L-1 * *
    0 0 L-3 * *
    0 0 L-27 * *
    0 0 L-28 * *
    0 0 L-30 * *
    0 0 LW * *
    0 0 lw * *
    0 0 1W * *
    0 0 2W * *
    0 0 15W * *
    0 0 30W * *
    0 0 31W * *
    0 0 1W,15W * *
    0 0 15w,L * *
    0 0 L,1 * *
    0 0 L-1,LW,5 * *
    0 0 * * 5L
    0 0 * * FRIL
    0 0 * * fril
    0 0 * * 0L
    0 0 * * 7L
    0 0 * * 1L,5L
    0 0 * * MON#1
    0 0 * * 1#1
    0 0 * * fri#2
    0 0 * * 3#3
    0 0 * * 4#4
    0 0 * * 5#5
    0 0 * * 0#5
    0 0 * * 7#1
    0 0 * * 1#1,1#3
    0 0 * * MON#1,FRI#3
    0 0 * * 1,5#2
    0 0 * * 5L,TUE
    0 0 L * FRI
    0 0 L * 5L
    0 0 1W * 1#1
    0 0 */2 * 5L
    0 0 L-5 FEB *
    0 0 L 2 *
    0 0 LW 12 *
    0 0 29 2 *
    0 0 28-1 2 *
    0 0 29 FEB MON
    0 0 30 1,4 *
    0 0 31 4-7 *
    0 12 1 1 *
    0 12 25 DEC *
    0 12 * FEB SUN
    0 0 1 1 MON
    30 23 31 12 *
    0 0 ? 2 5L
    0 0 ? 2 4#5
    0 0 */28 2 4#5
    0 9 1-7 1,7 1-5
    45 5 10-20/5 MAR-MAY *
    0 0 1,L * *
    0 0 L-2,L-1,L * *
    0 18 LW 3,6,9,12 *
    0 7 * * 2#2
    0 7 8-14 * *
    0 7 */100 * *
""".replace("    0 7 */100 * *\n", ""))
SECONDS = ("2026-11-24T15:00:00+00:00", """
    * * * * * *
    */5 * * * * *
    */10 * * * * *
    */17 * * * * *
    0 * * * * *
    30 * * * * *
    15,45 * * * * *
    58-1 * * * * *
    10-20/3 * * * * *
    5/25 * * * * *
    0 0 2 * * *
    59 59 23 * * *
    0 */10 * * * *
    30 0 12 * * MON-FRI
    0 0 0 L * ?
    0 0 12 1 1 *
    */20 */30 12-13 * * *
    1,2,3 4,5 6 7 8 *
    0 0 0 1 1 * 2030
    0 0 0 1 1 * 2027-2029
    0 0 0 1 1 * 2027,2031
    0 0 0 1 1 * 2028/4
    0 0 0 1 1 * */10
    0 0 0 1 1 * *
    0 0 0 29 2 * 2028-2040
    0 30 9 ? * MON-FRI 2026-2027
    59 59 23 31 12 ? 2026
    0 0 12 ? * 6#3 2099
    * * * 31 12 ? 2099
    0 0 0 ? JAN 1#1 2027/2
""")
FAR = ("2095-12-31T12:00:00+00:00", """
    0 0 29 2 *
    0 0 29 2 ?
    0 0 28 2 *
    0 0 L 2 *
    0 0 1 3 *
    0 0 * * *
    0 0 31 12 FRI#5
    0 0 ? 2 6#5
    0 0 */28 2 1#5
    0 12 L-1 2 *
    0 0 29W 2 *
    0 0 0 29 2 ? 2100-2399
    0 0 0 1 1 ? 2100
    0 0 0 1 1 ? 2399
    0 0 0 29 2 ? 2200/50
    0 0 0 1 1 ? 2100/100
    0 0 1 1 0
    0 0 1 JAN ?
    @yearly
    @monthly
""")
AROUND_CHANGES = """
    */30 * * * *
    0 * * * *
    15 */2 * * *
    30 0 * * *
    0 0 * * *
    0 1 * * *
    30 1 * * *
    0 2 * * *
    15 2 * * *
    30 2 * * *
    45 2 * * *
    0 3 * * *
    0,30 0-3 * * *
    */20 2 * * *
    10 */1 * * *
    */45 23-3 * * *
    30 2 * * * | SKIP FIRST
    30 2 * * * | RUN_AFTER LAST
    30 0-3 * * * | SKIP BOTH
    30 * * * * | RUN_AFTER FIRST
    */30 * * * * | - LAST
    @daily
"""
CHANGES = [
    ("Europe/Berlin", "2026-03-28T23:00:00+00:00", None),
    ("Europe/Berlin", "2026-10-24T22:00:00+00:00", None),
    ("America/New_York", "2026-03-08T04:30:00+00:00", None),
    ("America/New_York", "2026-11-01T04:00:00+00:00", None),
    ("Australia/Lord_Howe", "2024-04-06T13:00:00+00:00", None),
    ("Australia/Lord_Howe", "2024-10-05T13:00:00+00:00", None),
    ("America/Sao_Paulo", "2018-11-04T02:00:00+00:00", None),
    ("America/Sao_Paulo", "2018-02-18T00:30:00+00:00", None),
    ("America/Santiago", "2023-09-03T03:00:00+00:00", None),
    ("America/Santiago", "2023-04-02T01:30:00+00:00", None),
    ("Asia/Gaza", "2019-03-28T21:00:00+00:00", None),
    ("Asia/Gaza", "2015-03-27T21:00:00+00:00", "0 0 * * *\n 30 0 * * *\n 0 0 28 3 *\n */30 * * * *\n 0 1 * * *"),
    ("Asia/Gaza", "2015-10-22T21:00:00+00:00", "0 0 * * *\n 30 0 * * *\n */30 * * * *\n 0 1 * * *\n 30 0 * * *|- LAST"),
    ("Pacific/Apia", "2011-12-30T06:00:00+00:00", """
        0 * * * *
        */30 * * * *
        0 0 * * *
        0 12 * * *
        0 12 30 12 *
        30 9,18 30 * *
        0 12 * * FRI
        0 12 * * THU-SAT
        0 0 30 12 * | SKIP -
        0 12 * * * | SKIP -
        0 */6 * * *
        0 */6 * * * | RUN_AFTER -
        59 23 30 12 *
        0 0 31 12 *
    """),
    ("Africa/Casablanca", "2024-03-10T00:00:00+00:00", "30 2 * * *\n 0 * * * *\n 30 2 * * *|- BOTH\n */30 2 * * *\n 0 3 * * *"),
    ("Africa/Casablanca", "2024-04-14T00:00:00+00:00", "30 2 * * *\n 0 * * * *\n 30 2 * * *|SKIP -\n */30 2 * * *\n 0 3 * * *"),
    ("Asia/Kolkata", "2026-11-24T15:00:00+00:00", "0 * * * *\n 0 0 * * *\n 30 9 * * MON-FRI\n */15 * * * *\n 0 0 29 2 *\n 30 5 L * *"),
    ("Asia/Kathmandu", "2026-11-24T15:00:00+00:00", "0 * * * *\n 0 0 * * *\n */20 12 * * *"),
    ("Pacific/Kiritimati", "1994-12-30T06:00:00+00:00", "0 12 * * *\n 0 0 1 1 *\n 30 */8 * * *"),
    ("Europe/Berlin", "2099-03-27T00:00:00+00:00", "30 2 * * *\n 0 2 29 3 *\n 30 2 ? 3 0L\n 0 0 29 2 *\n */30 2 * * *"),
    ("America/New_York", "2103-11-01T00:00:00+00:00", "30 1 * * *\n 30 * * * *\n 30 1 ? 11 SUN#1\n 30 1 ? 11 SUN#1|- LAST"),
]

if __name__ == "__main__":
    main()
