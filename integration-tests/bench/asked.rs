//! Figures with the bound that was asked for. A figure beyond its bound is printed as such, and fails the run once all is
//! printed and written: whoever looks at one that is broken wants to see the others too.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What was asked of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    AtMost(f64),
    AtLeast(f64),
    /// Nothing: it is there for people.
    Nothing,
}

/// One figure.
#[derive(Clone, Debug)]
struct Figure {
    part: &'static str,
    row: String,
    what: &'static str,
    value: f64,
    unit: &'static str,
    asked: Asked,
}

/// All figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Asked {
    /// A figure that could not be had (NaN) is within no bound.
    fn allows(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Nothing => true,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("at most {most}"),
            Self::AtLeast(least) => format!("at least {least}"),
            Self::Nothing => String::new(),
        }
    }
}

impl Figures {
    /// One more: `what` of `row`, such as `longest without a start` of `leader killed`.
    pub fn add(
        &mut self,
        part: &'static str,
        row: &str,
        what: &'static str,
        (value, unit): (f64, &'static str),
        asked: Asked,
    ) {
        let value = (value * 100.0).round() / 100.0;
        self.0.push(Figure { part, row: row.to_owned(), what, value, unit, asked });
    }

    /// For people.
    pub fn table(&self, text: &mut String) {
        if self.0.is_empty() {
            return;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{:<44} {:<38} {:>12}        asked", "What was asked for", "", "measured");
        let mut last = "";
        for figure in &self.0 {
            let row = format!("{}: {}", figure.part, figure.row);
            let shown = if last == figure.row { "" } else { row.as_str() };
            last = &figure.row;
            let broken = if figure.asked.allows(figure.value) { "" } else { "  BROKEN" };
            let _ = writeln!(
                text,
                "{shown:<44} {:<38} {:>12.2} {:<6} {}{broken}",
                figure.what,
                figure.value,
                figure.unit,
                figure.asked.text()
            );
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let figures = self.0.iter().map(|figure| {
            let (most, least) = match figure.asked {
                Asked::AtMost(most) => (Some(most), None),
                Asked::AtLeast(least) => (None, Some(least)),
                Asked::Nothing => (None, None),
            };
            json!({
                "part": figure.part, "row": figure.row, "what": figure.what, "value": figure.value, "unit": figure.unit,
                "at_most": most, "at_least": least, "holds": figure.asked.allows(figure.value),
            })
        });
        figures.collect()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those beyond their bounds, a line each.
    pub fn broken(&self) -> Vec<String> {
        let broken = self.0.iter().filter(|figure| !figure.asked.allows(figure.value));
        broken
            .map(|figure| {
                format!(
                    "{}: {}: {} is {} {}, asked is {}",
                    figure.part,
                    figure.row,
                    figure.what,
                    figure.value,
                    figure.unit,
                    figure.asked.text()
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_its_bound_is_named_and_so_is_what_could_not_be_measured() {
        let mut figures = Figures::default();
        figures.add("gaps", "leader killed", "next claim", (0.4, "s"), Asked::AtMost(1.0));
        figures.add("gaps", "leader frozen", "next claim", (6.0, "s"), Asked::AtMost(5.0));
        figures.add("bounds", "recovery", "rows a second", (9_000.0, "/s"), Asked::AtLeast(10_000.0));
        figures.add("drain", "released", "p99", (f64::NAN, "s"), Asked::AtMost(1.0));
        figures.add("drain", "released", "p50", (f64::NAN, "s"), Asked::Nothing);
        let broken = figures.broken();
        assert_eq!(broken.len(), 3, "{broken:?}");
        assert_eq!(broken[0], "gaps: leader frozen: next claim is 6 s, asked is at most 5");
        let mut text = String::new();
        figures.table(&mut text);
        assert_eq!(text.matches("BROKEN").count(), 3, "{text}");
    }
}
