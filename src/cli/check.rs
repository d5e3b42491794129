//! `check`: compiles the file, runs its `tests:`, and reports every mistake at once.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use http::HeaderMap;
use serde_json::json;

use super::args::CheckFormat;
use super::output::counted;
use super::trial::{Outcome, Trial};
use super::{CONFIGURATION, FAILED};
use crate::clock::SystemClock;
use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::model::{Config, RouteTest};
use crate::policy::key::{Account, Timestamp};

/// What came of a file.
struct Checked {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Routes and tests of a file that compiles.
    counts: Option<(usize, usize)>,
}

/// Checks `file` and prints the outcome on stdout.
pub(super) fn run(file: &Path, format: CheckFormat) -> ExitCode {
    let now = SystemClock::shared().wall();
    let env = |name: &str| std::env::var(name).ok();
    match report(file, &env, now, format, &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(CONFIGURATION),
        Err(_) => ExitCode::from(FAILED),
    }
}

/// Whether the file is right.
fn report(
    file: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    now: Timestamp,
    format: CheckFormat,
    out: &mut dyn Write,
) -> io::Result<bool> {
    let checked = match crate::config::load(file, env) {
        Ok((config, warnings)) => {
            let errors = config.tests.iter().filter_map(|test| run_test(&config, test, now)).collect();
            Checked { errors, warnings, counts: Some((config.routes.routes().len(), config.tests.len())) }
        }
        Err(error) => {
            let (errors, warnings) = error.0.into_iter().partition(|found| found.severity == Severity::Error);
            Checked { errors, warnings, counts: None }
        }
    };
    match format {
        CheckFormat::Text => text(file, &checked, out)?,
        CheckFormat::Json => json_document(file, &checked, out)?,
        CheckFormat::Github => github(&checked, out)?,
    }
    Ok(checked.errors.is_empty())
}

/// Runs one test; `None` when the outcome is the expected one.
fn run_test(config: &Config, test: &RouteTest, now: Timestamp) -> Option<Diagnostic> {
    let key = test.key.clone().map(|record| {
        let account = Account::unset(record.account_id.clone());
        Ok(Arc::new(config.profile(record, account, None)))
    });
    let trial = Trial {
        method: test.method.clone(),
        target: &test.target,
        headers: HeaderMap::new(),
        body: test.body.as_deref().map(str::as_bytes),
        key,
        client: None,
        now,
    };
    let (steps, outcome) = trial.decide(config);
    if outcome.code() == test.expect {
        return None;
    }
    let why = match (&outcome, steps.last()) {
        (Outcome::Refused(_), Some(step)) => format!(": {}", step.why),
        _ => String::new(),
    };
    Some(Diagnostic {
        file: config.source.display().to_string(),
        line: test.line,
        column: test.column,
        place: test.place.clone(),
        what: format!("{} {} is {}{why}; expected {}", test.method, test.target, outcome.code(), test.expect),
        mend: "mend the routes or the test; `explain` shows each check".to_owned(),
        severity: Severity::Error,
    })
}

fn text(file: &Path, checked: &Checked, out: &mut dyn Write) -> io::Result<()> {
    for error in &checked.errors {
        writeln!(out, "{error}")?;
    }
    if !checked.warnings.is_empty() {
        writeln!(out, "{}warnings:", if checked.errors.is_empty() { "" } else { "\n" })?;
        for warning in &checked.warnings {
            writeln!(out, "  {warning}")?;
        }
    }
    match (checked.errors.len(), checked.counts) {
        (0, Some((routes, tests))) => {
            let tests = if tests == 0 { "no tests".to_owned() } else { format!("{} passed", counted(tests, "test")) };
            writeln!(out, "{}: ok, {}, {tests}", file.display(), counted(routes, "route"))
        }
        (errors, _) => writeln!(out, "\n{}", counted(errors, "mistake")),
    }
}

fn json_document(file: &Path, checked: &Checked, out: &mut dyn Write) -> io::Result<()> {
    let (routes, tests) = checked.counts.unzip();
    let document = json!({
        "file": file.display().to_string(),
        "ok": checked.errors.is_empty(),
        "errors": checked.errors,
        "warnings": checked.warnings,
        "routes": routes,
        "tests": tests,
    });
    writeln!(out, "{document:#}")
}

