//! `carillon completions`: each script is read by its shell, and completes in it what the program knows. Shells that are not there are
//! passed over, but for bash.

use std::process::{Command, Output};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// What the commands of a noun, and the values of a flag, are completed by: by what is typed.
const COMPLETED: [(&str, &[&str]); 3] = [
    ("carillon job ", &["batch-create", "revisions", "trigger"]),
    ("carillon job list --status ", &["COMPLETED", "PAUSED"]),
    ("carillon job create --max-", &["--max-retries", "--max-executions"]),
];

/// Types `$2` into a shell that has the completions of the directory `$1`, and a tab; then waits for each of the other words.
const TYPE_INTO_ZSH: &str = r#"
zmodload zsh/zpty zsh/zselect
export TERM=vt100 COLUMNS=200 LINES=100
seen=
saw() {
    local part
    until [[ $seen == *$1* ]]; do
        if (( SECONDS > 60 )); then print -r -- "no $1 in: $seen"; exit 1; fi
        if zpty -rt shell part; then seen+=$part; else zselect -t 2; fi
    done
}
zpty shell zsh -f -i
zpty -w shell "fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; PS1='READY'' '"
saw 'READY '
seen=
zpty -w -n shell "$2"$'\t'
shift 2
for word; do saw $word; done
zpty -d shell
"#;

/// The script for a shell, as a file of the name by which zsh looks for it.
fn script(shell: &str) -> Result<(TempDir, String)> {
    let printed = carillon(&["completions", shell])?;
    assert!(printed.status.success(), "{}", text(&printed));
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("_carillon");
    std::fs::write(&file, &printed.stdout)?;
    let file = file.to_str().context("no text")?.to_owned();
    Ok((directory, file))
}

fn carillon(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_carillon")).env_clear().args(arguments).output()?)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

/// What a shell says to these arguments. `None`: there is no such shell.
fn said(shell: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(shell).args(arguments).output().ok()?;
    assert!(output.status.success(), "{shell} {arguments:?}: {}", text(&output));
    Some(text(&output))
}

#[test]
fn every_command_is_in_each_script() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let printed = text(&carillon(&["completions", shell])?);
        for word in ["max-retries", "trigger", "completions"] {
            assert!(printed.contains(word), "{shell} {word}");
        }
    }
    let unknown = carillon(&["completions", "tcsh"])?;
    assert_eq!(unknown.status.code(), Some(64));
    assert!(text(&unknown).contains("possible values: bash, zsh, fish"), "{}", text(&unknown));
    Ok(())
}

#[test]
fn bash_completes_what_there_is() -> Result<()> {
    let (_directory, file) = script("bash")?;
    said("bash", &["-n", &file]).expect("there is a bash");
    for (typed, words) in COMPLETED {
        let complete = format!(
            "source {file}; COMP_WORDS=({typed}\"\"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _carillon carillon \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let completed = said("bash", &["--norc", "-c", &complete]).unwrap_or_default();
        for word in words {
            assert!(completed.split_whitespace().any(|found| found == *word), "{typed}: {completed}");
        }
    }
    Ok(())
}

#[test]
fn fish_completes_what_there_is() -> Result<()> {
    let (_directory, file) = script("fish")?;
    if said("fish", &["--no-execute", &file]).is_none() {
        return Ok(());
    }
    for (typed, words) in COMPLETED {
        let complete = format!("source {file}; complete -C '{typed}'");
        let completed = said("fish", &["--no-config", "-c", &complete]).unwrap_or_default();
        for word in words {
            assert!(completed.lines().any(|line| line.split('\t').next() == Some(word)), "{typed}: {completed}");
        }
    }
    Ok(())
}

#[test]
fn zsh_completes_what_there_is() -> Result<()> {
    let (directory, file) = script("zsh")?;
    if said("zsh", &["-n", &file]).is_none() {
        return Ok(());
    }
    let directory = directory.path().to_str().context("no text")?;
    for (typed, words) in COMPLETED {
        let arguments = [&["-fc", TYPE_INTO_ZSH, "zsh", directory, typed], words].concat();
        said("zsh", &arguments);
    }
    Ok(())
}
