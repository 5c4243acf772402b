-- The record of every fire, and what the dispatch protocol keeps beside it.

-- The id is a time-ordered UUID: its first 48 bits are the scheduled millisecond. So the primary key is at once the
-- order in time, the refusal of a double and the key that partitions are pruned by. Partitions are made a day at a time
-- by carillon_store::partitions; the default one takes what lies outside of them.
CREATE TABLE carillon.job_executions (
    id               uuid NOT NULL,
    job_id           uuid NOT NULL,
    -- Where it belongs. Queue and priority are those of the line in which `entry` stands (R23a).
    shard            smallint NOT NULL,
    queue            text NOT NULL DEFAULT 'default',
    priority         smallint NOT NULL DEFAULT 1,
    -- The job's; of a global job that a platform's caller triggered, that platform.
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
    -- R23a: while it is QUEUED, its revision names another line than the one in which `entry` stands.
    misplaced        boolean NOT NULL DEFAULT false,
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
CREATE INDEX job_executions_by_job ON carillon.job_executions (job_id, id);
CREATE TABLE carillon.job_executions_default PARTITION OF carillon.job_executions DEFAULT WITH (fillfactor = 70);

-- A page of a job's executions from `from_id` to before `below_id`, newest first: it looks at `most` rows, whatever they hold.
-- The way is not left to the planner, which may know nothing of a young partition, or believe that a job has few rows in it,
-- and then reads all of them to sort them: written over both columns, and with every other way forbidden, it is a walk down
-- the index. The bounds are constants in the statement's text, so that it locks the partitions between them alone.
CREATE FUNCTION carillon.page_of_job(job uuid, from_id uuid, below_id uuid, most int)
RETURNS TABLE (id uuid, status text, revision bigint, claim bigint, cancel_requested boolean)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT e.id, e.status, e.revision, e.claim, e.cancel_requested FROM carillon.job_executions e
         WHERE (e.job_id, e.id) >= (%1$L::uuid, %2$L::uuid) AND (e.job_id, e.id) < (%1$L::uuid, %3$L::uuid)
           AND e.id >= %2$L::uuid AND e.id < %3$L::uuid
         ORDER BY e.job_id DESC, e.id DESC LIMIT %4$s',
        job, from_id, below_id, most);
END
$$;

-- A page of executions, of one job or of all, from `from_id` to before `below_id`, oldest first if `ascending`: it looks at
-- `most` rows and says of each whether it matches `wanted` (carillon_store::executions::Filter), which batch claimed it if it
-- is open, and what the list is ordered by, if not by ids. The way is not left to the planner, as above.
CREATE FUNCTION carillon.page_of_executions(job uuid, from_id uuid, below_id uuid, most int, ascending boolean, wanted jsonb)
RETURNS TABLE (id uuid, matches boolean, open_by bigint, sort_key bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
    way text := CASE WHEN ascending THEN 'ASC' ELSE 'DESC' END;
    of_job text := '';
    in_order text := '';
BEGIN
    IF job IS NOT NULL THEN
        of_job := format('(e.job_id, e.id) >= (%1$L::uuid, %2$L::uuid) AND (e.job_id, e.id) < (%1$L::uuid, %3$L::uuid) AND ',
                         job, from_id, below_id);
        in_order := format('e.job_id %s, ', way);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT p.id, COALESCE(
             ($1::text IS NULL OR p.status = $1) AND ($2::text IS NULL OR p.platform_id = $2)
             AND ($3::text IS NULL OR p.queue = $3) AND ($4::uuid IS NULL OR p.worker_id = $4)
             AND ($5::timestamptz IS NULL OR p.completed_at >= $5) AND ($6::timestamptz IS NULL OR p.completed_at < $6)
             AND ($7::text IS NULL OR position($7 IN p.error) > 0)
             AND ($11::jsonb IS NULL OR p.platform_id IS NULL OR $11 ? p.platform_id)
             -- No EXISTS, which Postgres may answer by reading all revisions into a hash.
             AND ($8::text IS NULL AND $9::text IS NULL OR (
                 SELECT ($8 IS NULL OR r.definition ->> ''handler_name'' = $8) AND ($9 IS NULL OR r.definition -> ''tags'' ? $9)
                 FROM carillon.job_revisions r WHERE r.job_id = p.job_id AND r.revision = p.revision)), false),
             CASE WHEN p.completed_at IS NULL THEN p.claim END,
             CASE $10 WHEN ''COMPLETED'' THEN (extract(epoch FROM p.completed_at) * 1000000)::bigint
                      WHEN ''DURATION'' THEN p.duration_ms END
         FROM (SELECT e.* FROM carillon.job_executions e WHERE %se.id >= %L::uuid AND e.id < %L::uuid
               ORDER BY %se.id %s LIMIT %s) p',
        of_job, from_id, below_id, in_order, way, most)
    USING wanted ->> 'status', wanted ->> 'platform_id', wanted ->> 'queue', (wanted ->> 'worker_id')::uuid,
          (wanted ->> 'completed_from')::timestamptz, (wanted ->> 'completed_before')::timestamptz, wanted ->> 'error',
          wanted ->> 'handler_name', wanted ->> 'tag', wanted ->> 'order',
          wanted -> 'scope';
