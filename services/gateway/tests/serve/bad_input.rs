//! Bad input: each case of `tests/bad_input.txt` over JSON and over gRPC, refused by code, reason, field and rule, and nothing in
//! Postgres is another than before. `CARILLON_RENEW=1` writes into the table what is answered: read what it says before it is
//! kept.

use anyhow::{Context, Result, ensure};
use carillon_testkit::{Database, Redis};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::cleanup;
use crate::gateway::Gateway;
use crate::routes::{self, Refusal, Route};

const TABLE: &str = include_str!("../bad_input.txt");
const TABLE_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad_input.txt");

/// After how many of them Postgres is looked at.
const CASES_A_LOOK: usize = 20;

/// A request that must be refused.
struct Case {
    line: String,
    method: String,
    /// Path and query.
    target: String,
    body: Option<String>,
    /// Whether it cannot be said over gRPC, or is refused there otherwise.
    json_only: bool,
    /// `400 INVALID_ARGUMENT INVALID_FIELDS`, and the fields.
    wanted: Vec<String>,
}

/// The table: sections begin with `:: METHOD path body`; a case is a line `+ fields` (put into the body), `- field` (left out of
/// it), `= text` (instead of it), `? query` or `/ path`, with what is answered indented below it.
fn cases() -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    let (mut method, mut path, mut base) = ("", "", None::<Value>);
    for line in TABLE.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if let Some(section) = line.strip_prefix(":: ") {
            let mut words = section.splitn(3, ' ');
            method = words.next().unwrap_or_default();
            path = words.next().context("no path")?;
            base = words.next().map(serde_json::from_str).transpose().with_context(|| line.to_owned())?;
        } else if let Some(wanted) = line.strip_prefix("    ") {
            let case = cases.last_mut().context("no case")?;
            match wanted {
                "JSON only" => case.json_only = true,
                _ => case.wanted.push(line.to_owned()),
            }
        } else {
            let (kind, rest) = line.split_at_checked(2).with_context(|| line.to_owned())?;
            let (mut target, mut body) = (path.to_owned(), base.clone());
            let mut text = None;
            match kind {
                "+ " => {
                    let more: Value = serde_json::from_str(&expanded(rest)).with_context(|| line.to_owned())?;
                    let into = body.get_or_insert_with(|| json!({}));
                    for (key, value) in more.as_object().context("no object")? {
                        into[key] = value.clone();
                    }
                }
                "- " => drop(body.as_mut().and_then(Value::as_object_mut).and_then(|body| body.remove(rest))),
                "= " => text = Some(expanded(rest)),
                "? " => target = format!("{target}?{}", expanded(rest)),
                "/ " => target = format!("/{}", expanded(rest)),
                _ => anyhow::bail!("{line}"),
            }
            let body = text.or_else(|| body.map(|body| body.to_string()));
            let (line, method) = (line.to_owned(), method.to_owned());
            cases.push(Case { line, method, target, body, json_only: false, wanted: Vec::new() });
        }
    }
    Ok(cases)
}

/// `⟦30×[⟧` is a text so often.
fn expanded(text: &str) -> String {
    let mut parts = text.split('⟦');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escape, rest) = part.split_once('⟧').unwrap_or((part, ""));
        if let Some((count, repeated)) = escape.split_once('×') {
            whole.push_str(&repeated.repeat(count.parse().unwrap_or(1)));
        }
        whole.push_str(rest);
    }
    whole
}

/// Ids that stand in the table by name.
struct Names(Vec<(&'static str, String)>);

impl Names {
    fn put(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id))
    }

    fn take(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, id)| text.replace(id, name))
    }
}

/// What the table speaks of: jobs of each type, one with a key, one that says twice when it fires, a deleted one, an execution.
async fn names(gateway: &Gateway) -> Result<Names> {
    let id = |created: (StatusCode, Value)| -> Result<String> {
        ensure!(created.0.is_success(), "{created:?}");
        Ok(created.1["id"].as_str().context("no id")?.to_owned())
    };
    let with = |key: &str, value: Value| {
        let mut job = cleanup();
        job[key] = value;
        job
    };
    let job = id(gateway.post("/jobs/cron?request_id=used", &with("key", json!("taken"))).await?)?;
    let deleted = id(gateway.post("/jobs/cron", &cleanup()).await?)?;
    gateway.http.delete(gateway.url(&format!("/jobs/{deleted}"))).send().await?.error_for_status()?;
    let once = json!({"name": "o", "execute_at": "2200-01-01T00:00:00Z", "handler_name": "a:b"});
    let once = id(gateway.post("/jobs/once", &once).await?)?;
    let both = id(gateway.post("/jobs/cron", &with("schedules", json!(["0 9 * * MON"]))).await?)?;
    let event = id(gateway.post("/jobs", &json!({"name": "e", "type": "EVENT", "handler_name": "a:b"})).await?)?;
    let beat = json!({"name": "b", "interval": "90s", "handler_name": "a:b"});
    let beat = id(gateway.post("/jobs/recurring", &beat).await?)?;
    let execution = id(gateway.post(&format!("/jobs/{job}/trigger?"), &json!({"request_id": "used"})).await?)?;
    let unknown = "01a3185c-5000-8a28-b6b7-19d8e4ba20a5".to_owned();
    Ok(Names(vec![
        ("$job", job),
        ("$deleted", deleted),
        ("$once", once),
        ("$both", both),
        ("$event", event),
        ("$beat", beat),
        ("$execution", execution),
        ("$unknown", unknown),
    ]))
}

