//! What may be called a schema, and that every statement of this crate names its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sqlx::{SqlSafeStr as _, SqlStr};

use super::{DEFAULT, IN_STATEMENTS, Schema};

/// Tables after which a column is called too: what is meant by the name is told from the word before it.
const COLUMNS_TOO: [&str; 1] = ["queues"];
/// After these stands a table, or what is looked at like one.
const BEFORE_TABLES: [&str; 9] = ["FROM", "JOIN", "INTO", "UPDATE", "ONLY", "TABLE", "USING", "REFERENCES", "ON"];
/// Names that are given to statements and functions as parameters: those put the schema before them.
const PARAMETERS: [&str; 4] = ["job_executions", "job_execution_logs", "execution_attempts", "execution_failures"];
/// What is no table and no function, and has the schema in its name all the same: the table of sqlx, locks.
const OTHERS: [&str; 3] = ["_sqlx_migrations", "migrations", "partitions"];

#[test]
fn a_schema_has_a_plain_name_that_postgres_does_not_keep_for_itself() {
    let longest = "a".repeat(63);
    for name in ["carillon", "public", "_x9", "order", "b", longest.as_str()] {
        assert_eq!(Schema::new(name).map(|schema| schema.name().to_owned()).as_deref(), Ok(name));
    }
    let too_long = "a".repeat(64);
    for name in ["", "9a", "a-b", "Carillon", "a.b", "a\"b", "ä", "a b", "a'", too_long.as_str()] {
        let refused = Schema::new(name).unwrap_err();
        assert_eq!(refused, format!("must be 1 to 63 of a-z, 0-9 and '_', the first no digit, is {name:?}"));
    }
    assert!(Schema::new("pg_x").unwrap_err().contains("must not begin with pg_"));
    assert_eq!(Schema::new(DEFAULT), Ok(Schema::default()));
}

#[test]
fn a_statement_gets_the_schema_in_each_place_and_nothing_else_is_touched() {
    let other = Schema::new("order").unwrap();
    let statement = "SELECT 'carillon_closed', hashtext('carillon.queues'), ('carillon.' || $1)::regclass
                     FROM carillon.jobs j -- the carillon";
    assert_eq!(
        other.put_into(SqlStr::from_static(statement)).as_str(),
        "SELECT 'carillon_closed', hashtext('\"order\".queues'), ('\"order\".' || $1)::regclass
                     FROM \"order\".jobs j -- the carillon"
    );
    let as_it_was = Schema::default().put_into(statement.into_sql_str());
    assert!(std::ptr::eq(as_it_was.as_str(), statement), "the same text, not a copy");
    // Its name has the default's in it, with a quote between that and the dot.
    let again = Schema::new("my_carillon").unwrap();
    let once = again.put_into(SqlStr::from_static("carillon.jobs"));
    assert_eq!(again.put_into(once.clone()), once);
}

#[test]
fn each_schema_has_a_lock_of_its_own() {
    let keys: BTreeSet<i32> =
        ["a", "b", "ab", "ba", "public"].map(|name| Schema::new(name).unwrap().lock_key(7)).into_iter().collect();
    assert_eq!(keys.len(), 5);
    assert!(!keys.contains(&7));
    assert_eq!(Schema::default().lock_key(7), 7);
    // Every build of every version must say the same.
    assert_eq!(Schema::new("a").unwrap().lock_key(0), 0xe40c_292c_u32.cast_signed());
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|is| is == extension) && !path.ends_with("schema/tests.rs") {
            found.push(path);
        }
    }
}

/// The texts in quotes of a Rust source; what is tested in it, and comments, left out.
fn texts(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let (mut texts, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let found = &rest[at..];
        let begin = if rest[..at].ends_with("r#") { "#" } else { "" };
        rest = if found.starts_with("//") {
            found.split_once('\n').map_or("", |(_, after)| after)
        } else if let Some(after) = found.strip_prefix("'\"'") {
            after
        } else if found.starts_with('"') {
            let mut end = 1;
            let mut escaped = false;
            let closes = format!("\"{begin}");
            while escaped || !found[end..].starts_with(&closes) {
                escaped = !escaped && begin.is_empty() && found[end..].starts_with('\\');
                end += found[end..].chars().next().map_or(1, char::len_utf8);
            }
            texts.push(found[1..end].to_owned());
            &found[end + closes.len()..]
        } else {
            &found[1..]
        };
    }
    texts
}

fn is_sql(text: &str) -> bool {
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    ["SELECT", "INSERT", "UPDATE", "DELETE", "FROM", "JOIN", "WHERE", "UNION", "LOCK"]
        .iter()
        .any(|word| words.contains(word))
}

/// Without its comments.
fn bare(sql: &str) -> String {
    let lines: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    lines.join("\n")
}

/// The tables and functions of the migrations, and the names that are not those of the schema.
fn ours() -> (BTreeSet<String>, BTreeSet<String>) {
    let mut migrations = Vec::new();
    files(&root().join("migrations"), "sql", &mut migrations);
    let sql: String = migrations.iter().map(|file| bare(&fs::read_to_string(file).unwrap())).collect();
    let after = |what: &str| -> BTreeSet<String> {
        let names = sql.split(what).skip(1).map(|after| {
            let name = after.strip_prefix(IN_STATEMENTS).unwrap_or(after);
            name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default().to_owned()
        });
        // Some are named where they are made, by `%I`.
        names.filter(|name| !name.is_empty()).collect()
    };
    (after("CREATE TABLE "), after("CREATE FUNCTION "))
}