END
$$;

CREATE TABLE carillon.job_execution_logs (
    execution_id uuid NOT NULL,
    attempt      smallint NOT NULL,
    line         int NOT NULL,
    timestamp    timestamptz NOT NULL,
    level        text NOT NULL CHECK (level IN ('DEBUG', 'INFO', 'WARN', 'ERROR')),
    message      text NOT NULL,
    context      jsonb,
    PRIMARY KEY (execution_id, attempt, line)
) PARTITION BY RANGE (execution_id);
CREATE TABLE carillon.job_execution_logs_default PARTITION OF carillon.job_execution_logs DEFAULT;

-- Each attempt that failed, as it ended; the execution's row shows the latest.
CREATE TABLE carillon.execution_attempts (
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
CREATE TABLE carillon.execution_attempts_default PARTITION OF carillon.execution_attempts DEFAULT;

-- What ended FAILED or TIMEOUT: the dead-letter list, and the way to the few failures among millions of successes. Written by the
-- statement that ends an execution (R17a), and never updated but by another end of the same execution: so it may have the indexes
-- that its execution must not have. Whoever opens an execution again takes its row out.
CREATE TABLE carillon.execution_failures (
    execution_id uuid NOT NULL,
    job_id       uuid NOT NULL,
    status       text NOT NULL CHECK (status IN ('FAILED', 'TIMEOUT')),
    ended_at     timestamptz NOT NULL,
    platform_id  text,
    handler_name text NOT NULL,
    -- What the same fault has in common (carillon_core::fingerprint).
    fingerprint  text NOT NULL,
    PRIMARY KEY (execution_id)
) PARTITION BY RANGE (execution_id);
CREATE INDEX execution_failures_by_job ON carillon.execution_failures (job_id, status, execution_id);
CREATE INDEX execution_failures_by_fingerprint ON carillon.execution_failures (fingerprint, execution_id);
CREATE TABLE carillon.execution_failures_default PARTITION OF carillon.execution_failures DEFAULT;

-- A page of failures, as carillon.page_of_executions: of one job and `wanted.status`, or of `wanted.fingerprint`, or of all.
-- What a failure does not say of itself is looked up in its execution.
CREATE FUNCTION carillon.page_of_failures(job uuid, from_id uuid, below_id uuid, most int, ascending boolean, wanted jsonb)
RETURNS TABLE (id uuid, matches boolean, sort_key bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
    way text := CASE WHEN ascending THEN 'ASC' ELSE 'DESC' END;
    -- The columns of the index that is walked, before the id, and what they are to be.
    columns text := '';
    these text := '';
    in_order text := '';
BEGIN
    IF job IS NOT NULL AND wanted ->> 'status' IS NOT NULL THEN
        columns := 'f.job_id, f.status, ';
        these := format('%L::uuid, %L::text, ', job, wanted ->> 'status');
        in_order := format('f.job_id %1$s, f.status %1$s, ', way);
    ELSIF wanted ->> 'fingerprint' IS NOT NULL THEN
        columns := 'f.fingerprint, ';
        these := format('%L::text, ', wanted ->> 'fingerprint');
        in_order := format('f.fingerprint %s, ', way);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT p.execution_id, COALESCE(
             ($1::text IS NULL OR p.status = $1) AND ($2::text IS NULL OR p.platform_id = $2)
             AND ($13::jsonb IS NULL OR p.platform_id IS NULL OR $13 ? p.platform_id)
             AND ($5::timestamptz IS NULL OR p.ended_at >= $5) AND ($6::timestamptz IS NULL OR p.ended_at < $6)
             AND ($8::text IS NULL OR p.handler_name = $8)
             AND ($11::text IS NULL OR p.fingerprint = $11) AND ($12::uuid IS NULL OR p.job_id = $12)
             AND ($3::text IS NULL AND $4::uuid IS NULL AND $7::text IS NULL AND $9::text IS NULL OR (
                 SELECT ($3 IS NULL OR e.queue = $3) AND ($4 IS NULL OR e.worker_id = $4)
                    AND ($7 IS NULL OR position($7 IN e.error) > 0)
                    AND ($9 IS NULL OR (SELECT r.definition -> ''tags'' ? $9 FROM carillon.job_revisions r
                                        WHERE r.job_id = e.job_id AND r.revision = e.revision))
                 FROM carillon.job_executions e
                 WHERE e.id = p.execution_id AND e.id >= %3$L::uuid AND e.id < %4$L::uuid)), false),
             CASE $10 WHEN ''COMPLETED'' THEN (extract(epoch FROM p.ended_at) * 1000000)::bigint
                      WHEN ''DURATION'' THEN (SELECT e.duration_ms FROM carillon.job_executions e
                                              WHERE e.id = p.execution_id AND e.id >= %3$L::uuid AND e.id < %4$L::uuid) END
         FROM (SELECT f.* FROM carillon.execution_failures f
               WHERE (%1$sf.execution_id) >= (%2$s%3$L::uuid) AND (%1$sf.execution_id) < (%2$s%4$L::uuid)
                 AND f.execution_id >= %3$L::uuid AND f.execution_id < %4$L::uuid
               ORDER BY %5$sf.execution_id %6$s LIMIT %7$s) p',
        columns, these, from_id, below_id, in_order, way, most)
    USING wanted ->> 'status', wanted ->> 'platform_id', wanted ->> 'queue', (wanted ->> 'worker_id')::uuid,
          (wanted ->> 'completed_from')::timestamptz, (wanted ->> 'completed_before')::timestamptz, wanted ->> 'error',
          wanted ->> 'handler_name', wanted ->> 'tag', wanted ->> 'order', wanted ->> 'fingerprint', job, wanted -> 'scope';
END
$$;

-- Executions in state RETRYING, until the leader claims their next attempt (R16).
CREATE TABLE carillon.execution_retries (
    execution_id uuid PRIMARY KEY,
    job_id       uuid NOT NULL,
    shard        smallint NOT NULL,
    claim        bigint NOT NULL,
    due_at       timestamptz NOT NULL,
    queue        text NOT NULL,
    priority     smallint NOT NULL
);
CREATE INDEX execution_retries_due ON carillon.execution_retries (shard, queue, priority, due_at);
CREATE INDEX execution_retries_by_job ON carillon.execution_retries (job_id);

-- What the leader claimed in one transaction and publishes by one script (R5 to R7). `ids[i]` is published as `number-i`.
-- A settled batch stays until all that it published is finished: reconcile (R19) finds open executions through it.
CREATE TABLE carillon.dispatch_batches (
    shard      smallint NOT NULL,
    number     bigint NOT NULL,
    term       bigint NOT NULL,
    ids        uuid[] NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (shard, number)
);
CREATE INDEX dispatch_batches_unsettled ON carillon.dispatch_batches (shard, number) WHERE settled_at IS NULL;

-- One row per incarnation of an executor (R14, R21): live = not ended and seen within the lease.
CREATE TABLE carillon.workers (
    id         uuid PRIMARY KEY,
    consumer   text NOT NULL,
    queues     text[] NOT NULL,
    handlers   text[] NOT NULL DEFAULT '{}',
    slots      int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    ended      boolean NOT NULL DEFAULT false
);
CREATE INDEX workers_by_consumer ON carillon.workers (consumer);

-- When the upkeep of a table, or of one partition, last asked for a lock that others queue behind: at most one try a minute
-- over all processes.
CREATE TABLE carillon.partition_tries (
    what     text PRIMARY KEY,
    tried_at timestamptz NOT NULL
);

-- Partitions about to be dropped, each with the executions that may still be open in it: its CHECK refuses any other, so
-- that these are all that must move to the default partition.
CREATE TABLE carillon.partition_closings (
    partition text PRIMARY KEY,
    open_ids  uuid[] NOT NULL
);

-- The functions below ask for every lock that others queue behind with a short lock_timeout, together less than 100 ms, and
-- hold none longer than it takes to change the catalogue (and to move 1,000 rows at most). They are functions, so that a
-- client that dies leaves no lock behind. Each says what became of it; 'busy' is: somebody holds it, another time.

-- Whether `what` may be tried now; noted at once.
CREATE FUNCTION carillon.may_try(what text, every interval) RETURNS bool LANGUAGE sql AS $$
    WITH noted AS (
        INSERT INTO carillon.partition_tries AS t VALUES ($1, clock_timestamp())
        ON CONFLICT ON CONSTRAINT partition_tries_pkey DO UPDATE SET tried_at = EXCLUDED.tried_at
        WHERE t.tried_at <= EXCLUDED.tried_at - $2 OR t.tried_at > EXCLUDED.tried_at + $2
        RETURNING t.what
    )
    SELECT EXISTS (SELECT FROM noted)
$$;

-- That an id lies within bounds, in the words in which Postgres itself writes the bounds of a partition: from a CHECK that
-- says so, or says NOT so, it proves an ATTACH without reading a row.
CREATE FUNCTION carillon.within(parent text, lower_id uuid, upper_id uuid) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('((%1$I IS NOT NULL) AND (%1$I >= %2$L::uuid) AND (%1$I < %3$L::uuid))',
                  CASE $1 WHEN 'job_executions' THEN 'id' ELSE 'execution_id' END, $2, $3)
$$;

-- One at a time, and asked of the tables themselves: an advisory lock does not refresh the caches behind to_regclass.
CREATE FUNCTION carillon.upkeep(child text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '5s', true), pg_advisory_xact_lock(hashtext('carillon.partitions'));
    PERFORM set_config('enable_seqscan', 'off', true);
    RETURN EXISTS (SELECT FROM pg_catalog.pg_class WHERE relname = child AND relispartition
                   AND relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'carillon.jobs'::regclass));
