//! A minute of the soak with a fixed seed. A target of its own: nothing else may run beside it.

use std::process::Command;

#[test]
fn a_minute_of_random_faults_breaks_no_promise() {
    let status = Command::new(env!("CARGO_BIN_EXE_carillon-soak")).args(["--minutes", "1", "--seed", "7"]).status();
    let status = status.expect("it starts");
    assert!(status.success(), "{status}: logs, journal and rows are in target/soak/7");
}
