-- What is to run, and when. A job is wide and rarely written; what each fire touches is kept apart from it, so that a
-- fire never rewrites a wide row with many indexes: `job_timers` is moved by the claim, `job_stats` by the recorder.

CREATE TABLE carillon.jobs (
    id             uuid PRIMARY KEY,
    name           text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    description    text NOT NULL DEFAULT '',
    type           text NOT NULL CHECK (type IN ('CRON', 'ONE_TIME', 'RECURRING', 'EVENT')),
    status         text NOT NULL CHECK (status IN ('ACTIVE', 'PAUSED', 'COMPLETED', 'CANCELLED')),
    -- Raised by every change of the definition (a pause is none); each stands whole in job_revisions.
    revision       bigint NOT NULL DEFAULT 1,
    -- The author's own name for it.
    key            text,
    -- As the author wrote it, one of the three; `timetable` is what it means (carillon_core::schedule::TimetableSpec).
    schedule       text NOT NULL DEFAULT '',
    interval       text NOT NULL DEFAULT '',
    execute_at     timestamptz,
    timezone       text NOT NULL DEFAULT 'UTC',
    timetable      jsonb NOT NULL,
    start_date     timestamptz,
    end_date       timestamptz,
    max_executions bigint CHECK (max_executions > 0),
    handler_name   text NOT NULL,
    handler_type   text NOT NULL DEFAULT 'FUNCTION' CHECK (handler_type IN ('FUNCTION', 'AGENT', 'WORKFLOW', 'HTTP')),
    payload        jsonb NOT NULL DEFAULT '{}',
    queue          text NOT NULL DEFAULT 'default',
    priority       smallint NOT NULL DEFAULT 1 CHECK (priority BETWEEN 0 AND 3),
    max_retries    int NOT NULL DEFAULT 3 CHECK (max_retries >= 0),
    retry_delay_ms int NOT NULL DEFAULT 60000 CHECK (retry_delay_ms >= 0),
    -- How that grows with each further retry, up to which cap, and by how much chance changes it.
    retry_backoff  text NOT NULL DEFAULT 'EXPONENTIAL' CHECK (retry_backoff IN ('FIXED', 'LINEAR', 'EXPONENTIAL')),
    retry_delay_cap_ms   int NOT NULL DEFAULT 3600000 CHECK (retry_delay_cap_ms >= 0),
    retry_jitter_percent int NOT NULL DEFAULT 10 CHECK (retry_jitter_percent BETWEEN 0 AND 100),
    timeout_ms     int NOT NULL DEFAULT 300000 CHECK (timeout_ms > 0),
    -- Open executions allowed at once; 0 = no bound (only with allow_overlap).
    concurrency    int NOT NULL DEFAULT 1 CHECK (concurrency >= 0),
    allow_overlap  boolean NOT NULL DEFAULT false,
    tags           text[] NOT NULL DEFAULT '{}',
    metadata       jsonb NOT NULL DEFAULT '{}',
    platform_id    text,
    created_by     text NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    paused_at      timestamptz,
    -- Where the timer stood when the job was paused: what was missed by the time it is resumed begins here.
    held_at        timestamptz,
    completed_at   timestamptz,
    cancelled_at   timestamptz,
    CHECK ((status = 'PAUSED') = (paused_at IS NOT NULL)),
    CHECK ((status = 'COMPLETED') <= (completed_at IS NOT NULL)),
    CHECK ((status = 'CANCELLED') <= (cancelled_at IS NOT NULL)),
    CHECK (allow_overlap OR concurrency = 1)
);
-- Ids are time-ordered (UUID version 7), so these serve "newest first" without a column of their own.
CREATE INDEX jobs_by_status ON carillon.jobs (status, id);
CREATE INDEX jobs_by_type ON carillon.jobs (type, status, id);
-- With what else is asked of nearly every list: who asks for no more than that looks at no row of the table.
CREATE INDEX jobs_by_platform ON carillon.jobs (platform_id, id) INCLUDE (status, type);
CREATE INDEX jobs_by_handler ON carillon.jobs (handler_name, id) INCLUDE (status, type);
CREATE INDEX jobs_by_name ON carillon.jobs (name COLLATE "C", id);
-- A key is free again once its job is deleted.
CREATE UNIQUE INDEX jobs_key ON carillon.jobs (platform_id, key) NULLS NOT DISTINCT WHERE key IS NOT NULL
    AND status <> 'CANCELLED';
