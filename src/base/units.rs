//! Quantities as operators write them: "200ms", "64KiB", "100MiB/s".
//!
//! Purpose: one grammar for every duration, size and rate in specs, flags and answers.
//! Invariants: a value has exactly one printed form (the largest unit that divides it), and parsing
//! that form gives the value back; no float, no rounding, no overflow. Failure: a [`UnitError`] that
//! says which units are allowed. Deliberately absent: decimal multiples ("64KB"), fractions
//! ("1.5s") and bare numbers, because each of them has been misread by somebody.

use super::time::Millis;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Longest duration accepted: one year. Nothing an operator configures waits longer, and sums of
/// such values stay far from `u64::MAX`.
pub const TIMESPAN_MAX: Timespan = Timespan(366 * 24 * 3_600_000);

/// Largest size accepted: 1 PiB; sums and products by small counts stay far from `u64::MAX`.
pub const SIZE_MAX: Size = Size(1 << 50);

/// Longest text worth parsing as a quantity (20 digits of a `u64` and a unit fit).
const TEXT_MAX: usize = 32;

const TIME_UNITS: &[(&str, u64)] = &[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Why a quantity was refused. The texts are written for the operator who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing but a number.
    #[error("{text:?} has no unit; write it with one of {allowed}")]
    NoUnit {
        /// What was read.
        text: String,
        /// The units that exist.
        allowed: &'static str,
    },
    /// A unit that does not exist here.
    #[error("{unit:?} is no unit of {what}; use one of {allowed}")]
    UnknownUnit {
        /// What was read as the unit.
        unit: String,
        /// "a duration", "a size", "a rate".
        what: &'static str,
        /// The units that exist.
        allowed: &'static str,
    },
    /// No whole number in front of the unit: nothing, a sign, a fraction.
    #[error("{text:?} is no whole number with its unit")]
    NoNumber {
        /// What was read.
        text: String,
    },
    /// Above the greatest value this type holds.
    #[error("{text:?} is more than {max}")]
    TooLarge {
        /// What was read.
        text: String,
        /// The greatest value, printed.
        max: String,
    },
}

const TIME_ALLOWED: &str = "ms, s, m, h";
const SIZE_ALLOWED: &str = "B, KiB, MiB, GiB, TiB";
const RATE_ALLOWED: &str = "B/s, KiB/s, MiB/s, GiB/s, TiB/s, or the word adaptive";

fn split<'a>(text: &'a str, allowed: &'static str) -> Result<(u64, &'a str), UnitError> {
    let shown = || text.chars().take(TEXT_MAX).collect::<String>();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() || unit.starts_with('.') || text.len() > TEXT_MAX {
        return Err(UnitError::NoNumber { text: shown() });
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit { text: shown(), allowed });
    }
    let value = number
        .parse::<u64>()
        .map_err(|_| UnitError::TooLarge { text: shown(), max: "a 64-bit number holds".to_owned() })?;
    Ok((value, unit))
}

fn scaled(
    text: &str,
    value: u64,
    unit: &str,
    units: &[(&str, u64)],
    max: u64,
) -> Option<Result<u64, UnitError>> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(
        value
            .checked_mul(*factor)
            .filter(|v| *v <= max)
            .ok_or_else(|| UnitError::TooLarge { text: text.to_owned(), max: print(max, units) }),
    )
}

fn print(value: u64, units: &[(&str, u64)]) -> String {
    // Zero is divisible by everything; "0s" and "0B" read better than "0h" and "0TiB".
    let fallback = if units.len() == TIME_UNITS.len() { "s" } else { "B" };
    if value == 0 {
        return format!("0{fallback}");
    }
    units
        .iter()
        .find(|(_, factor)| value.is_multiple_of(*factor))
        .map_or_else(|| value.to_string(), |(name, factor)| format!("{}{name}", value / factor))
}

/// A duration in whole milliseconds: "200ms", "2s", "5m", "24h".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timespan(Millis);

impl Timespan {
    /// From milliseconds; above [`TIMESPAN_MAX`] it saturates there.
    pub const fn from_millis(ms: Millis) -> Self {
        if ms > TIMESPAN_MAX.0 { TIMESPAN_MAX } else { Self(ms) }
    }

    /// From seconds; above [`TIMESPAN_MAX`] it saturates there.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1_000))
    }

    /// The value in milliseconds.
    pub const fn as_millis(self) -> Millis {
        self.0
    }

    /// The value as the standard library's type.
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl FromStr for Timespan {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (value, unit) = split(text, TIME_ALLOWED)?;
        scaled(text, value, unit, TIME_UNITS, TIMESPAN_MAX.0).map_or_else(
            || {
                Err(UnitError::UnknownUnit {
                    unit: unit.to_owned(),
                    what: "a duration",
                    allowed: TIME_ALLOWED,
                })
            },
            |v| v.map(Self),
        )
    }
}

impl fmt::Display for Timespan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&print(self.0, TIME_UNITS))
    }
}

/// A size in bytes, written in binary multiples: "4096B", "64KiB", "4MiB".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

