//! Runs a program to its end and turns a failure into an error that shows what it said.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs it; an error with its last words when it fails. Returns what it wrote to its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, None)
}

/// The same for a program and its arguments.
pub(crate) fn call(program: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// The same, with something to read.
pub(crate) fn run_with_input(command: &mut Command, input: Option<&str>) -> Result<String> {
    let shown = show(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().with_context(|| format!("could not start `{shown}`"))?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(text.as_bytes()).with_context(|| format!("could not write to `{shown}`"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("could not wait for `{shown}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = format!("{stdout}{stderr}");
        let input = input.map(|text| format!("\n{text}")).unwrap_or_default();
        bail!("`{shown}` failed ({}): {}{input}", output.status, said.trim());
    }
    Ok(stdout)
}

/// The command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text += &argument.to_string_lossy();
    }
    text
}
