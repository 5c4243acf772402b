//! `carillon job` and `carillon execution` as a script runs them, against real services. Needs them beside the program: `make test`
//! builds them first.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use carillon_testkit::{Cluster, ClusterOptions, Role, free_port, wait_until};
use serde_json::Value;

/// The program, and where its gateway is.
struct Program {
    address: String,
}

/// What it said.
struct Said {
    code: i32,
    out: String,
    error: String,
}

impl Program {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_carillon"));
        command.env_clear().env("CARILLON_ADDRESS", &self.address).args(line.split(' '));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Said {
        self.run_with(line, &[])
    }

    /// With arguments that have blanks.
    fn run_with(&self, line: &str, further: &[&str]) -> Said {
        said(self.command(line).args(further).output())
    }

    fn run_fed(&self, line: &str, input: &str) -> Said {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{error}"));
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        }
        said(child.wait_with_output())
    }

    /// The answer as JSON, of what must succeed.
    fn json(&self, line: &str, further: &[&str]) -> Value {
        let said = self.run_with(&format!("{line} -o json"), further);
        said.is(0);
        assert_eq!(said.out.lines().count(), 1, "one line where it is piped: {}", said.out);
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.out))
    }

    /// A job that only fires by hand.
    fn job(&self, handler: &str, payload: &str, line: &str) -> String {
        let line = format!("job create --name n --type event --handler-name {handler} --payload {payload}{line}");
        text(&self.json(&line, &[]), "id")
    }
}