CREATE INDEX jobs_by_key ON carillon.jobs (key, id) WHERE key IS NOT NULL;
-- Whether a name of a queue is still in use.
CREATE INDEX jobs_by_queue ON carillon.jobs (queue, cancelled_at);

-- The tags of all jobs, one a row, for lists by tag. An index of the array itself (GIN) is in no order, and of a tag that many
-- jobs have it tells all of them or none. The triggers below keep it true, whoever writes to `jobs`; a foreign key would ask for
-- each row.
CREATE TABLE carillon.job_tags (
    tag    text NOT NULL,
    job_id uuid NOT NULL,
    PRIMARY KEY (tag, job_id)
);
CREATE FUNCTION carillon.tag_new_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO carillon.job_tags (tag, job_id) SELECT DISTINCT unnest(n.tags), n.id FROM new_jobs n;
    RETURN NULL;
END
$$;
CREATE FUNCTION carillon.tag_changed_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM carillon.job_tags WHERE job_id = OLD.id AND tag = ANY (OLD.tags);
    INSERT INTO carillon.job_tags (tag, job_id) SELECT DISTINCT unnest(NEW.tags), NEW.id;
    RETURN NULL;
END
$$;
CREATE FUNCTION carillon.untag_old_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM carillon.job_tags t USING (SELECT unnest(o.tags) AS tag, o.id FROM old_jobs o) o
    WHERE t.tag = o.tag AND t.job_id = o.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER tag_new_jobs AFTER INSERT ON carillon.jobs REFERENCING NEW TABLE AS new_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION carillon.tag_new_jobs();
CREATE TRIGGER tag_changed_job AFTER UPDATE OF tags ON carillon.jobs
    FOR EACH ROW WHEN (OLD.tags IS DISTINCT FROM NEW.tags) EXECUTE FUNCTION carillon.tag_changed_job();
CREATE TRIGGER untag_old_jobs AFTER DELETE ON carillon.jobs REFERENCING OLD TABLE AS old_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION carillon.untag_old_jobs();

-- The walks along an index that together pass all jobs that `wanted` may mean, from `from_id` to before `below_id`, each of at most
-- `most` rows: texts of subqueries, of whole rows or, with `ids_only`, of their ids. `way` is the field of `wanted` by which to go.
-- It is not left to the planner, which may know nothing of what was created today, or take what is rare for common: written over
-- all columns of an index, and with every other way forbidden, it is a walk along it. Of several statuses each is a walk of its
-- own, as of several platforms. All ways but that of `name_prefix` are in the order of ids.
CREATE FUNCTION carillon.walks_over_jobs(
    way text, from_id uuid, below_id uuid, most int, ascending boolean, wanted jsonb, ids_only boolean
) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    direction text := CASE WHEN ascending THEN 'ASC' ELSE 'DESC' END;
    columns text := CASE WHEN ids_only THEN 'j.id' ELSE 'j.*' END;
    -- What is wanted of the field, and what else a partial index asks for.
    word text := format('%L::text', wanted ->> way);
    partial text := '';
    status text;
    walks text[];
