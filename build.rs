//! Finds out which commit the program is built from, for `--version` and `audit_exporter_build_info`; lists the runbooks,
//! which the program serves.
//!
//! `AUDIT_EXPORTER_REVISION` says it where there is no repository (a package, a container build). Else git says it,
//! with `-dirty` where what is compiled differs from the commit. No clock is asked: the same commit builds the same
//! program.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program is made of. A change of anything else does not make it another program.
const COMPILED: [&str; 7] = ["src", "docs/runbooks", "alerts", "dashboards", "build.rs", "Cargo.toml", "Cargo.lock"];
/// What is served of the docs.
const RUNBOOKS: &str = "docs/runbooks";
/// Variables that would point git to another repository, as they do inside a hook.
const ELSEWHERE: [&str; 4] = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"];

fn main() {
    println!("cargo::rerun-if-env-changed=AUDIT_EXPORTER_REVISION");
    for path in COMPILED {
        println!("cargo::rerun-if-changed={path}");
    }
    let given = std::env::var("AUDIT_EXPORTER_REVISION").ok();
    let given = given.map(|given| given.trim().to_owned()).filter(|given| !given.is_empty() && !given.contains('\n'));
    let revision = given.or_else(from_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=AUDIT_EXPORTER_REVISION={revision}");
    list_runbooks().expect("docs/runbooks can be read and listed");
}

/// Their names and texts, as an expression for `src/web/runbooks.rs`.
fn list_runbooks() -> std::io::Result<()> {
    let mut runbooks = Vec::new();
    for file in std::fs::read_dir(RUNBOOKS)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "md")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            runbooks.push((name.to_owned(), std::fs::read_to_string(&path)?));
        }
    }
    runbooks.sort();
    // the texts themselves: a path would be that of this checkout, and not hold where the folder of the build is kept
    let rows = runbooks.iter().map(|(name, text)| format!("({name:?}, {text:?}),\n"));
    let list = format!("&[\n{}]\n", rows.collect::<String>());
    let out = std::env::var_os("OUT_DIR").ok_or(std::io::ErrorKind::NotFound)?;
    std::fs::write(Path::new(&out).join("runbooks.rs"), list)
}

fn from_git() -> Option<String> {
    // a copy of the sources inside somebody else's repository is not of its commit
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()?;
    if top.canonicalize().ok()? != here {
        return None;
    }
    // one of these changes whenever HEAD moves; a file that does not exist would be a reason to run each time
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for file in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--verify", "HEAD"])?;
    let mut status = vec!["--no-optional-locks", "status", "--porcelain", "--"];
    status.extend(COMPILED);
    let dirty = if git(&status)?.is_empty() { "" } else { "-dirty" };
    Some(commit + dirty)
}

fn git(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    for variable in ELSEWHERE {
        command.env_remove(variable);
    }
    let done = command.output().ok().filter(|done| done.status.success())?;
    Some(String::from_utf8(done.stdout).ok()?.trim().to_owned())
}
