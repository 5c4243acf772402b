//! What the metrics of a dispatcher mean, as `/metrics` says it. Each is recorded where it happens.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Once, at the start.
pub(crate) fn describe() {
    describe_gauge!("carillon_dispatcher_leader", "1 while this process leads its shard, 0 while it stands by");
    describe_counter!("carillon_dispatcher_terms_total", Unit::Count, "Terms that this process has begun to lead");
    describe_counter!("carillon_dispatcher_claimed_total", Unit::Count, "Executions claimed, retries included");
    describe_counter!("carillon_dispatcher_skipped_total", Unit::Count, "Fires recorded SKIPPED instead of claimed");
    describe_counter!(
        "carillon_dispatcher_completed_total",
        Unit::Count,
        "Jobs completed: their timetable had ended, nothing was open"
    );
    describe_histogram!(
        "carillon_dispatcher_claim_seconds",
        Unit::Seconds,
        "Duration of a claim, from BEGIN to COMMIT"
    );
    describe_counter!(
        "carillon_dispatcher_publish_failures_total",
        Unit::Count,
        "Attempts to publish a batch that Redis did not answer, or refused (full); a batch is sent until Redis takes it"
    );
    describe_counter!(
        "carillon_dispatcher_republished_total",
        Unit::Count,
        "Entries of open executions that Redis had lost and that were published again"
    );
    describe_counter!(
        "carillon_dispatcher_ended_unread_total",
        Unit::Count,
        "Cancelled or withdrawn executions ended here, since no executor holds them"
    );
    describe_gauge!(
        "carillon_dispatcher_deletions",
        Unit::Count,
        "Deleted jobs of which this process still has to end what is open"
    );
    describe_counter!(
        "carillon_dispatcher_deletions_failed_total",
        Unit::Count,
        "Times that ending what is open of a deleted job has failed; it is tried again, alone, up to a minute later"
    );
    describe_counter!(
        "carillon_dispatcher_streams_refused_total",
        Unit::Count,
        "Times that Redis did not work on one stream whose cancelled executions were to end; asked again after ten seconds"
    );
    describe_counter!(
        "carillon_dispatcher_refused_total",
        Unit::Count,
        "Statements of a leader that Postgres refused and rolled back; each is tried again, smaller where it was a claim"
    );
    describe_counter!(
        "carillon_dispatcher_set_aside_total",
        Unit::Count,
        "Jobs and executions set aside: a claim of theirs alone was refused or their definition cannot be read (tried again \
         after a minute), or their timetable is dear to search (searched in a slow lane, fires may be late)"
    );
    describe_histogram!(
        "carillon_dispatcher_search_seconds",
        Unit::Seconds,
        "Duration of searches for next instants, beside the claims: of one timetable that may be dear, or of up to 1,000 ordinary ones"
    );
    describe_gauge!(
        "carillon_dispatcher_searches_waiting",
        Unit::Count,
        "Timers that are due and wait for such a search; those that are looked ahead for are not counted"
    );
    describe_upkeep();
}

fn describe_upkeep() {
    describe_counter!(
        "carillon_dispatcher_timers_reckoned_total",
        Unit::Count,
        "Timers moved because the rules of their time zone have changed"
    );
    describe_gauge!(
        "carillon_partitions_overdue",
        Unit::Count,
        "Partitions that should have been made, or dropped (`work`), a day ago or earlier; 1 if no look has ended for an hour: alert"
    );
    describe_counter!("carillon_partitions_made_total", Unit::Count, "Partitions made");
    describe_counter!("carillon_partitions_dropped_total", Unit::Count, "Partitions dropped because of their age");
    describe_counter!(
        "carillon_retention_rows_total",
        Unit::Count,
        "Rows of the default partitions deleted because of their age"
    );
    describe_counter!("carillon_retention_revisions_total", Unit::Count, "Superseded definitions of jobs deleted");
    describe_counter!("carillon_retention_jobs_total", Unit::Count, "Jobs deleted because they were over for long");
    describe_gauge!(
        "carillon_stream_entries",
        Unit::Count,
        "Entries in a stream (waiting, held and running), as the leader last heard"
    );
}
