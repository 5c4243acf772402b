//! A number as a client wrote it: read digit by digit where it stands for an integer, and told what it would lose where nothing
//! but a double is there to hold it.

use carillon_core::error::excerpt;

/// The largest integer up to which a 64-bit float, and so JSON in most languages, holds every one.
const EXACT_INTEGER_MAX: u128 = 1 << 53;
/// Beyond what a body's digits can make up for.
const EXPONENT_MAX: i64 = i64::MAX / 4;

/// A number as it was written, by the grammar of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Number(Box<str>);

/// What a number is: its digits, without zeros at either end, times ten to its exponent. Zero has no digits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decimal {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Number {
    /// What is known to be of JSON's grammar.
    pub(crate) fn written(text: &str) -> Self {
        Self(text.into())
    }

    /// As it was written, shortened.
    pub(crate) fn shown(&self) -> String {
        excerpt(&self.0, 40)
    }

    /// The nearest double; `None` if it is beyond all of them.
    pub(crate) fn double(&self) -> Option<f64> {
        self.0.parse().ok().filter(|double: &f64| double.is_finite())
    }

    /// The whole number that it is, however it is written: `3.0` and `30e-1` are whole too. No double comes in between.
    pub(crate) fn whole(&self) -> Option<i128> {
        Decimal::of(&self.0).whole()
    }

    /// As a double, where nothing else holds numbers.
    ///
    /// # Errors
    /// The rule, if something of it would be lost in silence: an integer whose neighbours no double tells from it, what is
    /// beyond all doubles, what is not zero and would become zero. A fraction is not refused: everybody knows that of these
    /// doubles keep the nearest.
    pub(crate) fn kept_double(&self) -> Result<f64, String> {
        let shown = self.shown();
        let double = self.double().ok_or_else(|| {
            format!("the number {shown} is beyond ±1.8e308, more than a double holds: send it as a string")
        })?;
        let decimal = Decimal::of(&self.0);
        let is_exact = decimal.whole().is_some_and(|whole| whole.unsigned_abs() <= EXACT_INTEGER_MAX);
        if !is_exact && (self.is_integer() || decimal.loses_digits(double)) {
            return Err(format!("the integer {shown} is beyond ±2^53 and would lose digits: send it as a string"));
        }
        if double == 0.0 && !decimal.digits.is_empty() {
            return Err(format!("the number {shown} is nearer to 0 than any double: send it as a string"));
        }
        Ok(double)
    }

    fn is_integer(&self) -> bool {
        !self.0.contains(['.', 'e', 'E'])
    }
}

impl Decimal {
    fn of(number: &str) -> Self {
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let utmost = if exponent.starts_with('-') { -EXPONENT_MAX } else { EXPONENT_MAX };
        let exponent = exponent.parse().map_or(utmost, |exponent: i64| exponent.clamp(-EXPONENT_MAX, EXPONENT_MAX));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{}{fraction}", whole.trim_start_matches('-'));
        let digits = all.trim_start_matches('0');
        let significant = digits.trim_end_matches('0');
        let length = |text: &str| i64::try_from(text.len()).unwrap_or_default();
        Self {
            is_negative: mantissa.starts_with('-'),
            digits: significant.to_owned(),
            exponent: exponent - length(fraction) + length(digits) - length(significant),
        }
    }

    fn whole(&self) -> Option<i128> {
        if self.digits.is_empty() {
            return Some(0);
        }
        let ten_to = 10_i128.checked_pow(u32::try_from(self.exponent).ok()?)?;
        let number = self.digits.parse::<i128>().ok()?.checked_mul(ten_to)?;
        Some(if self.is_negative { -number } else { number })
    }

    /// Whether it is whole, and neither what the double is nor what one writes for it: `9007199254740993.0` loses its last digit,
    /// `1e300` nothing that anybody wrote.
    fn loses_digits(&self, double: f64) -> bool {
        let is_as = |text: String| Self::of(&text) == *self;
        self.exponent >= 0 && !is_as(format!("{double:e}")) && !is_as(format!("{double:.0}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::{self, Json};

    #[test]
    fn a_number_is_kept_or_refused_by_what_would_be_lost() {
        let kept = |text: &str| match document::parse(text.as_bytes()) {
            Ok(Json::Number(number)) => number.kept_double().map(f64::to_bits),
            other => panic!("{text}: {other:?}"),
        };
        for text in [
            "0",
            "-0",
            "-0.0",
            "0e999",
            "9007199254740992",
            "-9007199254740992",
            "1.7976931348623157e308",
            "5e-324",
            "1e22",
            "0.42451918914251396",
            "1E+2",
            "18446744073709551616.0",
            "9007199254740994.0",
            "90071992547409920e-1",
            "1e23",
            "1e300",
            "9007199254740993.5",
        ] {
            assert_eq!(kept(text), Ok(text.parse::<f64>().unwrap().to_bits()), "{text}");
        }
        for (text, rule) in [
            ("9007199254740993", "beyond ±2^53"),
            ("-9007199254740993", "beyond ±2^53"),
            ("18446744073709551617", "beyond ±2^53"),
            ("9007199254740993.0", "beyond ±2^53"),
            ("-9007199254740993e0", "beyond ±2^53"),
            ("90071992547409930e-1", "beyond ±2^53"),
            ("12345678901234567890123e3", "beyond ±2^53"),
            (&"9".repeat(300), "beyond ±2^53"),
            (&"9".repeat(400), "beyond ±1.8e308"),
            ("1e400", "beyond ±1.8e308"),
            ("-1e400", "beyond ±1.8e308"),
            ("1e-400", "nearer to 0"),
        ] {
            assert!(kept(text).unwrap_err().contains(rule), "{text}: {:?}", kept(text));
        }
        assert!(kept(&"9".repeat(400)).unwrap_err().len() < 200, "what is shown is short");
    }

    #[test]
    fn a_whole_number_is_read_digit_by_digit() {
        let whole = |text: &str| match document::parse(text.as_bytes()) {
            Ok(Json::Number(number)) => number.whole(),
            other => panic!("{text}: {other:?}"),
        };
        for (text, number) in [
            ("-0.0e7", Some(0)),
            ("0e99999999999999999999", Some(0)),
            ("1.0", Some(1)),
            ("-1.5e1", Some(-15)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("1.8446744073709551615e19", Some(18_446_744_073_709_551_615)),
            ("1000e-3", Some(1)),
            ("1.5", None),
            ("1e-400", None),
            ("1e400", None),
            ("1e99999999999999999999", None),
            ("1e-99999999999999999999", None),
        ] {
            assert_eq!(whole(text), number, "{text}");
        }
    }
}
