-- The record of every fire, and what the dispatch protocol keeps beside it.

-- The id is a time-ordered UUID: its first 48 bits are the scheduled millisecond. So the primary key is at once the
-- order in time, the refusal of a double and the key that partitions are pruned by. Partitions are made a day at a time
-- by carillon_store::partitions; the default one takes what lies outside of them.
CREATE TABLE job_executions (
    id               uuid NOT NULL,
    job_id           uuid NOT NULL,
    -- Where it belongs. Queue and priority are those of the line in which `entry` stands (R23a).
    shard            smallint NOT NULL DEFAULT 0,
    queue            text NOT NULL DEFAULT 'default',
    priority         smallint NOT NULL DEFAULT 1,
    platform_id      text,
    -- The definition that it runs, or ran, with (job_revisions).
    revision         bigint NOT NULL DEFAULT 1,
    -- Who asked for it, where it was triggered.
    created_by       text NOT NULL DEFAULT '',
    -- R0: number of the batch that claimed the current attempt; NULL for one that was never published (SKIPPED).
    claim            bigint,
    -- R0: the stream entry that stands for it now has the id `entry-seq`; equals claim until republished.
    entry            bigint,
    seq              int NOT NULL DEFAULT 0,
    take             int NOT NULL DEFAULT 0,
    lost             smallint NOT NULL DEFAULT 0,
    attempt          smallint NOT NULL DEFAULT 1,
    max_retries      int NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    -- R23: the cancel was requested before its instant (job paused, changed, deleted): it ends SKIPPED, not CANCELLED.
    withdrawn        boolean NOT NULL DEFAULT false,
    status           text NOT NULL CHECK (status IN
                       ('QUEUED', 'RUNNING', 'RETRYING', 'SUCCESS', 'FAILED', 'TIMEOUT', 'CANCELLED', 'SKIPPED')),
    scheduled_at     timestamptz NOT NULL,
    started_at       timestamptz,
    completed_at     timestamptz,
    next_retry_at    timestamptz,
    duration_ms      bigint,
    worker_id        uuid,
    -- Why it was held back, skipped, cancelled or ended.
    reason           text,
    error            text,
    error_stack      text,
    result           jsonb,
    -- NULL: the job's payload of that revision.
    payload          jsonb,
    metadata         jsonb,
    -- W3C trace context: 32 hex digits, and 16 each.
    trace_id         text CHECK (trace_id ~ '^[0-9a-f]{32}$'),
    span_id          text CHECK (span_id ~ '^[0-9a-f]{16}$'),
    parent_span_id   text CHECK (parent_span_id ~ '^[0-9a-f]{16}$'),
    trace_flags      smallint NOT NULL DEFAULT 1 CHECK (trace_flags BETWEEN 0 AND 255),
    PRIMARY KEY (id),
    CHECK ((status IN ('SUCCESS', 'FAILED', 'TIMEOUT', 'CANCELLED', 'SKIPPED')) = (completed_at IS NOT NULL))
) PARTITION BY RANGE (id);
-- No index names status: each would make every finish a non-HOT update. Open executions are found through the batches
-- that published them, retries through execution_retries, a job's through this one.
CREATE INDEX job_executions_by_job ON job_executions (job_id, id);
CREATE TABLE job_executions_default PARTITION OF job_executions DEFAULT WITH (fillfactor = 70);

CREATE TABLE job_execution_logs (
    execution_id uuid NOT NULL,
    attempt      smallint NOT NULL,
    line         int NOT NULL,
    timestamp    timestamptz NOT NULL,
    level        text NOT NULL CHECK (level IN ('DEBUG', 'INFO', 'WARN', 'ERROR')),
    message      text NOT NULL,
    context      jsonb,
    PRIMARY KEY (execution_id, attempt, line)
) PARTITION BY RANGE (execution_id);
CREATE TABLE job_execution_logs_default PARTITION OF job_execution_logs DEFAULT;

-- Each attempt that failed, as it ended; the execution's row shows the latest.
CREATE TABLE execution_attempts (
    execution_id uuid NOT NULL,
    attempt      smallint NOT NULL,
    status       text NOT NULL CHECK (status IN ('FAILED', 'TIMEOUT')),
    started_at   timestamptz,
    ended_at     timestamptz NOT NULL,
    worker_id    uuid,
    error        text,
    error_stack  text,
    PRIMARY KEY (execution_id, attempt)
) PARTITION BY RANGE (execution_id);
CREATE TABLE execution_attempts_default PARTITION OF execution_attempts DEFAULT;

-- Executions in state RETRYING, until the leader claims their next attempt (R16).
CREATE TABLE execution_retries (
    execution_id uuid PRIMARY KEY,
    job_id       uuid NOT NULL,
    shard        smallint NOT NULL DEFAULT 0,
    claim        bigint NOT NULL,
    due_at       timestamptz NOT NULL,
    queue        text NOT NULL,
    priority     smallint NOT NULL
);
CREATE INDEX execution_retries_due ON execution_retries (shard, queue, priority, due_at);
CREATE INDEX execution_retries_by_job ON execution_retries (job_id);

-- What the leader claimed in one transaction and publishes by one script (R5 to R7). `ids[i]` is published as `number-i`.
-- A settled batch stays until all that it published is finished: reconcile (R19) finds open executions through it.
CREATE TABLE dispatch_batches (
    shard      smallint NOT NULL DEFAULT 0,
    number     bigint NOT NULL,
    term       bigint NOT NULL,
    ids        uuid[] NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (shard, number)
);
CREATE INDEX dispatch_batches_unsettled ON dispatch_batches (shard, number) WHERE settled_at IS NULL;

-- One row per incarnation of an executor (R14, R21): live = not ended and seen within the lease.
CREATE TABLE workers (
    id         uuid PRIMARY KEY,
    consumer   text NOT NULL,
    queues     text[] NOT NULL,
    handlers   text[] NOT NULL DEFAULT '{}',
    slots      int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    ended      boolean NOT NULL DEFAULT false
);
CREATE INDEX workers_by_consumer ON workers (consumer);

-- Makes one partition if it is missing. Several processes may ask at once: they wait for each other. Rows that already
-- fell into the default partition move over, since Postgres refuses a partition whose rows lie elsewhere.
CREATE FUNCTION carillon_make_partition(parent text, child text, lower_id uuid, upper_id uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    key text := CASE parent WHEN 'job_executions' THEN 'id' ELSE 'execution_id' END;
BEGIN
    IF to_regclass(child) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('carillon partitions'));
    -- Asked of the table itself: an advisory lock does not refresh the caches that to_regclass looks into.
    IF EXISTS (SELECT FROM pg_catalog.pg_class WHERE relname = child AND relnamespace = current_schema()::regnamespace) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS) WITH (fillfactor = 70)', child, parent);
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent || '_default');
    EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *) INSERT INTO %I SELECT * FROM moved',
                   parent || '_default', key, lower_id, key, upper_id, child);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child, lower_id, upper_id);
END
$$;
