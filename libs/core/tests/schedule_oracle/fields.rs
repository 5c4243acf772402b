//! Random cron expressions as structures: each can be written as text, for the engine, and asked whether a value fits,
//! for the oracle. The asking is as plain as it can be.

use jiff::civil::{Date, DateTime, Weekday};
use proptest::prelude::*;

/// One item of a field's list.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Star(Option<u32>),
    One(u32),
    Range(u32, u32, Option<u32>),
    From(u32, u32),
    /// `L-n`
    LastMinus(u32),
    /// `dW`
    Nearest(u32),
    LastWorkday,
    /// `wL`
    LastWeekday(u32),
    /// `w#n`
    Nth(u32, u32),
}

#[derive(Clone, Debug)]
pub(crate) struct Field(pub(crate) Vec<Item>);

#[derive(Clone, Debug)]
pub(crate) struct Expression {
    pub(crate) second: Option<Field>,
    pub(crate) minute: Field,
    pub(crate) hour: Field,
    pub(crate) day: Field,
    pub(crate) month: Field,
    pub(crate) weekday: Field,
    pub(crate) year: Option<Field>,
    /// Write names where there are any.
    pub(crate) names: bool,
}

const MONTHS: [&str; 12] = ["Jan", "feb", "MAR", "Apr", "may", "JUN", "jul", "Aug", "SEP", "oct", "Nov", "DEC"];
const WEEKDAYS: [&str; 8] = ["sun", "MON", "Tue", "wed", "THU", "Fri", "sat", "7"];

impl Expression {
    /// One time of every day.
    pub(crate) fn at(hour: i64, minute: i64) -> Self {
        let one = |value: i64| Field(vec![Item::One(u32::try_from(value).unwrap())]);
        Self { hour: one(hour), ..Self::hourly(minute) }
    }

    /// One minute of every hour.
    pub(crate) fn hourly(minute: i64) -> Self {
        let star = || Field(vec![Item::Star(None)]);
        Self {
            second: None,
            minute: Field(vec![Item::One(u32::try_from(minute).unwrap())]),
            hour: star(),
            day: star(),
            month: star(),
            weekday: star(),
            year: None,
            names: false,
        }
    }

    pub(crate) fn text(&self) -> String {
        let plain = |n: u32| n.to_string();
        let month = |n: u32| if self.names { MONTHS[n as usize - 1].to_owned() } else { n.to_string() };
        let weekday = |n: u32| if self.names { WEEKDAYS[n as usize].to_owned() } else { n.to_string() };
        let mut words = Vec::new();
        words.extend(self.second.as_ref().map(|field| field.text(plain)));
        words.push(self.minute.text(plain));
        words.push(self.hour.text(plain));
        words.push(self.day.text(plain));
        words.push(self.month.text(month));
        words.push(self.weekday.text(weekday));
        words.extend(self.year.as_ref().map(|field| field.text(plain)));
        words.join(" ")
    }

    pub(crate) fn fixed_time(&self) -> bool {
        !self.minute.begins_with_star() && !self.hour.begins_with_star()
    }

    pub(crate) fn fits(&self, local: DateTime) -> bool {
        let seconds_fit = match &self.second {
            Some(field) => field.holds(local.second() as u32, 0, 59),
            None => local.second() == 0,
        };
        seconds_fit
            && self.minute.holds(local.minute() as u32, 0, 59)
            && self.hour.holds(local.hour() as u32, 0, 23)
            && self.fits_date(local.date())
    }

    pub(crate) fn fits_date(&self, date: Date) -> bool {
        let year_fits = self.year.as_ref().is_none_or(|field| field.holds(date.year() as u32, 1970, 2399));
        let day_fits = self.day.holds_day(date);
        let weekday_fits = self.weekday.holds_weekday(date);
        let days_fit = if self.day.begins_with_star() || self.weekday.begins_with_star() {
            day_fits && weekday_fits
        } else {
            day_fits || weekday_fits
        };
        year_fits && self.month.holds(date.month() as u32, 1, 12) && days_fit
    }
}

