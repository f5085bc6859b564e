//! How does the operator's file get into, and out of, the git work tree that it is in? By the git command, within bounds.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::api::MAX_BODY_BYTES;
use crate::changes::Origin;

/// Longest that one command may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(5);
/// Most bytes of what it complains that are told.
const MOST_WORDS: usize = 500;

/// Why git did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("git {command}: {reason}; the configuration in force is not affected")]
    Failed { command: &'static str, reason: String },
    #[error("\"{0}\" is no revision; name a commit, a tag or a branch")]
    Revision(String),
    #[error("{0} was not committed: it is not the text that was applied")]
    OtherFile(String),
}

/// Runs git in the file's directory; gives its output.
fn run(file: &Path, command: &'static str, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
    let failed = |reason: String| GitError::Failed { command, reason };
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut child = Command::new("git")
        .arg("-C")
        .arg(directory.unwrap_or_else(|| Path::new(".")))
        .arg(command)
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_EDITOR", "true")
        .env("GIT_COMMITTER_NAME", "weir")
        .env("GIT_COMMITTER_EMAIL", "weir@localhost")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; install git, or switch [control] git off")))?;
    // both are read beside the wait: a full pipe would keep git from its end
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let limit = MAX_BODY_BYTES as u64 + 1;
            pipe.map(|pipe| pipe.take(limit).read_to_end(&mut bytes));
            bytes
        })
    };
    let out = read(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let complaint = read(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < LIMIT => std::thread::sleep(POLL),
            other => {
                let _killed = child.kill();
                let _reaped = child.wait();
                let reason = match other {
                    Err(error) => error.to_string(),
                    Ok(_) => format!("no end within {} s; it was killed", LIMIT.as_secs()),
                };
                return Err(failed(reason));
            }
        }
    };
    let out = out.join().unwrap_or_default();
    if status.success() {
        return Ok(out);
    }
    let complaint = complaint.join().unwrap_or_default();
    let words = if complaint.is_empty() { &out } else { &complaint };
    let words: String = String::from_utf8_lossy(words).chars().take(MOST_WORDS).collect();
    Err(failed(words.trim().replace('\n', "; ")))
}

fn name_of(file: &Path) -> String {
    file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The file's text in a revision.
pub(crate) fn show(file: &Path, revision: &str) -> Result<String, GitError> {
    let fits = (1..=200).contains(&revision.len())
        && !revision.starts_with('-')
        && revision.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != ':');
    if !fits {
        return Err(GitError::Revision(revision.to_owned()));
    }
    let bytes = run(file, "show", &[&format!("{revision}:./{}", name_of(file))])?;
    let unusable = |reason: &str| GitError::Failed { command: "show", reason: reason.to_owned() };
    if bytes.len() > MAX_BODY_BYTES {
        return Err(unusable("the file of that revision is too large"));
    }
    String::from_utf8(bytes).map_err(|_| unusable("the file of that revision is not UTF-8"))
}

/// Commits the file, where it holds what was applied and differs from the last commit.
pub(crate) fn commit(file: &Path, applied: &str, origin: &Origin, number: u64) -> Result<(), GitError> {
    if std::fs::read_to_string(file).is_ok_and(|text| text != applied) {
        return Err(GitError::OtherFile(file.display().to_string()));
    }
    let name = name_of(file);
    run(file, "add", &["--", &name])?;
    if run(file, "status", &["--porcelain", "--", &name])?.is_empty() {
        return Ok(());
    }
    let subject = origin.comment.clone().unwrap_or_else(|| origin.how.clone());
    let message = format!("{subject}\n\nChange {number} by {}: {}", origin.who.name, origin.how);
    let clean = |text: &str| text.replace(['<', '>', '\n'], " ");
    let author =
        format!("{} <{}@localhost>", clean(&origin.who.name), clean(&origin.who.name).replace(' ', "-"));
    run(file, "commit", &["--quiet", "--author", &author, "--message", &message, "--", &name]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::changes::Who;

    fn git(directory: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn origin(comment: Option<&str>) -> Origin {
        Origin::new(Who::user(0), "weir apply weir.toml", comment)
    }

    #[test]
    fn what_was_applied_is_committed_once_with_its_author_and_comes_back_by_revision() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weir.toml");
        git(directory.path(), &["init", "--quiet"]);
        fs::write(directory.path().join("other"), "").unwrap();
        for (number, text) in [(1, "one"), (2, "two"), (3, "two")] {
            fs::write(&file, text).unwrap();
            commit(&file, text, &origin(Some("for the fair")), number).unwrap();
        }
        let log = git(directory.path(), &["log", "--format=%an|%s|%b"]);
        assert_eq!(log.matches("root|for the fair|Change").count(), 2, "{log}");
        assert_eq!(git(directory.path(), &["status", "--porcelain"]).trim(), "?? other");
        assert_eq!(show(&file, "HEAD").unwrap(), "two");
        assert_eq!(show(&file, "HEAD~1").unwrap(), "one");
    }

    #[test]
    fn failures_are_told_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weir.toml");
        fs::write(&file, "one").unwrap();
        let error = commit(&file, "one", &origin(None), 1).unwrap_err().to_string();
        assert!(error.contains("git add") && error.contains("not a git repository"), "{error}");
        assert!(matches!(commit(&file, "two", &origin(None), 1), Err(GitError::OtherFile(_))));
        for revision in ["", "-x", "a b", "a:b", "\n", &"x".repeat(300)] {
            assert!(matches!(show(&file, revision), Err(GitError::Revision(_))), "{revision:?}");
        }
        assert!(show(&file, "HEAD").is_err());
    }
}