END
$$;

-- Those of the tables that somebody has locked against writing; the others are locked for it, as whatever writes to them does,
-- until the transaction ends. Nothing is waited for.
CREATE FUNCTION carillon.locked_elsewhere(tables text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    name text;
    locked text[] := '{}';
BEGIN
    FOREACH name IN ARRAY tables LOOP
        BEGIN
            IF to_regclass('carillon.' || name) IS NOT NULL THEN
                EXECUTE format('LOCK TABLE ONLY carillon.%I IN ROW EXCLUSIVE MODE NOWAIT', name);
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            locked := locked || name;
        END;
    END LOOP;
    RETURN locked;
END
$$;

-- How much of a row lies beside it, or could: rows move under a lock that others wait for, 1 MiB of them at most (measured, 28
-- November: 40 MB a second).
CREATE FUNCTION carillon.bytes(parent text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE parent
        WHEN 'job_executions' THEN 'pg_column_size(payload), pg_column_size(result), pg_column_size(metadata),
                                    pg_column_size(error), pg_column_size(error_stack), pg_column_size(reason)'
        WHEN 'execution_attempts' THEN 'pg_column_size(error), pg_column_size(error_stack)'
        WHEN 'execution_failures' THEN '0'
        ELSE 'pg_column_size(message)'
    END
$$;

-- Rows and bytes of those that `condition` names, as far as they could be moved.
CREATE FUNCTION carillon.weigh(parent text, child text, condition text, OUT many int8, OUT bytes int8) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT count(*), coalesce(sum((SELECT sum(size) FROM unnest(ARRAY[%s]) AS size)), 0)
                    FROM (SELECT * FROM carillon.%I WHERE %s LIMIT 1001) AS weighed', carillon.bytes(parent), child, condition)
       INTO many, bytes;
END
$$;

-- Makes one partition if it is missing: 'made', 'there', 'busy'. Rows that already fell into the default partition move
-- over, 1,000 and 1 MiB at most: of a day that has more it is 'late', and they leave the default partition by their age. That nothing
-- else of its range lies there Postgres must see for itself, under the lock: quick while the default partition is small,
-- else 'large' until carillon.bar_partition has made it provable.
CREATE FUNCTION carillon.make_partition(parent text, child text, lower_id uuid, upper_id uuid) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    fallback text := parent || '_default';
    bar text := 'carillon_bar_' || child;
    key text := CASE parent WHEN 'job_executions' THEN 'id' ELSE 'execution_id' END;
    barred bool;
    proven bool;
    strays int8;
    bytes_of_strays int8;
BEGIN
    IF carillon.upkeep(child) THEN
        RETURN 'there';
    END IF;
    SELECT true, convalidated INTO barred, proven FROM pg_catalog.pg_constraint
    WHERE conrelid = ('carillon.' || fallback)::regclass AND conname = bar;
    IF proven IS NOT TRUE AND pg_relation_size(('carillon.' || fallback)::regclass) > 8 * 1024 * 1024 THEN
        RETURN 'large';
    END IF;
    EXECUTE format('CREATE TABLE carillon.%I (LIKE carillon.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES,
                                     CONSTRAINT carillon_within CHECK %s) WITH (fillfactor = 70)',
                   child, parent, carillon.within(parent, lower_id, upper_id));
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('LOCK TABLE ONLY carillon.%I IN SHARE UPDATE EXCLUSIVE MODE', parent);
    EXECUTE format('LOCK TABLE carillon.%I IN ACCESS EXCLUSIVE MODE', fallback);
    SELECT many, bytes INTO strays, bytes_of_strays
    FROM carillon.weigh(parent, fallback, carillon.within(parent, lower_id, upper_id));
    IF strays > 1000 OR bytes_of_strays > 1024 * 1024 THEN
        EXECUTE format('DROP TABLE carillon.%I', child);
        RETURN 'late';
    END IF;
    IF strays > 0 THEN
        EXECUTE format('WITH moved AS (DELETE FROM carillon.%I WHERE %s RETURNING *) INSERT INTO carillon.%I SELECT * FROM moved',
                       fallback, carillon.within(parent, lower_id, upper_id), child);
    END IF;
    EXECUTE format('ALTER TABLE carillon.%I ATTACH PARTITION carillon.%I FOR
        VALUES FROM (%L) TO (%L)', parent, child, lower_id, upper_id);
    EXECUTE format('ALTER TABLE carillon.%I DROP CONSTRAINT carillon_within', child);
    IF barred THEN
        EXECUTE format('ALTER TABLE carillon.%I DROP CONSTRAINT %I', fallback, bar);
    END IF;
    RETURN 'made';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
END
$$;

-- Forbids the default partition the rows of a partition to be: 'barred', 'there', 'busy', or 'late' when it has some. Until
-- carillon.make_partition lifts it, such a row is refused (a conflict), so this is for days that have long to come.
CREATE FUNCTION carillon.bar_partition(parent text, child text, lower_id uuid, upper_id uuid) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    fallback text := parent || '_default';
    bar text := 'carillon_bar_' || child;
    strays bool;
BEGIN
    PERFORM carillon.upkeep(child);
    IF EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = ('carillon.' || fallback)::regclass AND conname = bar) THEN
        RETURN 'there';
    END IF;
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('LOCK TABLE carillon.%I IN ACCESS EXCLUSIVE MODE', fallback);
    EXECUTE format('SELECT EXISTS (SELECT FROM carillon.%I WHERE %s)', fallback, carillon.within(parent, lower_id, upper_id))
       INTO strays;
    IF strays THEN
        RETURN 'late';
    END IF;
    EXECUTE format('ALTER TABLE carillon.%I ADD CONSTRAINT %I CHECK (NOT %s) NOT VALID',
                   fallback, bar, carillon.within(parent, lower_id, upper_id));
    RETURN 'barred';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
END
$$;

-- Closes a day of executions: from now on only `open_ids`, 1,000 at most, may be open in it. 'closed', 'there', 'busy'.
CREATE FUNCTION carillon.close_partition(child text, open_ids uuid[]) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM carillon.upkeep(child);
    IF EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = ('carillon.' || child)::regclass
        AND conname = 'carillon_closed') THEN
        RETURN 'there';
    END IF;
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('ALTER TABLE carillon.%I ADD CONSTRAINT carillon_closed
                    CHECK (completed_at IS NOT NULL OR id = ANY (%L::uuid[])) NOT VALID', child, open_ids);
    INSERT INTO carillon.partition_closings VALUES (child, open_ids)
    ON CONFLICT (partition) DO UPDATE SET open_ids = EXCLUDED.open_ids;
    RETURN 'closed';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
END
$$;

-- Proves a constraint of ours by reading the table, beside everybody: 'proven', 'busy', or 'violated'.
CREATE FUNCTION carillon.prove(child text, name text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('ALTER TABLE carillon.%I VALIDATE CONSTRAINT %I', child, name);
    RETURN 'proven';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
WHEN check_violation THEN
    RETURN 'violated';
END
$$;

-- Takes back a constraint of ours: 'lifted', 'busy'.
CREATE FUNCTION carillon.lift(child text, name text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('ALTER TABLE carillon.%I DROP CONSTRAINT IF EXISTS %I', child, name);
    IF name = 'carillon_closed' THEN
        DELETE FROM carillon.partition_closings WHERE partition = child;
    END IF;
    RETURN 'lifted';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
END
$$;

-- Takes a day out of its table, renamed to `…_gone`: 'detached', 'gone', 'busy', or 'open' for a day of executions that is
-- not closed. What is still open moves to the default partition in the same transaction; the attempts of what moved follow
-- it, so their day goes after that of the executions: 1,000 and 1 MiB at most, else 'large'.
CREATE FUNCTION carillon.detach_partition(parent text, child text, lower_id uuid, upper_id uuid) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    fallback text := parent || '_default';
    key text := CASE parent WHEN 'job_executions' THEN 'id' ELSE 'execution_id' END;
    kept uuid[];
    moving record;
BEGIN
    IF NOT carillon.upkeep(child) THEN
        RETURN 'gone';
    END IF;
    -- Of executions once more: what is open of a closed day may have failed since, with more to say.
    IF parent IN ('job_executions', 'execution_attempts') THEN
        SELECT * INTO moving FROM carillon.weigh(parent, child, CASE parent
            WHEN 'job_executions' THEN 'completed_at IS NULL'
            ELSE format('execution_id IN (SELECT id FROM carillon.job_executions_default WHERE id >= %L
                AND id < %L)', lower_id, upper_id)
        END);
        IF moving.many > 1000 OR moving.bytes > 1024 * 1024 THEN
            RETURN 'large';
        END IF;
    END IF;
    IF parent = 'job_executions' AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint
            WHERE conrelid = ('carillon.' || child)::regclass AND conname = 'carillon_closed' AND convalidated) THEN
        RETURN 'open';
    END IF;
    PERFORM set_config('lock_timeout', '40ms', true);
    EXECUTE format('LOCK TABLE ONLY carillon.%I IN ACCESS EXCLUSIVE MODE', parent);
    PERFORM set_config('lock_timeout', '15ms', true);
    EXECUTE format('LOCK TABLE carillon.%I IN ACCESS EXCLUSIVE MODE', fallback);
    EXECUTE format('LOCK TABLE carillon.%I IN ACCESS EXCLUSIVE MODE', child);
    IF parent = 'job_executions' THEN
        SELECT open_ids INTO kept FROM carillon.partition_closings WHERE partition = child;
    ELSIF parent = 'execution_attempts' THEN
        SELECT array_agg(id) INTO kept FROM carillon.job_executions_default WHERE id >= lower_id AND id < upper_id;
    END IF;
    EXECUTE format('ALTER TABLE carillon.%I DETACH PARTITION carillon.%I', parent, child);
    IF cardinality(kept) > 0 THEN
        EXECUTE format('INSERT INTO carillon.%I SELECT * FROM carillon.%I
            WHERE %I = ANY (%L::uuid[]) %s', fallback, child, key, kept,
                       CASE parent WHEN 'job_executions' THEN 'AND completed_at IS NULL' ELSE '' END);
    END IF;
    EXECUTE format('ALTER TABLE carillon.%I RENAME TO %I', child, child || '_gone');
    DELETE FROM carillon.partition_closings WHERE partition = child;
    DELETE FROM carillon.partition_tries WHERE what IN (child, child || ' crowded');
    RETURN 'detached';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
END
$$;

-- Drops what was detached: 'dropped', 'busy'.
CREATE FUNCTION carillon.drop_gone(child text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('DROP TABLE IF EXISTS carillon.%I', child);
    RETURN 'dropped';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 'busy';
END
$$;
