//! What the metrics of an executor mean, as `/metrics` says it. Each is recorded where it happens.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Once, at the start.
pub(crate) fn describe() {
    describe_gauge!("carillon_executor_slots_used", Unit::Count, "Executions in hand: held, running or being recorded");
    describe_gauge!("carillon_executor_unrecorded", Unit::Count, "Ended attempts that wait to be written to Postgres");
    describe_gauge!(
        "carillon_executor_records_set_aside",
        Unit::Count,
        "What waits to be written by itself: somebody else has locked it, or Postgres refuses it"
    );
    describe_gauge!("carillon_executor_in_hand_bytes", Unit::Bytes, "What is held or running, with its payloads");
    describe_gauge!(
        "carillon_executor_unrecorded_bytes",
        Unit::Bytes,
        "Results, errors and log lines that wait to be written to Postgres"
    );
    describe_gauge!(
        "carillon_executor_handler_threads",
        Unit::Count,
        "Handler threads, once blocked ones made more necessary"
    );
    describe_histogram!(
        "carillon_execution_lateness_seconds",
        Unit::Seconds,
        "From the instant of a fire to the start of its handler"
    );
    describe_histogram!("carillon_executor_flush_seconds", Unit::Seconds, "Duration of a transaction that records");
    describe_histogram!("carillon_executor_flush_items", Unit::Count, "Ended attempts in a transaction that records");
    describe_histogram!("carillon_executor_beat_seconds", Unit::Seconds, "Round trip of the beat that keeps it live");
    counters();
}

fn counters() {
    let counters = [
        ("carillon_executor_attempts_total", "Attempts recorded, by status"),
        ("carillon_executor_refused_total", "Results that were not recorded: over already, unknown, or late"),
        ("carillon_executor_unwritable_total", "Results that Postgres refused to hold: their executions are FAILED"),
        ("carillon_executor_doubtful_total", "Entries that were looked up in Postgres before their start"),
        ("carillon_executor_unknown_total", "Entries of executions that Postgres does not know: dropped"),
        ("carillon_executor_taken_total", "Executions taken after a look at Postgres"),
        ("carillon_executor_taken_over_total", "Entries taken over from executors that ended or were lost"),
        ("carillon_executor_released_total", "Entries released unstarted, for others to start"),
        ("carillon_executor_set_aside_total", "Entries that cannot be read and were set aside"),
        ("carillon_executor_incarnations_total", "Times that the contact with Postgres broke and was made anew"),
        ("carillon_executor_blocked_threads_total", "Handler threads found blocked by handlers that do not yield"),
    ];
    for (name, meaning) in counters {
        describe_counter!(name, Unit::Count, meaning);
    }
}