impl Field {
    fn text(&self, value: impl Fn(u32) -> String) -> String {
        let step = |n: &Option<u32>| n.map(|n| format!("/{n}")).unwrap_or_default();
        let items: Vec<String> = self
            .0
            .iter()
            .map(|item| match item {
                Item::Star(n) => format!("*{}", step(n)),
                Item::One(a) => value(*a),
                Item::Range(a, b, n) => format!("{}-{}{}", value(*a), value(*b), step(n)),
                Item::From(a, n) => format!("{}/{n}", value(*a)),
                Item::LastMinus(0) => "L".to_owned(),
                Item::LastMinus(n) => format!("L-{n}"),
                Item::Nearest(d) => format!("{d}W"),
                Item::LastWorkday => "LW".to_owned(),
                Item::LastWeekday(w) => format!("{}L", value(*w)),
                Item::Nth(w, n) => format!("{}#{n}", value(*w)),
            })
            .collect();
        items.join(",")
    }

    pub(crate) fn begins_with_star(&self) -> bool {
        matches!(self.0.first(), Some(Item::Star(_)))
    }

    /// Whether a plain value fits, counting along the range, one by one, over the field's end.
    pub(crate) fn holds(&self, value: u32, min: u32, max: u32) -> bool {
        self.0.iter().any(|item| match item {
            Item::Star(n) => (value - min).is_multiple_of(n.unwrap_or(1)),
            Item::One(a) => value == *a,
            Item::From(a, n) => value >= *a && (value - a).is_multiple_of(*n),
            Item::Range(a, b, n) => {
                let mut at = *a;
                let mut count = 0;
                loop {
                    if at == value && count % n.unwrap_or(1) == 0 {
                        return true;
                    }
                    if at == *b {
                        return false;
                    }
                    at = if at == max { min } else { at + 1 };
                    count += 1;
                }
            }
            _ => false,
        })
    }

    fn holds_day(&self, date: Date) -> bool {
        let in_month = |day: Date| day.month() == date.month() && day.year() == date.year();
        let works = |day: Date| !matches!(day.weekday(), Weekday::Saturday | Weekday::Sunday);
        let add = |day: Date, n: i64| day.checked_add(jiff::Span::new().days(n)).unwrap();
        self.holds(date.day() as u32, 1, 31)
            || self.0.iter().any(|item| match item {
                // n days later is still this month, and one more is not.
                Item::LastMinus(n) => in_month(add(date, i64::from(*n))) && !in_month(add(date, i64::from(*n) + 1)),
                Item::LastWorkday => works(date) && (1..=6).all(|n| !in_month(add(date, n)) || !works(add(date, n))),
                Item::Nearest(d) => {
                    if *d > date.days_in_month() as u32 {
                        return false;
                    }
                    let aim = date.with().day(*d as i8).build().unwrap();
                    // The nearest working day of the month; of two as near, which cannot be, the first.
                    let nearest =
                        [0, -1, 1, -2, 2].map(|n| add(aim, n)).into_iter().find(|day| works(*day) && in_month(*day));
                    nearest == Some(date)
                }
                _ => false,
            })
    }

    fn holds_weekday(&self, date: Date) -> bool {
        let weekday = date.weekday().to_sunday_zero_offset() as u32;
        let week_later = date.checked_add(jiff::Span::new().days(7)).unwrap();
        self.0.iter().any(|item| match item {
            Item::LastWeekday(w) => w % 7 == weekday && week_later.month() != date.month(),
            Item::Nth(w, n) => w % 7 == weekday && (date.day() as u32 - 1) / 7 + 1 == *n,
            Item::One(w) => w % 7 == weekday,
            // Sunday is both 0 and 7 where a range reaches to 7.
            Item::Range(a, 7, n) => {
                let reaches = |value: u32| value >= *a && (value - a).is_multiple_of(n.unwrap_or(1));
                reaches(weekday) || (weekday == 0 && reaches(7))
            }
            Item::Range(7, b, n) => Field(vec![Item::Range(0, *b, *n)]).holds(weekday, 0, 6),
            Item::From(7, n) => Field(vec![Item::From(0, *n)]).holds(weekday, 0, 6),
            other => Field(vec![other.clone()]).holds(weekday, 0, 6),
        })
    }
}

