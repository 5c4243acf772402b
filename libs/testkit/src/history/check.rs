//! The rules of the judge, one function each.

use std::collections::{BTreeMap, HashMap, HashSet};

use carillon_core::execution::Status;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Bounds, Execution, History, LostWorker, Stop, Violation};
use crate::journal::{Event, Line};

/// One start of a handler, with its end if it wrote one, and whether Postgres has it.
#[derive(Clone, Copy, Debug)]
struct Run<'a> {
    start: &'a Line,
    end: Option<&'a Line>,
    recorded: bool,
}

/// What a stop keeps of its grace for the last ends and the good-bye: what ends later may be handed back.
const FOR_RECORDS: TimeDelta = TimeDelta::seconds(5);

/// From, to, and of which execution.
type Interval = (DateTime<Utc>, DateTime<Utc>, Uuid);

type Runs<'a> = BTreeMap<(Uuid, u32), Vec<Run<'a>>>;

impl History {
    /// All promises that this history breaks, as if nothing were to come any more.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let runs = self.runs();
        self.check_fires(&mut found);
        self.check_final(&mut found);
        self.check_starts_and_ends(&runs, &mut found);
        self.check_overlap(&runs, &mut found);
        self.check_early(&mut found);
        self.check_recorded(&runs, &mut found);
        self.check_counters(&mut found);
        found.extend(self.left_behind().into_iter().map(Violation::LeftBehind));
        found
    }

    /// What is still on its way; empty once all was done.
    pub fn still_open(&self) -> Vec<String> {
        let mut open = self.left_behind();
        let executions = self.executions.iter().filter(|execution| !execution.status.is_final());
        let executions: Vec<String> = executions.map(describe).collect();
        if let Some(first) = executions.first() {
            open.push(format!("{} executions open, such as {first}", executions.len()));
        }
        open
    }

    /// Batches of which nothing is open any more and that the leader has not forgotten. It takes its time for that, ten seconds and
    /// more, so this is no part of [`Self::violations`]: who asks for it waits.
    pub fn not_forgotten(&self) -> Option<String> {
        let first = self.kept.first()?;
        Some(format!("{} settled batches are not forgotten, such as {first}", self.kept.len()))
    }

    fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        for stream in &self.streams {
            if stream.length != 0 || stream.pending != 0 {
                left.push(format!("{} entries, {} pending in {}", stream.length, stream.pending, stream.key));
            }
        }
        let tables = [
            ("batches not settled", self.unsettled.len(), self.unsettled.first().map(ToString::to_string)),
            ("retries waiting", self.retries_waiting.len(), self.retries_waiting.first().map(ToString::to_string)),
            (
                "triggers not claimed",
                self.triggers_waiting.len(),
                self.triggers_waiting.first().map(ToString::to_string),
            ),
            (
                "jobs to be looked at",
                self.attention_waiting.len(),
                self.attention_waiting.first().map(ToString::to_string),
            ),
            ("timers overdue", self.overdue.len(), self.overdue.first().map(ToString::to_string)),
        ];
        for (what, count, first) in tables {
            if let Some(first) = first {
                left.push(format!("{count} {what}, such as {first}"));
            }
        }
        left
    }

    fn check_fires(&self, found: &mut Vec<Violation>) {
        // Ids carry milliseconds, and a fire is one of these: compare as they do.
        let mut by_fire: HashMap<(Uuid, i64), Vec<Uuid>> = HashMap::new();
        for execution in &self.executions {
            if !self.triggered.contains(&execution.id) {
                let fire = (execution.job, execution.scheduled_at.timestamp_millis());
                by_fire.entry(fire).or_default().push(execution.id);
            }
        }
        for (job, at) in &self.expected {
            if !by_fire.contains_key(&(*job, at.timestamp_millis())) {
                found.push(Violation::Lost(format!("job {} has no execution for {at}", self.name_of(*job))));
            }
        }
        let known: HashSet<Uuid> = self.executions.iter().map(|execution| execution.id).collect();
        for id in &self.triggered {
            if !known.contains(id) {
                found.push(Violation::Lost(format!("the trigger's execution {id} does not exist")));
            }
        }
        for ((job, at_ms), ids) in by_fire {
            if ids.len() > 1 {
                let at = DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
                found.push(Violation::DoubledFire(format!("job {} at {at}: {ids:?}", self.name_of(job))));
            }
        }
    }

    fn check_final(&self, found: &mut Vec<Violation>) {
        for execution in self.executions.iter().filter(|execution| !execution.status.is_final()) {
            found.push(Violation::NotFinal(describe(execution)));
        }
    }

    /// Starts and ends of each attempt, in order of time. An end, and a record, belongs to the last start of the same process
    /// before it.
    fn runs(&self) -> Runs<'_> {
        let mut lines: Vec<&Line> = self.journal.iter().collect();
        lines.sort_by_key(|line| line.at);
        let mut runs: Runs<'_> = BTreeMap::new();
        for line in lines {
            if line.event == Event::Start {
                let attempt = runs.entry((line.execution, line.attempt)).or_default();
                attempt.push(Run { start: line, end: None, recorded: false });
                continue;
            }
            // What ended without a start (a cancel before it) is recorded too: there is no run of it.
            let Some(attempt) = runs.get_mut(&(line.execution, line.attempt)) else { continue };
            let mut own = attempt.iter_mut().rev().filter(|run| run.start.pid == line.pid);
            if line.event == Event::Recorded {
                // One that was taken back by the process that had it ends one of its runs; which does not matter.
                if let Some(run) = own.next() {
                    run.recorded = true;
                }
            } else if let Some(run) = own.find(|run| run.end.is_none()) {
                run.end = Some(line);
            }
        }
        runs
    }

    fn check_starts_and_ends(&self, runs: &Runs<'_>, found: &mut Vec<Violation>) {
        let executions: HashMap<Uuid, &Execution> = self.executions.iter().map(|row| (row.id, row)).collect();
        for ((execution, attempt), runs) in runs {
            let name = format!("execution {execution} attempt {attempt}");
            for (index, pair) in runs.windows(2).enumerate() {
                if !self.is_excused(&pair[0], pair[1].start.at) {
                    let [first, second] = [pair[0].start, pair[1].start];
                    let text = format!(
                        "{name}, start {} at {} by process {}, after that of process {} at {}",
                        index + 2,
                        second.at,
                        second.pid,
                        first.pid,
                        first.at
                    );
                    found.push(Violation::DoubledStart(text));
                }
            }
            let ended: Vec<&Run<'_>> = runs.iter().filter(|run| run.end.is_some()).collect();
            if ended.windows(2).any(|pair| !self.is_excused(pair[0], pair[1].start.at)) {
                found.push(Violation::DoubledEnd(format!("{name}, {} times", ended.len())));
            }
            // Takes are counted per attempt and only the current one's are kept.
            if let Some(row) = executions.get(execution).filter(|row| row.attempt == *attempt)
                && runs.len() > 1 + row.take as usize
            {
                found.push(Violation::TooManyStarts(format!("{name}: {} starts, {} takes", runs.len(), row.take)));
            }
        }
    }

    /// Whether another start, at `again`, of what this run was is excused: it was in flight in a process that was lost by then.
    fn is_excused(&self, run: &Run<'_>, again: DateTime<Utc>) -> bool {
        let was_lost = |lost: &LostWorker| lost.from <= again && self.was_long_enough(lost, run, again);
        !run.recorded && (self.losses_of(run).any(was_lost) || self.stops_of(run).any(|stop| stop.at <= again))
    }

    /// The stops that met a run: it had not ended while there was time to record it.
    fn stops_of(&self, run: &Run<'_>) -> impl Iterator<Item = &Stop> {
        let (pid, end) = (run.start.pid, run.end.map(|end| end.at));
        self.stops
            .iter()
            .filter(move |stop| stop.pid == pid && end.is_none_or(|end| end > stop.at + stop.grace - FOR_RECORDS))
    }

    /// The losses that met a run.
    fn losses_of(&self, run: &Run<'_>) -> impl Iterator<Item = &LostWorker> {
        let (pid, began) = (run.start.pid, run.start.at);
        self.lost_workers.iter().filter(move |lost| lost.pid == pid && lost.until.is_none_or(|until| began <= until))
    }

    /// Promise 3: one that came back was away for a lease, or for W if Redis lost data between the run's start and the next.
    /// A quarter is for the last beat, or flush, before it went.
    fn was_long_enough(&self, lost: &LostWorker, run: &Run<'_>, again: DateTime<Utc>) -> bool {
        let Some(until) = lost.until else { return true };
        let Bounds { window, lease } = self.bounds;
        let redis_lost = self.redis_losses.iter().any(|at| run.start.at - window <= *at && *at <= again);
        let least = if redis_lost { window } else { lease };
        until - lost.from >= least * 3 / 4
    }

    /// Whether a run may have gone on in a lost worker: promise 5 lets it overlap.
    fn may_run_on(&self, run: &Run<'_>) -> bool {
        !run.recorded && (self.losses_of(run).next().is_some() || self.stops_of(run).next().is_some())
    }

    fn check_overlap(&self, runs: &Runs<'_>, found: &mut Vec<Violation>) {
        let exclusive: HashSet<Uuid> = self.jobs.iter().filter(|job| !job.allow_overlap).map(|job| job.id).collect();
        let rows: HashMap<Uuid, &Execution> = self.executions.iter().map(|row| (row.id, row)).collect();
        let mut by_job: BTreeMap<Uuid, Vec<Interval>> = BTreeMap::new();
        for ((execution, attempt), runs) in runs {
            for run in runs {
                if exclusive.contains(&run.start.job) && !self.may_run_on(run) {
                    let end = run.end.map_or_else(|| end_of_stopped(rows.get(execution), *attempt, run), |end| end.at);
                    by_job.entry(run.start.job).or_default().push((run.start.at, end, *execution));
                }
            }
        }
        for (job, mut intervals) in by_job {
            intervals.sort_unstable();
            let mut latest: Option<Interval> = None;
            for interval in intervals {
                if let Some(before) = latest
                    && interval.0 < before.1
                    && interval.2 != before.2
                {
                    let text = format!(
                        "job {}: {} ran from {} to {}, {} began at {}",
                        self.name_of(job),
                        before.2,
                        before.0,
                        before.1,
                        interval.2,
                        interval.0
                    );
                    found.push(Violation::Overlapped(text));
                }
                latest = Some(latest.filter(|before| before.1 >= interval.1).unwrap_or(interval));
            }
        }
    }

    fn check_early(&self, found: &mut Vec<Violation>) {
        let due: HashMap<Uuid, DateTime<Utc>> = self.executions.iter().map(|row| (row.id, row.scheduled_at)).collect();
        for line in self.journal.iter().filter(|line| line.event == Event::Start) {
            if let Some(due) = due.get(&line.execution)
                && line.at < *due
            {
                let by = (*due - line.at).num_microseconds().unwrap_or(i64::MAX);
                found.push(Violation::Early(format!("execution {} by {by} µs, due {due}", line.execution)));
            }
        }
        for row in &self.executions {
            if row.started_at.is_some_and(|started| started < row.scheduled_at) {
                found.push(Violation::Early(format!("{} is recorded to have started early", describe(row))));
            }
        }
    }

    fn check_recorded(&self, runs: &Runs<'_>, found: &mut Vec<Violation>) {
        let known: HashSet<Uuid> = self.executions.iter().map(|row| row.id).collect();
        let unknown: HashSet<Uuid> =
            runs.keys().map(|(execution, _)| *execution).filter(|execution| !known.contains(execution)).collect();
        for execution in unknown {
            found.push(Violation::Unrecorded(format!("execution {execution} ran, there is no record of it")));
        }
        let witnessed: HashSet<Uuid> = self.journal.iter().map(|line| line.job).collect();
        let succeeded: HashSet<(Uuid, u32)> = self
            .journal
            .iter()
            .filter(|line| {
                line.event == Event::End && line.outcome.as_deref().is_none_or(|outcome| outcome == "success")
            })
            .map(|line| (line.execution, line.attempt))
            .collect();
        for row in self.executions.iter().filter(|row| row.status == Status::Success) {
            if witnessed.contains(&row.job) && !succeeded.contains(&(row.id, row.attempt)) {
                found.push(Violation::Unrecorded(format!("{} is recorded, its handler did not end so", describe(row))));
            }
        }
    }

    fn check_counters(&self, found: &mut Vec<Violation>) {
        for job in &self.jobs {
            let rows = || self.executions.iter().filter(|row| row.job == job.id && row.claimed);
            let count = |keep: fn(Status) -> bool| rows().filter(|row| keep(row.status)).count() as i64;
            let open = count(|status| !status.is_final());
            let finished = count(Status::is_final);
            let succeeded = count(|status| status == Status::Success);
            let failed = count(|status| matches!(status, Status::Failed | Status::Timeout));
            for (what, counted, rows) in [
                ("claimed_count - finished_count", job.claimed_count - job.finished_count, open),
                ("finished_count", job.finished_count, finished),
                ("success_count", job.success_count, succeeded),
                ("failure_count", job.failure_count, failed),
            ] {
                if counted != rows {
                    found.push(Violation::Miscounted(format!("job {}: {what} = {counted}, rows {rows}", job.name)));
                }
            }
        }
    }

    fn name_of(&self, job: Uuid) -> String {
        let known = self.jobs.iter().find(|known| known.id == job);
        known.map_or_else(|| job.to_string(), |known| format!("{:?} ({job})", known.name))
    }
}

/// When a run ended that could not say so, since it was stopped: cancelled or out of time. What is recorded, or the moment
/// of its start, if only a later attempt's end is.
fn end_of_stopped(row: Option<&&Execution>, attempt: u32, run: &Run<'_>) -> DateTime<Utc> {
    let recorded = row.filter(|row| row.attempt == attempt).and_then(|row| row.completed_at);
    recorded.unwrap_or(run.start.at).max(run.start.at)
}

fn describe(row: &Execution) -> String {
    format!("execution {} ({}, attempt {}, due {})", row.id, row.status, row.attempt, row.scheduled_at)
}