impl Size {
    /// From bytes; above [`SIZE_MAX`] it saturates there.
    pub const fn from_bytes(bytes: u64) -> Self {
        if bytes > SIZE_MAX.0 { SIZE_MAX } else { Self(bytes) }
    }

    /// The value in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (value, unit) = split(text, SIZE_ALLOWED)?;
        scaled(text, value, unit, SIZE_UNITS, SIZE_MAX.0).map_or_else(
            || Err(UnitError::UnknownUnit { unit: unit.to_owned(), what: "a size", allowed: SIZE_ALLOWED }),
            |v| v.map(Self),
        )
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&print(self.0, SIZE_UNITS))
    }
}

/// A bandwidth limit: `adaptive` (yield to the application) or a fixed "100MiB/s".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rate {
    /// As fast as the application's own traffic leaves room for.
    #[default]
    Adaptive,
    /// At most so many bytes a second.
    PerSecond(Size),
}

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "adaptive" {
            return Ok(Self::Adaptive);
        }
        let (_, unit) = split(text, RATE_ALLOWED)?;
        let unknown =
            || UnitError::UnknownUnit { unit: unit.to_owned(), what: "a rate", allowed: RATE_ALLOWED };
        let size = text.strip_suffix("/s").ok_or_else(unknown)?;
        size.parse().map(Self::PerSecond).map_err(|e| match e {
            UnitError::TooLarge { .. } => e,
            _ => unknown(),
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => f.pad("adaptive"),
            Self::PerSecond(size) => f.pad(&format!("{size}/s")),
        }
    }
}

macro_rules! written_as_text {
    ($type:ty, $name:literal, $pattern:literal, $format:literal, $text:literal) => {
        impl TryFrom<String> for $type {
            type Error = UnitError;
            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "pattern": $pattern, "format": $format, "description": $text
                })
            }
        }
    };
}

written_as_text!(
    Timespan,
    "Duration",
    "^[0-9]+(ms|s|m|h)$",
    "skc-duration",
    "A duration with its unit: ms, s, m or h."
);
written_as_text!(
    Size,
    "Size",
    "^[0-9]+(B|KiB|MiB|GiB|TiB)$",
    "skc-size",
    "A size with its unit: B, KiB, MiB, GiB or TiB."
);
written_as_text!(
    Rate,
    "Rate",
    "^(adaptive|[0-9]+(B|KiB|MiB|GiB|TiB)/s)$",
    "skc-rate",
    "`adaptive`, or a size a second such as 100MiB/s."
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_unit_reads_as_documented() {
        assert_eq!("200ms".parse(), Ok(Timespan(200)));
        assert_eq!("2s".parse(), Ok(Timespan(2_000)));
        assert_eq!("5m".parse(), Ok(Timespan(300_000)));
        assert_eq!("24h".parse(), Ok(Timespan(86_400_000)));
        assert_eq!("64KiB".parse(), Ok(Size(65_536)));
        assert_eq!("4MiB".parse(), Ok(Size(4 << 20)));
        assert_eq!("adaptive".parse(), Ok(Rate::Adaptive));
        assert_eq!("100MiB/s".parse(), Ok(Rate::PerSecond(Size(100 << 20))));
    }

    #[test]
    fn what_could_be_misread_is_refused() {
        for text in ["", "2", "2 s", "1.5s", "-1s", "2sec", "2S", "s", "2d", "²s", "1e3s"] {
            assert!(text.parse::<Timespan>().is_err(), "{text:?} was read as a duration");
        }
        for text in ["64", "64KB", "64k", "64kib", "KiB", "64 KiB", "0x10B"] {
            assert!(text.parse::<Size>().is_err(), "{text:?} was read as a size");
        }
        for text in ["fast", "100MiB", "100MB/s", "/s", "100/s", "Adaptive"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?} was read as a rate");
        }
    }

    #[test]
    fn the_limit_is_accepted_and_one_over_is_not() {
        assert_eq!(format!("{}ms", TIMESPAN_MAX.0).parse(), Ok(TIMESPAN_MAX));
        assert!(format!("{}ms", TIMESPAN_MAX.0 + 1).parse::<Timespan>().is_err());
        assert_eq!(format!("{}B", SIZE_MAX.0).parse(), Ok(SIZE_MAX));
        assert!(format!("{}B", SIZE_MAX.0 + 1).parse::<Size>().is_err());
        assert!(format!("{}TiB", u64::MAX).parse::<Size>().is_err());
        assert!("99999999999999999999999s".parse::<Timespan>().is_err());
    }

    proptest! {
        #[test]
        fn a_printed_duration_reads_back(ms in 0..=TIMESPAN_MAX.0) {
            prop_assert_eq!(Timespan(ms).to_string().parse(), Ok(Timespan(ms)));
        }

        #[test]
        fn a_printed_size_reads_back(bytes in 0..=SIZE_MAX.0, shift in 0u32..40) {
            let size = Size(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let rate = Rate::PerSecond(size);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Timespan>();
            let _ = text.parse::<Size>();
            let _ = text.parse::<Rate>();
        }
    }
}
