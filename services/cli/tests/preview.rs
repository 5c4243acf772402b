//! `carillon preview` as a person runs it: no server, no network, nothing but the program.

use std::process::{Command, Output, Stdio};

fn preview(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carillon"));
    command.env_clear().stdin(Stdio::null()).arg("preview").args(arguments);
    command.output().unwrap_or_else(|error| panic!("{error}"))
}

fn shown(arguments: &[&str]) -> String {
    let output = preview(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(arguments: &[&str]) -> Vec<String> {
    let output = preview(arguments);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

#[test]
fn a_table_is_aligned_and_tells_what_the_clocks_did() {
    let text = shown(&["30 2 * * *", "--tz", "europe/berlin", "--from", "2026-03-28T00:00:00Z", "--count", "3"]);
    assert_eq!(
        text,
        "\
at 02:30 every day, Europe/Berlin

UTC                   Europe/Berlin
2026-03-28T01:30:00Z  Sat 2026-03-28 02:30:00 +01:00
2026-03-29T01:00:00Z  Sun 2026-03-29 03:00:00 +02:00  moved: 02:30 does not exist on 2026-03-29, clocks go from 02:00 to 03:00
2026-03-30T00:30:00Z  Mon 2026-03-30 02:30:00 +02:00
"
    );
}

#[test]
fn columns_fit_the_widest_value() {
    let from = "2026-12-01T00:00:00.700+01:00";
    let text = shown(&["--interval", "1s300ms", "--from", from, "-n", "2", "--tz", "Asia/Kolkata"]);
    assert_eq!(
        text,
        "\
every 1s 300ms from 2026-11-30T23:00:02Z

UTC                       Asia/Kolkata
2026-11-30T23:00:02Z      Tue 2026-12-01 04:30:02 +05:30
2026-11-30T23:00:03.300Z  Tue 2026-12-01 04:30:03.300 +05:30
"
    );
}

#[test]
fn schedules_are_united_and_exclusions_taken_out() {
    let text = shown(&[
        "0 12 * * *",
        "@every 12h",
        "--start=2026-12-24T00:00:00Z",
        "--end=2026-12-31T00:00:00Z",
        "--from=2026-01-01T00:00:00Z",
        "--exclude=2026-12-25..2026-12-29",
        "--exclude=* 9-17 * * *",
        "--exclude=2026-12-31 in Asia/Tokyo",
    ]);
    assert_eq!(
        text,
        "\
at 12:00 every day; and every 12h from 2026-12-24T00:00:00Z, UTC, not before 2026-12-24T00:00:00Z, not after 2026-12-31T00:00:00Z, except from 2026-12-25 to 2026-12-29 and every minute from 09:00 to 17:59 and on 2026-12-31 (Asia/Tokyo)

UTC
2026-12-24T00:00:00Z  Thu
2026-12-30T00:00:00Z  Wed
no further fire: --end is 2026-12-31T00:00:00Z; all that would come until then is excluded
"
    );
}

#[test]
fn the_rules_for_the_clocks_can_be_chosen() {
    let gap = ["30 2 * * *", "--tz=Europe/Berlin", "--from=2026-03-29T00:00:00Z", "-n1"];
    assert!(shown(&[&gap[..], &["--dst-gap", "SKIP"]].concat()).contains("2026-03-30T00:30:00Z  Mon"));
    assert!(shown(&[&gap[..], &["--dst-gap", "RUN_AFTER"]].concat()).contains("2026-03-29T01:00:00Z  Sun"));
    let overlap = ["30 2 * * *", "--tz=Europe/Berlin", "--from=2026-10-25T00:00:00Z", "-n1"];
    let last = shown(&[&overlap[..], &["--dst-overlap", "last"]].concat());
    assert!(
        last.contains("2026-10-25T01:30:00Z  Sun") && last.contains("second pass; the first does not fire"),
        "{last}"
    );
}

#[test]
fn the_same_job_always_gets_the_same_h() {
    let of = |id: &str| shown(&["H H(1-4) * * *", "--job-id", id, "--from", "2026-11-27T00:00:00Z", "-n", "1"]);
    let first = of("00000000-0000-0000-0000-000000000001");
    assert!(first.starts_with("at 02:04 every day (chosen by H for this job), UTC\n\nUTC"), "{first}");
    assert!(of("00000000-0000-0000-0000-000000000002").starts_with("at 02:55"));
    let example = shown(&["H * * * *"]);
    let words =
        "(no job was named, so these values of H are only an example), UTC\n(--job-id shows those of a job)\n\n";
    assert!(example.contains(words), "{example}");
}

#[test]
fn without_from_it_begins_now_and_a_schedule_may_have_ended() {
    assert_eq!(shown(&["* * * * *"]).lines().count(), 13);
    let text = shown(&["0 0 0 1 1 ? 2020", "--from", "2026-01-01T00:00:00Z"]);
    let reason = "no fire from 2026-01-01T00:00:00Z on: its last instant was 2020-01-01T00:00:00Z";
    assert!(text.ends_with(&format!("\n\n{reason}\n")), "{text}");
    let now = shown(&["0 0 0 1 1 ? 2020"]);
    let from = now.split_once("no fire from ").unwrap_or_default().1;
    let from = from.split_once(" on: ").unwrap_or_default().0;
    assert!((20..=24).contains(&from.len()) && from.ends_with('Z'), "to the millisecond at most: {from}");
    let end_of_time = shown(&["--interval=1d", "--start=9999-12-31T00:00:00Z", "--from=9999-12-01T00:00:00Z"]);
    assert!(
        end_of_time.ends_with("00:00:00Z  Fri\nno further fire: everything ends with the year 9999\n"),
        "{end_of_time}"
    );
}

#[test]
fn mistakes_are_plain_lines_all_at_once() {
    assert_eq!(
        refused(&[
            "61 24 * * *",
            "@daily",
            "0 0 * *",
            "--tz",
            "Berlin",
            "--exclude",
            "* * * * * *",
            "--exclude",
            "0 0 L 13 *"
        ]),
        [
            "carillon: --tz: \"Berlin\" is not an IANA time zone name such as Europe/Berlin; did you mean Europe/Berlin?",
            "carillon: \"61 24 * * *\": minute: 61 is outside 0-59 (at 1)",
            "carillon: \"61 24 * * *\": hour: 24 is outside 0-23 (at 4)",
            "carillon: \"0 0 * *\": 4 fields found, 5 to 7 are allowed: [second] minute hour day-of-month month weekday [year]",
            "carillon: --exclude \"* * * * * *\": 6 fields found; a pattern of minutes has five",
            "carillon: --exclude \"0 0 L 13 *\": month: 13 is outside 1-12 or JAN-DEC (at 7)",
        ]
    );
    assert_eq!(
        refused(&["0 0 30 2 *"]),
        [
            "carillon: \"0 0 30 2 *\": can never fire: no day of the years 1970-2399 fits its day of month, month, weekday and year"
        ]
    );
    assert_eq!(refused(&["--interval", "9ms"]), ["carillon: --interval \"9ms\": 9ms is shorter than 100ms"]);
    assert_eq!(
        refused(&["@daily", "--exclude", "2026-13-01"]),
        [
            "carillon: --exclude \"2026-13-01\" is no date (2026-12-24), no range of dates (2026-12-24..2026-12-26) and no cron expression of five fields"
        ]
    );
    assert_eq!(
        refused(&["@daily", "--start", "2026-12-02T00:00:00Z", "--end", "2026-12-01T00:00:00Z"]),
        ["carillon: --end: 2026-12-01T00:00:00Z is before --start 2026-12-02T00:00:00Z"]
    );
    assert_eq!(
        refused(&["@daily", "--exclude", "* * * * *"]),
        ["carillon: --exclude: can never fire: the exclusions leave nothing of it"]
    );
    let control = refused(&["\u{1b}[2J 0 * * *"]);
    assert!(!control.concat().contains('\u{1b}'), "{control:?}");
}

#[test]
fn what_cannot_be_read_does_not_hide_other_mistakes() {
    assert_eq!(
        refused(&["61 * * * *", "* 25 * * *", "--tz=Mars", "--exclude=foo", "--exclude=* * 30 2 *", "--exclude=bar.."]),
        [
            "carillon: --tz: \"Mars\" is not an IANA time zone name such as Europe/Berlin",
            "carillon: \"61 * * * *\": minute: 61 is outside 0-59 (at 1)",
            "carillon: \"* 25 * * *\": hour: 25 is outside 0-23 (at 3)",
            "carillon: --exclude \"* * 30 2 *\": can never match: no day of any year fits its day of month, month and weekday",
            "carillon: --exclude \"foo\" is no date (2026-12-24), no range of dates (2026-12-24..2026-12-26) and no cron expression of five fields",
            "carillon: --exclude \"bar..\" is no date (2026-12-24), no range of dates (2026-12-24..2026-12-26) and no cron expression of five fields",
        ]
    );
    let found = refused(&["--interval=9ms", "--exclude=foo", "--tz=Mars"]);
    let begins: Vec<&str> = found.iter().map(|line| line.split('"').next().unwrap_or_default()).collect();
    assert_eq!(begins, ["carillon: --tz: ", "carillon: --interval ", "carillon: --exclude "]);
    let start = ["0 0 0 1 1 ? 2027", "--start", "2028-01-01T00:00:00Z"];
    assert_eq!(refused(&start), ["carillon: --start: can never fire: its last instant is before --start"]);
}

#[test]
fn an_expression_without_quotes_is_told_to_have_some() {
    let hint = "carillon: an expression is one argument: put it in quotes, as in carillon preview \"0 2 * * *\"";
    // What the shell makes of the stars does not matter.
    for arguments in
        [&["0", "2", "*", "*", "*"][..], &["0", "2", "Cargo.toml", "src", "tests", "Cargo.toml", "src", "tests"]]
    {
        assert_eq!(refused(arguments), [hint]);
    }
    assert!(shown(&["@daily", "@hourly", "@weekly", "@monthly", "@yearly"]).starts_with("at 00:00"));
}

#[test]
fn wrong_arguments_are_errors_of_use() {
    for arguments in [
        &[][..],
        &["@daily", "--interval", "1h"],
        &["@daily", "--count", "0"],
        &["@daily", "--count", "1001"],
        &["@daily", "--from", "tomorrow"],
        &["@daily", "--job-id", "7"],
        &["@daily", "--dst-gap", "often"],
        &["@daily", "--colour"],
    ] {
        refused(arguments);
    }
    let help = shown(&["--help"]);
    for wanted in ["Examples:", "--tz", "--exclude", "--job-id", "--dst-overlap", "64", "[default: 10]"] {
        assert!(help.contains(wanted), "{wanted}: {help}");
    }
}