/// Names in `sql` that lack their schema, and the schema before what is no name of ours.
fn wrong(sql: &str, tables: &BTreeSet<String>, functions: &BTreeSet<String>) -> Vec<String> {
    let sql = bare(sql);
    let mut wrong = Vec::new();
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut at = 0;
    while let Some(begin) = sql[at..].find(is_in_name).map(|found| at + found) {
        let end = sql[begin..].find(|c| !is_in_name(c)).map_or(sql.len(), |length| begin + length);
        at = end;
        let (before, name, after) = (&sql[..begin], &sql[begin..end], &sql[end..]);
        let around = || sql[begin.saturating_sub(30)..].chars().take(60).collect::<String>();
        if format!("{name}.") == IN_STATEMENTS && after.starts_with('.') {
            let named = after[1..].split(|c| !is_in_name(c)).next().unwrap_or_default();
            let known = tables.contains(named) || functions.contains(named) || OTHERS.contains(&named);
            // A text to which a name is added, or `%I`.
            let is_added = named.is_empty() && after[1..].starts_with(['\'', '%']) || after == ".";
            if !known && !is_added {
                wrong.push(around());
            }
            continue;
        }
        if ["search_path", "current_schema", "current_schemas"].contains(&name) {
            wrong.push(around());
        }
        let cast: String = before.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
        if name == "regclass" && !cast.contains(IN_STATEMENTS) {
            wrong.push(around());
        }
        // 'jobs' in quotes is a word, `jobs.id` a column.
        if before.ends_with(['.', '\'', '`']) || after.starts_with(['.', '\'']) {
            continue;
        }
        let word_before = before.trim_end().rsplit(|c| !is_in_name(c)).next().unwrap_or_default();
        // In an expression over names it is a name.
        let is_table = tables.contains(name)
            && !before.ends_with(['(', '|'])
            && (!COLUMNS_TOO.contains(&name) || BEFORE_TABLES.contains(&word_before));
        let is_call = functions.contains(name) && after.starts_with('(');
        if is_table || is_call || after.starts_with('(') && name.strip_prefix("carillon_").is_some() {
            wrong.push(around());
        }
    }
    wrong
}

#[test]
fn every_statement_and_every_migration_names_the_schema() {
    let (tables, functions) = ours();
    assert!(tables.contains("jobs") && functions.contains("page_of_job"), "{tables:?} {functions:?}");
    let mut sources = Vec::new();
    files(&root().join("libs/store/src"), "rs", &mut sources);
    let mut statements = 0;
    for file in &sources {
        for text in texts(&fs::read_to_string(file).unwrap()) {
            // A name alone is put into a statement, or is its parameter.
            let is_name = tables.contains(&text) && !PARAMETERS.contains(&text.as_str());
            assert!(!is_name, "{}: write \"{IN_STATEMENTS}{text}\"", file.display());
            if !is_sql(&text) {
                continue;
            }
            let wrong = wrong(&text, &tables, &functions);
            assert!(wrong.is_empty(), "{}: write {IN_STATEMENTS} before it: {wrong:#?}", file.display());
            statements += 1;
        }
    }
    assert!(statements > 100, "{statements} statements were found in {} sources", sources.len());
    let mut migrations = Vec::new();
    files(&root().join("migrations"), "sql", &mut migrations);
    for file in &migrations {
        let text = fs::read_to_string(file).unwrap();
        let wrong = wrong(&text, &tables, &functions);
        assert!(wrong.is_empty(), "{}: write {IN_STATEMENTS} before it: {wrong:#?}", file.display());
        for keyword in ["FROM", "INTO", "TABLE", "ONLY", "LIKE", "PARTITION", "UPDATE", "JOIN", "TABLE IF EXISTS"] {
            assert!(!bare(&text).contains(&format!("{keyword} %I")), "{}: {keyword} %I", file.display());
        }
    }
}

#[test]
fn the_reader_of_statements_sees_what_it_must() {
    let (tables, functions) = ours();
    for statement in [
        "SELECT * FROM jobs",
        "DELETE FROM carillon.jobs j USING carillon.job_timers t, job_stats s",
        "SELECT name FROM queues",
        "SELECT NULL::jobs FROM carillon.jobs",
        "SELECT page_of_job($1)",
        "SELECT carillon_page_of_job($1)",
        "SELECT carillon.page_of_nothing($1)",
        "SELECT carillon.elsewhere FROM x",
        "SELECT $1::regclass",
        "SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace",
        "SET search_path = carillon",
    ] {
        assert!(!wrong(statement, &tables, &functions).is_empty(), "{statement}");
    }
    for statement in [
        "SELECT jobs.id, 'jobs' FROM carillon.jobs -- of all jobs",
        "INSERT INTO carillon.workers (id, queues) VALUES ($1, $2)",
        "SELECT ('carillon.' || $1)::regclass, 'carillon_closed', hashtext('carillon.queues')",
        "SELECT carillon.page_of_job($1)",
        "FROM carillon.",
    ] {
        assert_eq!(wrong(statement, &tables, &functions), Vec::<String>::new(), "{statement}");
    }
    let source = "let a = 'x'; // \"SELECT 1\"\nlet b = '\"'; f(\"SELECT \\\"2\\\"\", r#\"a \"SELECT\" 3\"#, \"\");";
    assert_eq!(texts(source), ["SELECT \\\"2\\\"", "a \"SELECT\" 3", ""]);
}