/// Of everything that Postgres holds.
async fn digest(pool: &PgPool) -> Result<Vec<(String, String)>> {
    let statements: Vec<String> = sqlx::query_scalar(
        "SELECT format('SELECT %L::text, md5(coalesce(string_agg(x::text, chr(10) ORDER BY x::text), '''')) FROM %I x', relname, relname)
           FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'carillon'::regnamespace",
    )
    .fetch_all(pool)
    .await?;
    let whole = sqlx::AssertSqlSafe(statements.join(" UNION ALL ") + " ORDER BY 1");
    Ok(sqlx::query_as(whole).fetch_all(pool).await?)
}

/// Whether what is answered is what is wanted: `…` ends a text that goes on anyhow.
fn is_as(answered: &[String], wanted: &[String]) -> bool {
    let fits = |(answered, wanted): (&String, &String)| match wanted.strip_suffix('…') {
        Some(start) => answered.starts_with(start),
        None => answered == wanted,
    };
    answered.len() == wanted.len() && answered.iter().zip(wanted).all(fits)
}

async fn over_json(gateway: &Gateway, case: &Case, names: &Names) -> Result<(StatusCode, Refusal)> {
    let request = gateway.http.request(case.method.parse()?, gateway.url(&names.put(&case.target)));
    let request = match &case.body {
        Some(body) => request.header("content-type", "application/json").body(names.put(body)),
        None => request,
    };
    let response = request.send().await?;
    let (status, body) = (response.status(), response.bytes().await?);
    Ok((status, Refusal::of_json(&serde_json::from_slice(&body).unwrap_or_default())))
}

async fn over_grpc(gateway: &Gateway, routes: &[Route], case: &Case, names: &Names) -> Result<Refusal> {
    let target = names.put(&case.target);
    let path = target.split('?').next().unwrap_or_default();
    let is_its = |route: &&Route| route.method.as_str() == case.method && route.bind(path).is_some();
    // One without variables is asked first.
    let route = routes.iter().filter(is_its).min_by_key(|route| route.path.matches('{').count()).context("no route")?;
    let body = case.body.as_ref().map(|body| serde_json::from_str(&names.put(body))).transpose()?;
    let message = route.message(&target, body.as_ref())?;
    match routes::call(&gateway.channel().await?, route, message).await {
        Ok(answer) => anyhow::bail!("answered with {answer:?}"),
        Err(status) => Ok(Refusal::of_status(&status)),
    }
}

#[tokio::test]
async fn bad_input_is_refused_by_code_field_and_reason_and_changes_nothing() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let names = names(&gateway).await?;
    let routes = routes::all()?;
    let pool = database.pool().await?;
    let (cases, mut wrong) = (cases()?, Vec::new());
    let mut renewed = Vec::new();
    let mut before = digest(&pool).await?;
    for case in &cases {
        let (status, refusal) = over_json(&gateway, case, &names).await?;
        let taken = |lines: &[String]| lines.iter().map(|line| names.take(line)).collect::<Vec<String>>();
        let answered = taken(&refusal.shown(status));
        if !is_as(&answered, &case.wanted) {
            wrong.push(format!(
                "{} {}\n{}\nwanted\n{}",
                case.target,
                case.line,
                answered.join("\n"),
                case.wanted.join("\n")
            ));
        }
        let answered = if is_as(&answered, &case.wanted) { case.wanted.clone() } else { answered };
        let mut json_only = case.json_only;
        if !case.json_only {
            match over_grpc(&gateway, &routes, case, &names).await {
                Ok(other) if is_as(&taken(&other.shown(status)), &answered) => {}
                Ok(other) => {
                    json_only = true;
                    wrong.push(format!("{} {} over gRPC: {other:?}", case.target, case.line));
                }
                Err(error) => {
                    json_only = true;
                    wrong.push(format!("{} {} over gRPC: {error:#}", case.target, case.line));
                }
            }
        }
        renewed.push((answered, json_only));
        let is_looked_at = renewed.len() % CASES_A_LOOK == 0 || renewed.len() == cases.len();
        let after = if is_looked_at { digest(&pool).await? } else { continue };
        if after != before {
            wrong.push(format!("{} {}, or one of those before it, changed something", case.target, case.line));
            before = after;
        }
    }
    if std::env::var_os("CARILLON_RENEW").is_some() {
        std::fs::write(TABLE_PATH, renew(&renewed))?;
    }
    ensure!(cases.len() >= 300, "{} cases", cases.len());
    ensure!(wrong.is_empty(), "{} of {} are answered otherwise:\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
    gateway.stop().await
}

/// The table with what was answered.
fn renew(answered: &[(Vec<String>, bool)]) -> String {
    let mut lines = Vec::new();
    let mut answered = answered.iter();
    for line in TABLE.lines().filter(|line| !line.starts_with("    ")) {
        lines.push(line.to_owned());
        if ["+ ", "- ", "= ", "? ", "/ "].iter().any(|kind| line.starts_with(kind))
            && let Some((wanted, json_only)) = answered.next()
        {
            lines.extend(json_only.then(|| "    JSON only".to_owned()));
            lines.extend(wanted.iter().cloned());
        }
    }
    lines.join("\n") + "\n"
}
