//! R17a: what ends without having been recorded by an executor. Three functions of the store write a final state, and no
//! other statement does (a test reads all of them): `finish` ([`crate::recorder`], R11) for an attempt that ended, and here
//! [`end_waiting_on`] for what has no claim or is RETRYING, [`born_final_on`] for what never opens.
//!
//! Each is one statement that, by its RETURNING, does all that follows from an end: counters, statistics, the row of
//! `execution_retries`, the note in `job_attention` by which a dispatcher completes the job. Whatever else will hang on an
//! end is added there. Run again, they find nothing left to end and add nothing.

use carillon_core::trace::TraceContext;
use sqlx::Row;
use uuid::Uuid;

use crate::Result;
use crate::bounded::Connection;
use crate::claim::NewExecution;
use crate::columns::sparse;
use crate::days;

/// What is written of an execution at its birth, column by column: `$1` to `$15` of a statement that has this in its FROM.
macro_rules! births {
    () => {
        "UNNEST($1::uuid[], $2::uuid[], $3::int[], $4::timestamptz[], $5::int[], $6::text[], $7::bool[], $8::text[],
            $9::smallint[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::smallint[])
     AS f(id, job_id, seq, scheduled_at, max_retries, reason, own_documents, queue, priority, platform_id, revision, created_by,
          trace_id, parent_span_id, trace_flags)"
    };
}
pub(crate) use births;

/// A statement whose parameters are bound one after the other.
pub(crate) type Query = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Binds what [`births`] names. A timer's fire needs less than half of it.
pub(crate) fn bind_births(query: Query, new: &[&NewExecution]) -> Query {
    query
        .bind(new.iter().map(|new| new.id).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.job).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.seq).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.scheduled_at).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.max_retries).collect::<Vec<_>>())
        .bind(sparse(new, |new| new.reason.as_deref()))
        .bind(sparse(new, |new| (new.own_payload || new.own_metadata).then_some(true)))
        .bind(new.iter().map(|new| new.line.queue.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.line.priority.rank()).collect::<Vec<_>>())
        .bind(sparse(new, |new| new.platform_id.as_deref()))
        .bind(new.iter().map(|new| new.revision).collect::<Vec<_>>())
        .bind(sparse(new, |new| Some(new.created_by.as_str()).filter(|by| !by.is_empty())))
        .bind(sparse(new, |new| new.trace.as_ref().map(TraceContext::trace_id)))
        .bind(sparse(new, |new| new.trace.as_ref().map(TraceContext::parent_span_id)))
        .bind(sparse(new, |new| new.trace.map(|trace| i16::from(trace.flags))))
}

/// Never opened, so nothing is counted (R20), and nothing of it was open that could have kept its job from being complete:
/// the claim notes a job that ended by it. A trigger leaves its table here, and its documents stay with the execution.
const EXECUTIONS_BORN_FINAL: &str = concat!(
    "
WITH triggered AS (
    DELETE FROM carillon.job_triggers WHERE execution_id = ANY ($17::uuid[])
)
INSERT INTO carillon.job_executions
    (id, job_id, shard, queue, priority, platform_id, revision, created_by, seq, status, scheduled_at, completed_at, max_retries,
     reason, payload, metadata, trace_id, parent_span_id, trace_flags)
SELECT f.id, f.job_id, $16, f.queue, f.priority, f.platform_id, f.revision, COALESCE(f.created_by, ''), 0, 'SKIPPED', f.scheduled_at, now(),
       f.max_retries, f.reason,
       CASE WHEN f.own_documents THEN (SELECT t.payload FROM carillon.job_triggers t WHERE t.execution_id = f.id) END,
       CASE WHEN f.own_documents THEN (SELECT t.metadata FROM carillon.job_triggers t WHERE t.execution_id = f.id) END,
       f.trace_id, f.parent_span_id, COALESCE(f.trace_flags, 1)
FROM ",
    births!(),
    "
ON CONFLICT (id) DO NOTHING
RETURNING id"
);