BEGIN
    IF way = 'tag' THEN
        RETURN ARRAY[format(
            '(SELECT %1$s FROM (SELECT t.job_id AS id FROM carillon.job_tags t
                                WHERE (t.tag, t.job_id) >= (%2$s, %3$L::uuid) AND (t.tag, t.job_id) < (%2$s, %4$L::uuid)
                                ORDER BY t.tag %5$s, t.job_id %5$s LIMIT %6$s) %7$s)',
            columns, word, from_id, below_id, direction, most,
            CASE WHEN ids_only THEN 'j' ELSE 't CROSS JOIN LATERAL (SELECT * FROM carillon.jobs WHERE id = t.id OFFSET 0) j' END)];
    ELSIF way = 'name_prefix' THEN
        RETURN ARRAY[format(
            '(SELECT %1$s FROM carillon.jobs j
              WHERE (j.name COLLATE "C") >= %2$s AND (j.name COLLATE "C") <= %2$s || repeat(chr(1114111), 200)
                AND j.id >= %3$L::uuid AND j.id < %4$L::uuid
              ORDER BY j.name COLLATE "C" LIMIT %5$s)',
            columns, word, from_id, below_id, most)];
    ELSIF way = 'scope' THEN
        -- Those of each platform that the caller may see, and the global ones.
        FOR word IN SELECT format('%L::text', p) FROM jsonb_array_elements_text(wanted -> 'scope') p LOOP
            walks := walks || format(
                '(SELECT %1$s FROM carillon.jobs j
                  WHERE (j.platform_id, j.id) >= (%2$s, %3$L::uuid) AND (j.platform_id, j.id) < (%2$s, %4$L::uuid)
                  ORDER BY j.platform_id %5$s, j.id %5$s LIMIT %6$s)',
                columns, word, from_id, below_id, direction, most);
        END LOOP;
        RETURN walks || format(
            '(SELECT %1$s FROM carillon.jobs j WHERE j.platform_id IS NULL AND j.id >= %2$L::uuid AND j.id < %3$L::uuid
              ORDER BY j.id %4$s LIMIT %5$s)',
            columns, from_id, below_id, direction, most);
    ELSIF way IN ('key', 'platform_id', 'handler_name') THEN
        IF way = 'key' THEN
            partial := 'j.key IS NOT NULL AND ';
        END IF;
        RETURN ARRAY[format(
            '(SELECT %1$s FROM carillon.jobs j
              WHERE %2$s(j.%3$I, j.id) >= (%4$s, %5$L::uuid) AND (j.%3$I, j.id) < (%4$s, %6$L::uuid)
              ORDER BY j.%3$I %7$s, j.id %7$s LIMIT %8$s)',
            columns, partial, way, word, from_id, below_id, direction, most)];
    END IF;
    FOR status IN SELECT jsonb_array_elements_text(wanted -> 'statuses') LOOP
        walks := walks || format(
            '(SELECT %1$s FROM carillon.jobs j
              WHERE (%2$sj.status, j.id) >= (%3$s%4$L::text, %5$L::uuid) AND (%2$sj.status, j.id) < (%3$s%4$L::text, %6$L::uuid)
              ORDER BY %7$sj.status %8$s, j.id %8$s LIMIT %9$s)',
            columns, CASE way WHEN 'type' THEN 'j.type, ' ELSE '' END, CASE way WHEN 'type' THEN word || ', ' ELSE '' END,
            status, from_id, below_id, CASE way WHEN 'type' THEN format('j.type %s, ', direction) ELSE '' END, direction, most);
    END LOOP;
    RETURN walks;
END
$$;

-- The way to what `wanted` means by which the fewest rows are passed, or no more than twice as many, and how many these are; of ways by
-- which there are `most` or more the first one. What is of no use in the order of ids is no way if it is `ordered`. `middle`: the id of one of them that has
-- about as many on either side, unless it is `ordered`.
CREATE FUNCTION carillon.way_to_jobs(from_id uuid, below_id uuid, most int, ordered boolean, wanted jsonb)
RETURNS TABLE (way text, passed int, middle uuid)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
    candidate text;
    walks text[];
    walks_of_best int;
    best text;
    room int;
    counted int;
BEGIN
    FOREACH candidate IN ARRAY ARRAY['key', 'platform_id', 'scope', 'tag', 'handler_name', 'name_prefix', 'type', 'statuses'] LOOP
        CONTINUE WHEN wanted ->> candidate IS NULL OR candidate = 'name_prefix' AND ordered;
        -- No further than to half of the best one so far: for less than that it is not worth looking on.
        room := CASE WHEN passed < most THEN greatest(passed / 2, 1) ELSE most END;
        walks := carillon.walks_over_jobs(candidate, from_id, below_id, room, false, wanted, true);
        EXECUTE format('SELECT count(*) FROM (SELECT FROM (%s) q LIMIT %s) q', array_to_string(walks, ' UNION ALL '), room)
            INTO counted;
        IF way IS NULL OR counted < room THEN
            way := candidate;
            best := array_to_string(walks, ' UNION ALL ');
            walks_of_best := cardinality(walks);
            passed := counted;
        END IF;
    END LOOP;
    IF NOT ordered THEN
        -- One walk of ids comes in their order.
        EXECUTE format('SELECT id FROM (%s) q %s OFFSET %s LIMIT 1', best,
                       CASE WHEN walks_of_best > 1 OR way = 'name_prefix' THEN 'ORDER BY id' END, passed / 2) INTO middle;
    END IF;
    RETURN NEXT;