fn said(output: std::io::Result<Output>) -> Said {
    let output = output.unwrap_or_else(|error| panic!("{error}"));
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Said {
    #[track_caller]
    fn is(&self, code: i32) {
        assert_eq!(self.code, code, "{}{}", self.out, self.error);
        assert_eq!(self.error.is_empty(), code == 0, "{}", self.error);
    }

    /// `wanted` stand somewhere, however far columns are apart.
    #[track_caller]
    fn says(&self, code: i32, wanted: &[&str]) {
        self.is(code);
        let said = [self.out.as_str(), self.error.as_str()].concat();
        let lines =
            said.lines().map(|line| line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "));
        let narrow: Vec<String> = lines.collect();
        for wanted in wanted {
            assert!(said.contains(wanted) || narrow.join("\n").contains(wanted), "{wanted}: {said}");
        }
    }
}

fn text(message: &Value, field: &str) -> String {
    message[field].as_str().unwrap_or_else(|| panic!("{field}: {message}")).to_owned()
}

async fn cluster(dispatchers: usize, executors: usize) -> (Cluster, Program) {
    let options = ClusterOptions { dispatchers, executors, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await.unwrap_or_else(|error| panic!("{error:#}"));
    let address = cluster.gateway_url();
    (cluster, Program { address })
}

#[tokio::test]
async fn a_job_is_made_read_changed_and_deleted() {
    let (_cluster, program) = cluster(0, 0).await;
    let schedule = ["--schedule", "0 2 * * *", "--tags", "two words", "--tags", "b"];
    let job = program.json("job create --name nightly --handler-name test:echo --priority high", &schedule);
    assert_eq!(
        (text(&job, "type"), text(&job, "priority"), job["tags"][0].clone()),
        ("CRON".into(), "HIGH".into(), "two words".into())
    );
    let id = text(&job, "id");
    assert_eq!(program.json(&format!("job get {id}"), &[]), job);

    // Columns begin where their headings do, and there is no colour in a pipe.
    let list = program.run("job list");
    list.says(0, &[&id, "0 2 * * *", "ACTIVE"]);
    assert!(!list.out.contains('\u{1b}'), "{:?}", list.out);
    let lines: Vec<&str> = list.out.lines().collect();
    for (heading, value) in [("ID", id.as_str()), ("NAME", "nightly"), ("STATUS", "ACTIVE"), ("WHEN", "0 2 * * *")] {
        assert_eq!(lines[0].find(heading), lines[1].find(value), "{heading}: {}", list.out);
    }
    program.run(&format!("job get {id}")).says(0, &["name: nightly", "tags: two words, b"]);

    // A change is what was given.
    let changed = program.json(&format!("job update {id} --max-retries 0 --clear tags --updated-by me"), &[]);
    assert_eq!(
        (&changed["max_retries"], &changed["tags"], text(&changed, "name")),
        (&0.into(), &Value::Array(Vec::new()), "nightly".into())
    );
    program.run(&format!("job schedule {id} --schedule @daily")).says(0, &["schedule: @daily"]);
    program.run(&format!("job revisions {id}")).says(0, &["REVISION", "max_retries, tags", "me"]);
    let page = program.run(&format!("job revisions {id} --limit 1"));
    page.says(0, &["more: --offset 1"]);

    // What is printed can be given again; an etag that is old is refused.
    let old = job.to_string();
    program.run_fed(&format!("job update {id} -f -"), &old).says(73, &["reason SUPERSEDED"]);
    let now = program.json(&format!("job get {id}"), &[]).to_string();
    let renamed = program.run_fed(&format!("job update {id} -f - --name renamed -o json"), &now);
    renamed.says(0, &["\"name\":\"renamed\""]);
    program.run_fed("job create -f - --validate-only -o json", &now).says(0, &["\"id\":\"\""]);

    program.json("job create --name other --type event --handler-name test:echo", &[]);
    let page = program.run("job list --limit 1");
    page.says(0, &["other", "more: --page-token "]);
    let token = page.out.split("--page-token ").nth(1).unwrap_or_default().trim().to_owned();
    let next = program.run(&format!("job list --limit 1 --page-token {token}"));
    next.says(0, &["renamed"]);
    assert!(!next.out.contains("other"), "{}", next.out);

    program.run(&format!("job pause {id}")).says(0, &["PAUSED"]);
    program.run(&format!("job resume {id}")).says(0, &["ACTIVE"]);
    program.run(&format!("job delete {id}")).says(0, &["done\n"]);
    program.run(&format!("job pause {id}")).says(73, &["reason WRONG_STATE"]);
    program.run("job list --status cancelled").says(0, &[&id]);
    program
        .run("schedule preview --interval 90s --count 2 --from 2027-01-01T00:00:00Z")
        .says(0, &["description: every 1m 30s", "FIRE AT", "2027-01-01T00:01:30Z"]);
}

#[tokio::test]
async fn many_jobs_are_made_of_a_file_and_each_is_told_of() {
    let (_cluster, program) = cluster(0, 0).await;
    let job = |name: &str, handler: &str| {
        format!(r#"{{"name": "{name}", "type": "EVENT", "handler_name": "{handler}", "key": "{name}"}}"#)
    };
    let right = format!("{}\n{}\n", job("a", "test:echo"), job("b", "test:echo"));
    let made = program.run_fed("job batch-create -f - --request-id r -o json", &right);
    made.is(0);
    let answer: Value = serde_json::from_str(&made.out).unwrap();
    let first = text(&answer["results"][0], "id");
    let again = program.run_fed("job batch-create -f - --request-id r", &right);
    again.says(0, &["INDEX", "ID", &first]);

    // Together: none is made. Each by itself: the others are.
    let mixed = format!("[{}, {}, {}]", job("c", "test:echo"), job("d", "no handler"), job("a", "test:echo"));
    let refused = program.run_fed("job batch-create -f -", &mixed);
    refused.says(64, &["carillon: jobs[1].handler_name: ", "reason INVALID_FIELDS"]);
    let some = program.run_fed("job batch-create -f - --allow-partial-success", &mixed);
    some.says(65, &["1 INVALID_FIELDS jobs[1].handler_name: ", "2 KEY_TAKEN", "carillon: 2 of 3 were refused"]);
    let list = program.json("job list", &[]);
    let mut names: Vec<String> = list["jobs"].as_array().unwrap().iter().map(|job| text(job, "name")).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
    // What is listed can be given again: only the keys are taken.
    let listed = program.run_fed("job batch-create -f - --allow-partial-success -o json", &list.to_string());
    listed.says(65, &["KEY_TAKEN", "3 of 3 were refused"]);
    program.run("job batch-create").says(64, &["jobs: must be 1 to 1000"]);
}

#[tokio::test]
async fn an_execution_is_waited_for_and_its_end_is_the_exit_code() {
    let (_cluster, program) = cluster(1, 1).await;
    let echo = program.job("test:echo", "{\"a\":1}", "");
    let execution = program.json(&format!("job trigger {echo} --wait=60s --payload {{\"b\":[1,null]}}"), &[]);
    assert_eq!(
        (text(&execution, "status"), execution["result"].to_string()),
        ("SUCCESS".into(), "{\"b\":[1,null]}".into())
    );

    let failing = program.job("test:fail", "{\"message\":\"on_purpose\"}", " --max-retries 0");
    let failed = program.run(&format!("job trigger {failing} --wait"));
    failed.says(70, &["status:", "FAILED", "on_purpose", "carillon: execution", "ended in FAILED"]);
    program.run(&format!("execution list {failing} --status failed")).says(0, &["STATUS", "FAILED", "on_purpose"]);

    let slow = program.job("test:sleep", "{\"ms\":600000}", "");
    let waiting = program.run(&format!("job trigger {slow} --wait=300ms -o json"));
    waiting.says(75, &["it goes on"]);
    let id = text(&serde_json::from_str(&waiting.out).unwrap(), "id");
    program
        .run_with(&format!("execution cancel {id} --wait=60s"), &["--reason", "no longer needed"])
        .says(70, &["CANCELLED", "no longer needed"]);
    program.run(&format!("execution get {id} --wait")).says(70, &["ended in CANCELLED"]);
    let done = text(&execution, "id");
    program.run(&format!("execution get {done}")).says(0, &[&done, "SUCCESS"]);
    program.run(&format!("execution cancel {done}")).says(73, &["reason WRONG_STATE"]);
    let list = program.json(&format!("execution list {echo}"), &[]);
    assert_eq!(list["executions"][0]["id"], execution["id"]);
}

#[tokio::test]
async fn waiting_survives_a_gateway_that_goes_away() {
    let (mut cluster, program) = cluster(1, 1).await;
    let slow = program.job("test:sleep", "{\"ms\":3000}", "");
    let waiting = program.command(&format!("job trigger {slow} --wait=60s -o json")).spawn().unwrap();
    wait_until("it to be triggered", Duration::from_secs(20), || async {
        let list = program.run(&format!("execution list {slow} -o json")).out;
        anyhow::ensure!(list.contains(&slow), "{list}");
        anyhow::Ok(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}"));
    let gateway = cluster.nodes_of(Role::Gateway).next().map(|node| node.name.clone()).unwrap();
    cluster.node(&gateway).kill();
    program.run("job list").says(69, &["cannot reach"]);
    cluster.start_again(&gateway).unwrap_or_else(|error| panic!("{error:#}"));
    let said = said(waiting.wait_with_output());
    said.says(0, &["\"status\":\"SUCCESS\""]);
}

#[tokio::test]
async fn what_goes_wrong_is_told_by_the_exit_code() {
    let (mut cluster, program) = cluster(0, 0).await;
    let nobody = "01a3185c-5000-8a28-b6b7-19d8e4ba20a5";
    program.run(&format!("job get {nobody}")).says(66, &[nobody, "reason NOT_FOUND"]);
    let wrong = program.run_with("job create --max-retries 1000", &["--schedule", "61 2 * * *"]);
    wrong.says(
        64,
        &["\n  name: ", "\n  handler_name: ", "\n  max_retries: ", "\n  schedule: ", "reason INVALID_FIELDS"],
    );
    for (line, wanted) in [
        ("job create --payload [1] --execute-at tomorrow", "--payload: must be a JSON object"),
        ("job create --payload [1] --execute-at tomorrow", "--execute-at: must be an instant"),
        ("job create -f /nowhere", "--file /nowhere: cannot read"),
        ("job update 1", "what is to change?"),
        ("job list --address ftp://127.0.0.1:1", "must begin with http:// or https://"),
        ("job list --ca /nowhere --address https://127.0.0.1:1", "--ca /nowhere: cannot be read"),
        ("job batch-create -f /nowhere", "--file /nowhere: cannot read"),
        ("job list --limit many", "--limit: must be a whole number"),
        ("job list --status asleep", "possible values: ACTIVE"),
        ("job list --timeout 0", "invalid value '0'"),
        ("job", "Usage: carillon job"),
        ("job get", "<ID>"),
    ] {
        program.run(line).says(64, &[wanted]);
    }

    // For a platform only what is of it, or global, is there.
    let own = text(&program.json("job create --name n --type event --handler-name a:b --platform acme", &[]), "id");
    let global = program.job("a:b", "{}", "");
    program.run(&format!("job get {own} --platform acme")).says(0, &["platform_id: acme"]);
    program.run(&format!("job get {own} --platform other")).says(66, &[&own, "reason NOT_FOUND"]);
    program.run(&format!("job pause {global} --platform acme")).says(77, &[&global, "reason NOT_OWN"]);
    program.run("job list --platform=").says(64, &["x-platform-id: is empty: leave it out"]);
    let list = program.json("job list --platform other", &[]);
    assert_eq!((list["jobs"][0]["id"].as_str(), list["jobs"][1].is_null()), (Some(global.as_str()), true));

    // Nobody listens; then somebody who does not answer.
    let closed = free_port().unwrap();
    program.run(&format!("job list --address 127.0.0.1:{closed}")).says(69, &["cannot reach", "refused"]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    program.run(&format!("job list --timeout 200ms --address {address}")).says(69, &["did not answer within 200ms"]);
    let gateway = cluster.nodes_of(Role::Gateway).next().map(|node| node.name.clone()).unwrap();
    cluster.node(&gateway).kill();
    program.run("job list").says(69, &["cannot reach"]);
}

#[test]
fn help_says_what_can_be_done() {
    let program = Program { address: String::new() };
    program.run("--help").says(0, &["job ", "execution ", "66  no such job or execution"]);
    program.run("job trigger --help").says(0, &["--wait[=<TIME>]", "Exit codes:", "@FILE"]);
}
