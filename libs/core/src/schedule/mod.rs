//! When a job fires: cron lines, intervals and single instants, in time zones, across changes of the clocks.
//!
//! An author writes a [`TimetableSpec`]; [`Timetable::parse`] checks it, reporting every mistake at once, and everything
//! above asks the [`Timetable`] for instants. No clock is read; the time zone database is looked into in one file, `zone.rs`,
//! once per zone and process. The rules are in `docs/schedules.md`, each with an example that a test runs.
//!
//! From text to instant: `cron_parse` (with `cron_item`) reads text into the bits of `cron`, which searches civil time;
//! `resolve` places civil time in a zone and applies the rules for gaps and overlaps; `search` finds the next instant of all
//! sources past what `exclusion` takes out; `timetable` checks, bounds and answers. `civil` is the calendar, `describe` the
//! English, `preview` (with `preview_note`) what a person sees beforehand.

mod civil;
mod cron;
mod cron_item;
mod cron_parse;
mod describe;
mod error;
mod exclusion;
mod interval;
mod preview;
mod preview_note;
mod resolve;
mod search;
mod spec;
mod timetable;
mod zone;

pub use error::ScheduleError;
pub use interval::parse_interval;
pub use preview::{PREVIEW_MAX, Preview, PreviewFire, preview};
pub use search::LOOKS_MAX;
pub use spec::{DstGap, DstOverlap, Exclusion, Spec, TimetableSpec, anchor};
pub use timetable::{EXCLUSIONS_MAX, Next, SPECS_MAX, Timetable, utc};
pub use zone::{check_timezone, database_description, timezone_name, zone_rules};