END
$$;

-- A page of jobs from `from_id` to before `below_id`, oldest first if `ascending`: it looks at `most` rows and says of each
-- whether it matches `wanted` (carillon_store::jobs::Filter), which has the `statuses` that a job may have. `way`: what
-- carillon.way_to_jobs said, or NULL for what is mostly the best.
CREATE FUNCTION carillon.page_of_jobs(from_id uuid, below_id uuid, most int, ascending boolean, wanted jsonb, way text)
RETURNS TABLE (id uuid, status text, matches boolean)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
    goes_by text := CASE WHEN way IS NOT NULL THEN way
                         WHEN wanted ->> 'key' IS NOT NULL THEN 'key'
                         WHEN wanted ->> 'platform_id' IS NOT NULL THEN 'platform_id'
                         WHEN wanted -> 'scope' IS NOT NULL THEN 'scope'
                         WHEN wanted ->> 'type' IS NOT NULL THEN 'type' ELSE 'statuses' END;
    pages text[];
    walk text;
BEGIN
    FOREACH walk IN ARRAY carillon.walks_over_jobs(goes_by, from_id, below_id, most, ascending, wanted, false) LOOP
        pages := pages || format(
            '(SELECT p.id, p.status, COALESCE(
                 $1 ? p.status AND ($2::text IS NULL OR p.type = $2) AND ($3::text IS NULL OR p.key = $3)
                 AND ($11::jsonb IS NULL OR p.platform_id IS NULL OR $11 ? p.platform_id)
                 AND ($4::text IS NULL OR p.platform_id = $4) AND ($5::text IS NULL OR p.tags @> ARRAY[$5])
                 AND ($6::text IS NULL OR position(lower($6) IN lower(p.name)) > 0)
                 AND ($7::text IS NULL OR starts_with(p.name, $7)) AND ($8::text IS NULL OR p.handler_name = $8)
                 AND ($9::text IS NULL OR p.queue = $9) AND ($10::smallint IS NULL OR p.priority = $10), false) AS matches
             FROM %s p)', walk);
    END LOOP;
    -- A walk by itself is in its order, and ends where it is to end.
    RETURN QUERY EXECUTE CASE WHEN cardinality(pages) = 1 THEN pages[1] ELSE
        format('SELECT q.id, q.status, q.matches FROM (%s) q ORDER BY q.id %s LIMIT %s', array_to_string(pages, ' UNION ALL '),
               CASE WHEN ascending THEN 'ASC' ELSE 'DESC' END, most) END
    USING wanted -> 'statuses', wanted ->> 'type', wanted ->> 'key', wanted ->> 'platform_id', wanted ->> 'tag',
          wanted ->> 'name', wanted ->> 'name_prefix', wanted ->> 'handler_name', wanted ->> 'queue',
          (wanted ->> 'priority')::smallint, wanted -> 'scope';
END
$$;

-- By which rules of time zones the instants of all timers were reckoned (carillon_core::schedule::zone_rules): a leader whose own
-- data says something else walks all jobs and reckons them anew. One row.
CREATE TABLE carillon.zone_walk (
    single   boolean PRIMARY KEY DEFAULT true CHECK (single),
    rules    bigint NOT NULL,
    -- The walk has come to this job,
    reached  uuid NOT NULL,
    -- and to its end.
    ended_at timestamptz
);

-- Each revision of a definition, whole, with who made it and when. An execution names the one that it runs with, and keeps
-- it through all its attempts; a superseded one stays while an open execution names it, and for as long as an execution
-- can be retried by hand (R23a).
CREATE TABLE carillon.job_revisions (
    job_id        uuid NOT NULL REFERENCES carillon.jobs (id) ON DELETE CASCADE,
    revision      bigint NOT NULL,
    -- The definition's columns of `jobs`, by name.
    definition    jsonb NOT NULL,
    created_by    text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When the next one took its place.
    superseded_at timestamptz,
    -- The columns, and members of `timetable`, in which it differs from the one before it.
    changed       text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (job_id, revision)
);
CREATE INDEX job_revisions_superseded ON carillon.job_revisions (superseded_at, job_id, revision) WHERE superseded_at IS NOT NULL;
-- Jobs of which more than 1,000 revisions were superseded (carillon_store::revisions::KEPT_MAX).
CREATE INDEX job_revisions_many ON carillon.job_revisions (job_id) WHERE revision > 1001;