/// Writes fires that become SKIPPED executions at once; of them are `triggered` by a trigger that stood waiting. Answers which were born; a double is refused by the primary key.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn born_final_on(
    connection: &mut Connection,
    shard: i16,
    new: &[&NewExecution],
    triggered: Vec<Uuid>,
) -> Result<Vec<Uuid>> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let born = bind_births(sqlx::query(EXECUTIONS_BORN_FINAL), new).bind(shard).bind(triggered);
    let rows = born.fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// A trigger that nobody claimed was promised an outcome (promise 1); it was never opened and counts nothing. What is
/// RETRYING counts as finished.
///
/// A claim that holds a row of `execution_retries` would wait for the execution while this waits for that row: so the row
/// is left to it. It starts nothing, since the execution is RETRYING no more.
const EXECUTIONS_END_WAITING: &str = "
WITH unclaimed AS (
    DELETE FROM carillon.job_triggers WHERE execution_id = ANY ($1) RETURNING *
), born AS (
    INSERT INTO carillon.job_executions
        (id, job_id, shard, queue, priority, platform_id, revision, created_by, cancel_requested, status, scheduled_at,
         completed_at, max_retries, reason, payload, metadata, trace_id, parent_span_id, trace_flags)
    SELECT u.execution_id, u.job_id, u.shard, u.queue, u.priority, u.platform_id, j.revision, u.created_by, true, 'CANCELLED',
           u.fire_at, clock_timestamp(), j.max_retries, $2, u.payload, u.metadata, u.trace_id, u.parent_span_id, u.trace_flags
    FROM unclaimed u JOIN carillon.jobs j ON j.id = u.job_id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, job_id
), ended AS (
    UPDATE carillon.job_executions e
    SET status = 'CANCELLED', completed_at = clock_timestamp(), next_retry_at = NULL, cancel_requested = true, reason = $2
    WHERE e.id = ANY ($1) AND {days of e.id} AND e.status = 'RETRYING'
    RETURNING e.id, e.job_id, e.completed_at
), retries AS (
    DELETE FROM carillon.execution_retries WHERE execution_id IN (
        SELECT execution_id FROM carillon.execution_retries WHERE execution_id IN (SELECT id FROM ended) FOR UPDATE SKIP LOCKED)
), stats AS (
    UPDATE carillon.job_stats s
    SET finished_count = s.finished_count + f.finished, last_run_at = GREATEST(s.last_run_at, f.last_run_at)
    FROM (
        SELECT job_id, count(*) AS finished, max(completed_at) AS last_run_at FROM ended GROUP BY job_id ORDER BY job_id
    ) f
    WHERE s.job_id = f.job_id
), notes AS (
    INSERT INTO carillon.job_attention (job_id)
    SELECT t.job_id FROM carillon.job_timers t
    WHERE t.job_id IN (SELECT job_id FROM born UNION SELECT job_id FROM ended) AND t.exhausted
)
SELECT id FROM born UNION ALL SELECT id FROM ended";

