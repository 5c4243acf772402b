//! A minute of the soak with a fixed seed, and whether `docs/reliability.md` names what there is. A target of its own: nothing
//! else may run beside it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOAK: &str = env!("CARGO_BIN_EXE_carillon-soak");

#[test]
fn a_minute_of_random_faults_breaks_no_promise() {
    let status = Command::new(SOAK).args(["--minutes", "1", "--seed", "7"]).status().expect("it starts");
    assert!(status.success(), "{status}: logs, journal and rows are in target/soak/7");
}

#[test]
fn the_page_about_reliability_names_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/reliability.md")).expect("the page");
    let output = Command::new(SOAK).arg("--list").output().expect("it starts");
    let kinds = String::from_utf8(output.stdout).expect("text");
    let kinds: BTreeSet<&str> = kinds.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let mut sources = Vec::new();
    for place in ["libs", "services", "integration-tests"] {
        find_sources(&root.join(place), &mut sources);
    }
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let words: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        for word in &words {
            if let Some((file, test)) = word.split_once("::") {
                let holds = |path: &&PathBuf| {
                    std::fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("fn {test}(")))
                };
                let named = sources.iter().filter(|path| path.ends_with(file));
                assert!(named.into_iter().any(|path| holds(&path)), "there is no test {word}");
            }
        }
        let soak = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let is_of_the_matrix = row.split('|').nth(1).is_some_and(|number| number.trim().parse::<u32>().is_ok());
        for kind in soak.split('`').skip(1).step_by(2).filter(|_| is_of_the_matrix) {
            assert!(kinds.contains(kind), "there is no fault {kind}");
        }
        if let Some(number) = row.split('|').nth(1).filter(|_| is_of_the_matrix) {
            let script = root.join("integration-tests/fault.sh");
            let shown = Command::new("sh").arg(script).args(["--print", number.trim()]).output().expect("it starts");
            assert!(shown.status.success() && !shown.stdout.is_empty(), "{shown:?}");
        }
    }
    for point in carillon_failpoint::POINTS {
        assert!(page.contains(&format!("| `{point}` |")), "{point} has no row");
    }
}

fn find_sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            find_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
