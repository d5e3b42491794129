//! `store copy`: [`crate::store::copy`] between two stores that are named by their URLs; no configuration file is needed. For
//! Redis the credentials, certificates and prefix of `store` are used, where there is one; credentials in a URL stand for themselves.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::args::{CopyArgs, StoreCommand};
use super::output::{Output, block, counted};
use super::{CliError, block_on, failed, load};
use crate::app;
use crate::config::model::{RedisAccess, StoreUrl};
use crate::store::copy::{Copied, CopyError, Progress, copy};
use crate::store::{Finding, Store};

/// Carries a command out and prints its outcome.
pub(super) fn run(command: StoreCommand, file: &Path) -> Result<(), CliError> {
    let StoreCommand::Copy(args) = command;
    let (from, to) = urls(&args)?;
    let access = access(file, [&from, &to])?;
    let from = open("--from", &from, &access)?;
    let to = open("--to", &to, &access)?;
    let mut line = Line { wanted: io::stderr().is_terminal(), begun: false };
    let outcome = block_on(answer(args.json, &from, &to, |progress| line.show(progress)))?;
    line.end();
    outcome?.print().map_err(failed)
}

/// Copies, and says what was copied.
async fn answer(
    as_json: bool,
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    progress: impl FnMut(Progress),
) -> Result<Output, CliError> {
    let copied = copy(from, to, progress).await.map_err(|error| match error {
        CopyError::SecretTaken(_) => failed(error),
        error => failed(format!("{error}; nothing is lost, run the same command again")),
    })?;
    let mut warnings = Vec::new();
    for (name, store) in [("the source", from), ("the target", to)] {
        // A store that cannot be asked has not been copied either.
        warnings.extend(troubles(name, store.findings().await.unwrap_or_default()));
    }
    Ok(Output { warnings, ..told(copied, as_json) })
}

fn troubles(name: &str, findings: Vec<Finding>) -> impl Iterator<Item = String> {
    findings.into_iter().filter_map(move |finding| Some(format!("{name}: {}", finding.trouble?)))
}

fn told(copied: Copied, as_json: bool) -> Output {
    let Copied { keys, deleted_keys, accounts, events, requests, other_keys } = copied;
    let object = || {
        json!({
            "keys": keys, "deleted_keys": deleted_keys, "accounts": accounts, "events": events, "requests": requests,
            "other_keys": other_keys,
        })
    };
    let text = || {
        let mut rows = vec![
            ("keys", format!("{keys}, {deleted_keys} of them deleted")),
            ("accounts", accounts.to_string()),
            ("events", events.to_string()),
            ("requests", requests.to_string()),
        ];
        if other_keys > 0 {
            rows.push(("other keys", format!("{other_keys}, in the target before and left as they are")));
        }
        format!("{}\nCopied, and found in the target. Quota windows begin anew there.\n", block(&rows))
    };
    Output::either(as_json, object, text)
}

/// Both URLs, of two stores.
fn urls(args: &CopyArgs) -> Result<(StoreUrl, StoreUrl), CliError> {
    let parse = |option: &str, text: &str| {
        StoreUrl::parse(text, Path::new("")).map_err(|error| CliError::Usage(format!("{option}: {error}")))
    };
    let (from, to) = (parse("--from", &args.from)?, parse("--to", &args.to)?);
    if is_same(&from, &to) {
        return Err(CliError::Usage("--from and --to are the same store; name another one".to_owned()));
    }
    Ok((from, to))
}

/// Whether both are one store, by whatever names.
fn is_same(from: &StoreUrl, to: &StoreUrl) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    match (from, to) {
        (StoreUrl::Sqlite(from), StoreUrl::Sqlite(to)) => {
            from == to || inode(from).is_some_and(|file| inode(to) == Some(file))
        }
        (StoreUrl::Redis(from), StoreUrl::Redis(to)) => from.servers == to.servers && from.database == to.database,
        _ => false,
    }
}

/// How Redis lets us in: as `store` of the configuration says, where there is one.
fn access(file: &Path, urls: [&StoreUrl; 2]) -> Result<RedisAccess, CliError> {
    let needed = urls.iter().any(|url| matches!(url, StoreUrl::Redis(_)));
    if needed && file.exists() { Ok(load(file)?.store.access) } else { Ok(RedisAccess::default()) }
}

/// Opens a store. One that is copied from must exist: a mistyped path would be a new, empty store, copied without complaint.
fn open(option: &str, url: &StoreUrl, access: &RedisAccess) -> Result<Arc<dyn Store>, CliError> {
    if let StoreUrl::Sqlite(path) = url
        && option == "--from"
        && !path.exists()
    {
        return Err(CliError::Failed(format!("{option}: there is no file {}", path.display())));
    }
    app::open(url, access).map_err(|error| failed(format!("{option}: {error}")))
}

/// How far it is, in one line of a terminal that is written over.
struct Line {
    wanted: bool,
    begun: bool,
}

impl Line {
    fn show(&mut self, progress: Progress) {
        if self.wanted {
            self.begun = true;
            // Nobody looks any more: the copy goes on.
            let _ = write!(io::stderr(), "\r{}", far(progress));
        }
    }

    fn end(&self) {
        if self.begun {
            let _ = writeln!(io::stderr());
        }
    }
}

fn far(progress: Progress) -> String {
    // Of the same width, so that nothing of the former line is left.
    let (verb, done, total) = match progress {
        Progress::Copied(done, total) => ("copied ", done, total),
        Progress::Checked(done, total) => ("checked", done, total),
    };
    let total = counted(total, "key");
    format!("{verb} {done:>width$} of {total}", width = total.len() - " keys".len())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