/// Makes those of `executions` CANCELLED that wait without a claim of their own: triggers that nobody claimed, and what is
/// RETRYING. Answers which; the others are not touched. The caller's transaction may hold the executions' rows.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn end_waiting_on(
    connection: &mut Connection,
    executions: &[Uuid],
    reason: &str,
) -> Result<Vec<Uuid>> {
    let ended = sqlx::query_scalar(days::of(EXECUTIONS_END_WAITING, executions.iter().copied()));
    Ok(ended.bind(executions).bind(reason).fetch_all(connection).await?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The only constants that may write a final state. The schema says of every final state that `completed_at` is set, so
    /// whatever writes one must name that column of `job_executions`.
    const ENDS: [&str; 3] = ["EXECUTIONS_BORN_FINAL", "EXECUTIONS_END_WAITING", "EXECUTIONS_FINISH"];

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                sources(&entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "rs" || extension == "sql") {
                found.push(entry);
            }
        }
    }

    fn is_sql(file: &Path) -> bool {
        file.extension().is_some_and(|extension| extension == "sql")
    }

    /// What follows `UPDATE job_executions` or `INSERT INTO job_executions` up to its RETURNING or the statement's end, each
    /// with the last constant or function that was begun before it.
    fn writes(source: &str) -> Vec<(String, String)> {
        // Tests stand in a module at the end; one in a file of its own is named at the top.
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let mut found = Vec::new();
        for verb in [
            "UPDATE carillon.job_executions",
            "UPDATE ONLY carillon.job_executions",
            "INSERT INTO carillon.job_executions",
            "MERGE INTO carillon.job_executions",
        ] {
            for (at, _) in code.match_indices(verb) {
                let rest = &code[at..];
                if rest[verb.len()..].starts_with('_') {
                    continue;
                }
                let end = rest.find("RETURNING").unwrap_or(rest.len()).min(rest.find(";\n").unwrap_or(rest.len()));
                found.push((begun_before(code, at), rest[..end].to_owned()));
            }
        }
        found
    }

    /// The last constant or function that was begun before a place.
    fn begun_before(code: &str, at: usize) -> String {
        let named = code[..at].lines().rev().find_map(|line| {
            let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            let name = line.strip_prefix("const ").or_else(|| line.strip_prefix("async fn "))?;
            name.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
        });
        named.unwrap_or_default()
    }

    /// The same of a file of SQL: whatever writes, whichever table it names (a function may be told its name), in any case; and
    /// what a trigger does to the row in its hands. Each with the last function, trigger or rule that was begun before it.
    fn writes_of_sql(source: &str) -> Vec<(String, String)> {
        let lines = source.lines().map(|line| line.split("--").next().unwrap_or_default());
        let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
        let code = words.join(" ");
        // Of ASCII alone, so that places in one are places in the other.
        let upper = code.to_ascii_uppercase();
        let mut found = Vec::new();
        for verb in ["UPDATE ", "INSERT INTO ", "MERGE INTO ", "NEW.STATUS", "NEW.COMPLETED_AT"] {
            for (at, _) in upper.match_indices(verb) {
                let rest = &upper[at..];
                // A copy of whole rows writes what was written before; what follows says which.
                let ends = [";", "RETURNING", "SELECT * FROM"].into_iter().filter_map(|end| rest.find(end));
                let end = ends.min().unwrap_or(rest.len());
                let begun = ["FUNCTION ", "PROCEDURE ", "TRIGGER ", "RULE "]
                    .into_iter()
                    .flat_map(|kind| [format!("CREATE {kind}"), format!("CREATE OR REPLACE {kind}")]);
                let begun = begun.filter_map(|begins| Some(upper[..at].rfind(&begins)? + begins.len())).max();
                let named =
                    begun.and_then(|begun| code[begun..].split(|c: char| !c.is_alphanumeric() && c != '_').next());
                found.push((named.unwrap_or_default().to_owned(), code[at..at + end].to_owned()));
            }
        }
        found
    }

    fn writes_an_end_in_sql(statement: &str) -> bool {
        let statement = statement.to_ascii_lowercase();
        statement.starts_with("new.") || writes_an_end(&statement) || writes_an_end(&statement.to_ascii_uppercase())
    }

    fn writes_an_end(statement: &str) -> bool {
        // Read, as in a WHERE, it is harmless; asked for all the same, so that nothing slips through by its form.
        statement.contains("completed_at")
            || ["'SUCCESS'", "'FAILED'", "'TIMEOUT'", "'CANCELLED'", "'SKIPPED'"]
                .iter()
                .any(|end| statement.contains(end))
    }

    #[test]
    fn r17a_no_other_statement_writes_a_final_state() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut files = Vec::new();
        for folder in ["libs", "services"] {
            for package in fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path().join("src")) {
                sources(&package, &mut files);
            }
        }
        assert!(files.len() > 50, "the sources are where they are looked for");
        let (mut ends, mut others) = (Vec::new(), 0);
        for file in files.iter().filter(|file| !is_sql(file)) {
            for (name, statement) in writes(&fs::read_to_string(file).unwrap()) {
                if writes_an_end(&statement) {
                    assert!(
                        ENDS.contains(&name.as_str()),
                        "{}: {name} writes a final state: {statement}",
                        file.display()
                    );
                    ends.push(name);
                } else {
                    others += 1;
                }
            }
        }
        ends.sort_unstable();
        ends.dedup();
        assert_eq!(ends, ENDS);
        assert!(others > 3, "others are seen too: {others}");

        sources(&root.join("migrations"), &mut files);
        let mut others = 0;
        for file in files.iter().filter(|file| is_sql(file)) {
            for (name, statement) in writes_of_sql(&fs::read_to_string(file).unwrap()) {
                let shown = file.display();
                assert!(!writes_an_end_in_sql(&statement), "{shown}: {name} writes a final state: {statement}");
                others += 1;
            }
        }
        assert!(others > 3, "what the migrations write is seen: {others}");
    }

    /// A failure is kept by the statement that ends its execution, or it is none.
    #[test]
    fn r17a_failures_are_kept_where_executions_end_alone() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let mut writers = Vec::new();
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for verb in [
                "INSERT INTO carillon.execution_failures",
                "UPDATE carillon.execution_failures",
                "MERGE INTO carillon.execution_failures",
            ] {
                writers.extend(code.match_indices(verb).map(|(at, _)| begun_before(code, at)));
            }
        }
        assert_eq!(writers, ["EXECUTIONS_FINISH"]);
    }

    #[test]
    fn the_reader_of_sql_files_sees_what_functions_triggers_and_rules_write() {
        let body =
            |body: &str| format!("CREATE TABLE a (b int);\nCREATE FUNCTION sly() RETURNS trigger AS $$\n{body}\n$$;\n");
        for hidden in [
            "UPDATE carillon.job_executions SET status = 'FAILED', completed_at = now() WHERE id = OLD.id;",
            "update only job_executions\n  set completed_at = now();",
            "EXECUTE format('UPDATE %I SET status = %L, completed_at = now()', child, 'FAILED');",
            "INSERT INTO carillon.job_executions -- only this once\n (id, status) VALUES (gen_random_uuid(), 'SKIPPED');",
            "MERGE INTO carillon.job_executions e USING x ON x.id = e.id WHEN MATCHED THEN UPDATE SET status = 'TIMEOUT';",
            "BEGIN NEW.status := 'CANCELLED'; RETURN NEW; END",
            "BEGIN new.completed_at = now(); RETURN NEW; END",
        ] {
            let found = writes_of_sql(&body(hidden));
            let ends: Vec<_> = found.iter().filter(|(_, statement)| writes_an_end_in_sql(statement)).collect();
            assert!(!ends.is_empty() && ends.iter().all(|(name, _)| name == "sly"), "{hidden}: {found:?}");
        }
        for harmless in [
            "-- UPDATE job_executions SET completed_at = now();",
            "UPDATE carillon.job_executions SET entry = 1 WHERE id = OLD.id RETURNING completed_at INTO at;",
            "EXECUTE format('INSERT INTO %I SELECT * FROM %I WHERE completed_at IS NULL', fallback, child);",
            "PERFORM FROM carillon.job_executions WHERE completed_at IS NULL;",
        ] {
            let found = writes_of_sql(&body(harmless));
            assert!(!found.iter().any(|(_, statement)| writes_an_end_in_sql(statement)), "{harmless}: {found:?}");
        }
    }

    #[test]
    fn the_reader_of_statements_sees_what_it_must() {
        let hidden = "async fn sly(id: Uuid) {\n    sqlx::query(\"UPDATE carillon.job_executions SET status = $2, completed_at = now()\n WHERE id = $1\").bind(id);\n}";
        let found = writes(hidden);
        assert_eq!((found.len(), found[0].0.as_str(), writes_an_end(&found[0].1)), (1, "sly", true));
        let harmless =
            "const A: &str = \"UPDATE carillon.job_executions SET entry = $1 WHERE id = $2 RETURNING completed_at\";\n";
        assert!(!writes_an_end(&writes(harmless)[0].1));
        assert!(writes("INSERT INTO carillon.job_executions_default SELECT 1;\n").is_empty());
    }
}