-- The queues that jobs have named: their number is bounded (`queues_max`), since each may have four streams.
CREATE TABLE carillon.queues (
    name       text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Jobs that some dispatcher shall look at, outside of any claim or flush (H62): whether one whose timetable has ended is
-- complete, whether one that was deleted has something open. Written in the transaction that gives reason for it; deleted once
-- the question is decided. It refers to no job, so that whoever records an end waits for nobody who holds a job's row.
CREATE TABLE carillon.job_attention (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id   uuid NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    look_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX job_attention_due ON carillon.job_attention (look_at);

-- One narrow, hot row a job; it lives as long as its job (PROTOCOL R20), so that claimed_count is never born again.
CREATE TABLE carillon.job_timers (
    job_id        uuid PRIMARY KEY REFERENCES carillon.jobs (id) ON DELETE CASCADE,
    shard         smallint NOT NULL,
    -- The next instant to fire; NULL when nothing is to come (paused, exhausted, event job).
    fire_at       timestamptz,
    -- Queue and priority of the job: together the line it waits in (a stream each in Redis).
    queue         text NOT NULL,
    priority      smallint NOT NULL,
    revision      bigint NOT NULL DEFAULT 1,
    -- The timetable has no instant left: the job is COMPLETED once nothing of it is open.
    exhausted     boolean NOT NULL DEFAULT false,
    -- Executions ever opened. Minus job_stats.finished_count = how many are open now.
    claimed_count bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
-- The leader claims line by line, each as far as its stream has room: a line that nobody serves holds up no other.
CREATE INDEX job_timers_due ON carillon.job_timers (shard, queue, priority, fire_at) WHERE fire_at IS NOT NULL;

-- Written by the recorder alone, from what its own UPDATE returned.
CREATE TABLE carillon.job_stats (
    job_id            uuid PRIMARY KEY REFERENCES carillon.jobs (id) ON DELETE CASCADE,
    finished_count    bigint NOT NULL DEFAULT 0,
    success_count     bigint NOT NULL DEFAULT 0,
    failure_count     bigint NOT NULL DEFAULT 0,
    total_duration_ms bigint NOT NULL DEFAULT 0,
    last_duration_ms  bigint,
    last_run_at       timestamptz,
    last_success_id   uuid
) WITH (fillfactor = 50);

-- A fire asked for by hand, until the leader claims it (only the leader creates what is published).
CREATE TABLE carillon.job_triggers (
    execution_id uuid PRIMARY KEY,
    job_id       uuid NOT NULL REFERENCES carillon.jobs (id) ON DELETE CASCADE,
    shard        smallint NOT NULL,
    fire_at      timestamptz NOT NULL,
    queue        text NOT NULL,
    priority     smallint NOT NULL,
    -- The job's; of a global job that of whoever asked.
    platform_id  text,
    -- NULL: the job's own payload.
    payload      jsonb,
    -- What its execution shall have as metadata.
    metadata     jsonb,
    -- W3C trace context of whoever asked.
    trace_id       text CHECK (trace_id ~ '^[0-9a-f]{32}$'),
    parent_span_id text CHECK (parent_span_id ~ '^[0-9a-f]{16}$'),
    trace_flags    smallint NOT NULL DEFAULT 1 CHECK (trace_flags BETWEEN 0 AND 255),
    created_by   text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((trace_id IS NULL) = (parent_span_id IS NULL))
);
CREATE INDEX job_triggers_due ON carillon.job_triggers (shard, queue, priority, fire_at);
CREATE INDEX job_triggers_by_job ON carillon.job_triggers (job_id);

-- What a request_id led to: the same key answers with the same thing. `fingerprint` = SHA-256 of the request, so that
-- one key with two different requests is refused instead of answered wrongly.
CREATE TABLE carillon.idempotency_keys (
    -- What is made, and for which platform.
    space       text NOT NULL,
    key         text NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    fingerprint bytea NOT NULL,
    resource_id uuid NOT NULL,
    -- Where one thing does not say all of it: the answer itself.
    answer      bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (space, key)
);
CREATE INDEX idempotency_keys_by_age ON carillon.idempotency_keys (created_at);