/// Workflow commands of GitHub Actions: annotations at the lines of the file.
fn github(checked: &Checked, out: &mut dyn Write) -> io::Result<()> {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    for found in checked.errors.iter().chain(&checked.warnings) {
        let command = if found.severity == Severity::Error { "error" } else { "warning" };
        let (file, title) = (property(&found.file), property(&found.place));
        let mend = if found.mend.is_empty() { String::new() } else { format!("; {}", found.mend) };
        let message = data(&format!("{}{mend}", found.what));
        writeln!(out, "::{command} file={file},line={},col={},title={title}::{message}", found.line, found.column)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "listen: { public: { address: 127.0.0.1:8080 } }
store: { url: \"sqlite:x\" }
upstreams: { seeme: { endpoints: [\"http://127.0.0.1:9000\"] } }
routes:
  - { match: \"POST /api/v1/inferences/{model_id}\", scope: models:predict, resources: { model: path.model_id } }
  - { match: POST /v1/chat/completions, scope: models:predict, resources: { model: body./model } }
  - { match: GET /login, access: public }
tests:
  - { request: POST /api/v1/inferences/m-2, scopes: [models:predict], model_ids: [m-1], expect: resource_not_allowed }
  - { request: POST /api/v1/inferences/m-1, scopes: [models:predict], model_ids: [m-1], expect: allowed }
  - { request: POST /api/v1/inferences/m-1, scopes: [models:read], expect: insufficient_scope }
  - { request: POST /v1/chat/completions, scopes: [models:predict], model_ids: [m-1], body: '{\"model\":\"m-1\"}', expect: allowed }
  - { request: POST /v1/chat/completions, scopes: [models:predict], model_ids: [m-1], body: '{\"Model\":\"m-1\"}', expect: bad_request }
  - { request: POST /v1/chat/completions, expect: missing_key }
  - { request: GET /login, expect: allowed }
  - { request: GET /x, expect: route_not_found }
  - { request: PUT /login, expect: method_not_allowed }
  - { request: GET /a/../login, expect: bad_request }
  - { request: GET /api/v1/api-keys, scopes: [api-keys:read], expect: allowed }
  - { request: POST /api/v1/me/apikeys, scopes: [api-keys:read], expect: insufficient_scope }
";

    fn check(text: &str, format: CheckFormat) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yaml");
        std::fs::write(&file, text).unwrap();
        let mut out = Vec::new();
        let right = report(&file, &|_| None, Timestamp::from_unix_millis(0), format, &mut out).unwrap();
        (right, String::from_utf8(out).unwrap().replace(&*folder.path().to_string_lossy(), "DIR"))
    }

    #[test]
    fn the_shipped_file_passes_its_own_tests() {
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/gateway.yaml"));
        let mut out = Vec::new();
        let right = report(file, &|_| None, Timestamp::from_unix_millis(0), CheckFormat::Text, &mut out).unwrap();
        assert!(right, "{}", String::from_utf8_lossy(&out));
    }

    #[test]
    fn a_good_file_passes_with_its_tests() {
        let (right, said) = check(GOOD, CheckFormat::Text);
        assert!(right, "{said}");
        insta::assert_snapshot!(said);
    }

    #[test]
    fn one_is_not_many() {
        let one = GOOD
            .split("tests:")
            .next()
            .unwrap()
            .replace("  - { match: POST", "  # ")
            .replace("  - { match: \"POST", "  # ");
        assert!(check(&one, CheckFormat::Text).1.ends_with("ok, 1 route, no tests\n"));
        let one = format!("{one}tests: [ {{ request: GET /login, expect: allowed }} ]\n");
        assert!(check(&one, CheckFormat::Text).1.ends_with("ok, 1 route, 1 test passed\n"));
    }

    #[test]
    fn a_test_that_fails_is_a_mistake_at_its_line() {
        let bad = GOOD.replace("m-2, scopes", "m-1, scopes").replace("expect: missing_key", "expect: allowed");
        let (right, said) = check(&bad, CheckFormat::Text);
        assert!(!right);
        insta::assert_snapshot!(said);
    }

    #[test]
    fn each_format_tells_the_same() {
        let bad = GOOD.replace("store:", "stroe:").replace("access: public", "access: pubic");
        let (right, json) = check(&bad, CheckFormat::Json);
        let document: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((right, document["errors"].as_array().unwrap().len()), (false, 2));
        assert_eq!(document["errors"][0]["line"], 2);
        insta::assert_snapshot!(check(&bad, CheckFormat::Github).1);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_mistake_too() {
        let mut out = Vec::new();
        let file = Path::new("/nowhere/gateway.yaml");
        let right = report(file, &|_| None, Timestamp::from_unix_millis(0), CheckFormat::Text, &mut out).unwrap();
        assert!(!right);
        assert!(String::from_utf8(out).unwrap().starts_with("/nowhere/gateway.yaml:1:1: the file cannot be read"));
    }
}