fn plain(min: u32, max: u32, most_step: u32) -> impl Strategy<Value = Item> {
    let value = min..=max;
    let step = prop::option::of(1..=most_step);
    prop_oneof![
        2 => value.clone().prop_map(Item::One),
        2 => (value.clone(), value.clone(), step).prop_map(|(a, b, n)| Item::Range(a, b, n)),
        1 => (value, 1..=most_step).prop_map(|(a, n)| Item::From(a, n)),
        1 => (1..=most_step).prop_map(|n| Item::Star(Some(n))),
        1 => Just(Item::Star(None)),
    ]
}

fn list(item: impl Strategy<Value = Item> + Clone + 'static, star: u32) -> impl Strategy<Value = Field> {
    prop_oneof![
        star => Just(Field(vec![Item::Star(None)])),
        3 => item.clone().prop_map(|item| Field(vec![item])),
        2 => prop::collection::vec(item, 1..4).prop_map(Field),
    ]
}

fn item(min: u32, max: u32, most_step: u32) -> BoxedStrategy<Item> {
    plain(min, max, most_step).boxed()
}

fn day() -> impl Strategy<Value = Field> {
    let rare = prop_oneof![
        (0..=30_u32).prop_map(Item::LastMinus),
        (1..=31_u32).prop_map(Item::Nearest),
        Just(Item::LastWorkday),
    ];
    list(prop_oneof![3 => item(1, 31, 31), 1 => rare].boxed(), 5)
}

fn weekday() -> impl Strategy<Value = Field> {
    let rare = prop_oneof![
        (0..=7_u32).prop_map(Item::LastWeekday),
        (0..=7_u32, 1..=5_u32).prop_map(|(w, n)| Item::Nth(w, n)),
    ];
    list(prop_oneof![3 => item(0, 7, 7), 1 => rare].boxed(), 5)
}

/// Five fields. `near_changes`: hours mostly where clocks change.
pub(crate) fn five(near_changes: bool) -> impl Strategy<Value = Expression> {
    let night = prop_oneof![2 => item(0, 4, 5), 1 => item(0, 23, 24)];
    let hour = if near_changes { night.boxed() } else { item(0, 23, 24) };
    (list(item(0, 59, 60), 1), list(hour, 1), day(), list(item(1, 12, 12), 8), weekday(), any::<bool>()).prop_map(
        |(minute, hour, day, month, weekday, names)| Expression {
            second: None,
            minute,
            hour,
            day,
            month,
            weekday,
            year: None,
            names,
        },
    )
}

/// Six fields, of which the slow ones are mostly free: the seconds are what is looked at.
pub(crate) fn six() -> impl Strategy<Value = Expression> {
    (list(item(0, 59, 60), 1), list(item(0, 59, 60), 2), list(item(0, 23, 24), 4), five(false)).prop_map(
        |(second, minute, hour, rest)| Expression {
            second: Some(second),
            minute,
            hour,
            day: Field(vec![Item::Star(None)]),
            month: Field(vec![Item::Star(None)]),
            ..rest
        },
    )
}

/// Seven fields at midnight: only the date matters.
pub(crate) fn dates() -> impl Strategy<Value = Expression> {
    let years = prop_oneof![
        3 => Just(Field(vec![Item::Star(None)])),
        1 => (1970..2399_u32, 0..100_u32).prop_map(|(y, n)| Field(vec![Item::Range(y, (y + n).min(2399), None)])),
        1 => prop::collection::vec((1970..=2399_u32).prop_map(Item::One), 1..5).prop_map(Field),
        1 => (1970..=2399_u32, 1..60_u32).prop_map(|(y, n)| Field(vec![Item::From(y, n)])),
    ];
    let zero = || Field(vec![Item::One(0)]);
    (day(), list(item(1, 12, 12), 2), weekday(), years, any::<bool>()).prop_map(
        move |(day, month, weekday, year, names)| Expression {
            second: Some(zero()),
            minute: zero(),
            hour: zero(),
            day,
            month,
            weekday,
            year: Some(year),
            names,
        },
    )
}
