//! The command line: `check` reports every mistake, `explain` agrees with the data path, `--help` and exit codes.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Stand, cli, eventually};

const SOON: std::time::Duration = std::time::Duration::from_secs(5);

/// Five different mistakes, each on a line of its own.
const FIVE_MISTAKES: &str = "listen:
  public: { adress: 127.0.0.1:8080 }
store:
  url: sqlite:data/gateway.db
  timeout: 50
upstreams:
  seeme: { endpoints: [\"http://127.0.0.1:9000\"] }
default_plan: fre
routes:
  - { match: GET /api/v1/models, scope: Models:read }
  - match: GET /api/v1/models/{model_id}
    scope: models:read
    resources: { model: path.modelid }
";
const LINES: [u64; 5] = [2, 5, 8, 10, 13];

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn check_reports_five_mistakes_at_their_lines_in_every_format_and_exits_78() {
    let (_folder, path) = file(FIVE_MISTAKES);
    let name = path.to_str().unwrap();
    let found_in = |format: &str, line_of: &dyn Fn(&str) -> Option<u64>| -> Vec<u64> {
        let ended = cli(&["check", "-c", name, "--format", format]).expect_code(78);
        ended.stdout.lines().filter_map(line_of).collect()
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let text = found_in("text", &|line| number(line.strip_prefix(name)?.strip_prefix(':')?.split(':').next()?));
    assert_eq!(text, LINES);
    let github =
        found_in("github", &|line| number(line.strip_prefix("::error ")?.split_once("line=")?.1.split(',').next()?));
    assert_eq!(github, LINES);

    let ended = cli(&["check", "-c", name, "--format", "json"]).expect_code(78);
    let document = ended.json();
    assert_eq!(document["ok"], false);
    let errors = document["errors"].as_array().unwrap();
    assert_eq!(errors.iter().map(|error| error["line"].as_u64().unwrap()).collect::<Vec<_>>(), LINES);
    for error in errors {
        for member in ["what", "place", "mend"] {
            assert!(error[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {error}");
        }
        assert!(error["column"].as_u64().unwrap() >= 1);
    }
    assert!(errors[0]["mend"].as_str().unwrap().contains("address"), "did you mean: {}", errors[0]);
}

#[test]
fn a_good_file_passes_and_warnings_do_not_fail_it() {
    let (_folder, path) = file(
        "listen: { public: { address: 127.0.0.1:8080 } }\nstore: { url: \"sqlite:x\" }\n\
         upstreams: { seeme: { endpoints: [\"http://127.0.0.1:9000\"] } }\nroutes: [ { match: GET /a, access: authenticated } ]\n",
    );
    let ended = cli(&["check", "-c", path.to_str().unwrap(), "--format", "json"]).expect_success().json();
    assert_eq!((&ended["ok"], &ended["errors"]), (&json!(true), &json!([])));
}

#[test]
fn the_shipped_file_passes_its_own_tests() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/gateway.yaml");
    cli(&["check", "-c", shipped]).expect_success();
}

#[test]
fn a_test_of_the_file_that_fails_fails_the_check_at_its_line() {
    let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/gateway.yaml")).unwrap();
    let wrong = shipped.replace("expect: missing_key", "expect: allowed");
    let line =
        wrong.lines().position(|line| line.contains("GET /api/v1/applications,        expect: allowed")).unwrap() + 1;
    let (_folder, path) = file(&wrong);
    let ended = cli(&["check", "-c", path.to_str().unwrap(), "--format", "json"]).expect_code(78).json();
    assert_eq!(ended["errors"][0]["line"], line);
}

#[test]
fn help_of_every_command_is_as_recorded() {
    let mut told = String::new();
    for command in [
        "",
        "run",
        "demo",
        "check",
        "routes",
        "explain",
        "keys",
        "keys create",
        "keys list",
        "keys show",
        "keys update",
        "keys disable",
        "keys enable",
        "keys delete",
        "keys usage",
        "keys events",
        "accounts",
        "accounts set",
        "accounts show",
        "accounts list",
        "accounts suspend",
        "accounts resume",
        "store",
        "store copy",
        "sample-backend",
    ] {
        let mut arguments: Vec<&str> = command.split_whitespace().collect();
        arguments.push("--help");
        let ended = cli(&arguments).expect_success();
        assert_eq!(ended.stderr, "");
        told += &format!("$ seeme-gateway {}\n{}\n", arguments.join(" "), ended.stdout.trim_end());
        told.push_str("\n\n");
    }
    insta::assert_snapshot!("help", told);
}

#[test]
fn a_mistake_in_the_arguments_exits_64() {
    for arguments in [
        &["frobnicate"][..],
        &["run", "--frobnicate"],
        &["keys"],
        &["keys", "create", "--name", "n"],
        &["keys", "show"],
        &["check", "--format", "xml"],
        &["explain", "GET"],
        &["explain", "GET", "/a", "--key-id", "x", "--scope", "a:b"],
        &["accounts", "set", "a", "--plan", "enterprise", "--requests-per-minute", "0", "--requests-per-day", "1"],
        &[
            "accounts",
            "set",
            "a",
            "--plan",
            "enterprise",
            "--requests-per-minute",
            "4294967296",
            "--requests-per-day",
            "1",
        ],
        &[],
    ] {
        let ended = cli(arguments);
        assert_eq!(ended.code, Some(64), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(!ended.stderr.is_empty(), "{arguments:?}");
    }
    cli(&["--version"]).expect_success();
}

#[test]
fn a_file_that_is_not_there_or_is_no_yaml_exits_78() {
    let (folder, path) = file("routes: [");
    for path in [path, folder.path().join("absent.yaml")] {
        for command in [&["check"][..], &["routes"], &["keys", "list"], &["explain", "GET", "/"]] {
            let mut arguments = command.to_vec();
            arguments.extend(["-c", path.to_str().unwrap()]);
            let ended = cli(&arguments);
            assert_eq!(ended.code, Some(78), "{arguments:?}: {ended:?}");
            assert!(format!("{}{}", ended.stdout, ended.stderr).contains(path.to_str().unwrap()), "{ended:?}");
        }
    }
}

#[test]
fn routes_shows_the_compiled_table() {
    let stand = Stand::new()
        .route("PUT|DELETE /a/{id}", "access: { all_scopes: [a:b, c:d] }, resources: { model: path.id }")
        .route("* /b/{*rest}", "access: public")
        .start();
    let table = stand.cli(&["routes"]).expect_success().stdout;
    let line = |path: &str| {
        table.lines().find(|line| line.contains(path)).unwrap_or_else(|| panic!("{path}: {table}")).to_owned()
    };
    for word in ["PUT", "DELETE", "a:b", "c:d", "path.id", "main"] {
        assert!(line("/a/{id}").contains(word), "{word}: {table}");
    }
    assert!(line("/b/{*rest}").contains("public"), "{table}");
}

#[test]
fn explain_comes_to_the_decision_of_the_data_path() {
    let stand = Stand::new()
        .route("GET /echo/{*rest}", "scope: models:read")
        .route("GET /echo/models/{id}", "scope: models:read, resources: { model: path.id }")
        .route("POST /echo/chat", "scope: models:predict, resources: { model: body./model }")
        .route("GET /echo/o/{id}", "scope: models:read, organization: path.id, limited_keys: forward")
        .route("GET /echo/d", "scope: datasets:read, resources: { dataset: query.d }")
        .route("GET /echo/public", "access: public")
        .start();
    let body = |text: &str| {
        let path = stand.folder().join("body.json");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let keys = [
        stand.key().scope("models:*").create(),
        stand.key().scope("models:*").model("m-1").create(),
        stand.key().scope("models:read").organization("o-1").create(),
        stand.key().scope("datasets:read").dataset("d-1").create(),
        stand.key().scope("jobs:read").create(),
    ];
    for (method, target, content) in [
        ("GET", "/echo/x", None),
        ("GET", "/echo/x?a=b", None),
        ("GET", "/nowhere", None),
        ("DELETE", "/echo/x", None),
        ("GET", "/echo/../x", None),
        ("GET", "/echo/models/m-1", None),
        ("GET", "/echo/models/m-2", None),
        ("GET", "/echo/models/%6d-1", None),
        ("GET", "/echo/o/o-1", None),
        ("GET", "/echo/o/o-2", None),
        ("GET", "/echo/d?d=d-1", None),
        ("GET", "/echo/d?d=d-2", None),
        ("GET", "/echo/d?d=d-1&d=d-1", None),
        ("GET", "/echo/d", None),
        ("GET", "/echo/public", None),
        ("POST", "/echo/chat", Some(r#"{"model":"m-1"}"#)),
        ("POST", "/echo/chat", Some(r#"{"model":"m-2"}"#)),
        ("POST", "/echo/chat", Some(r#"{"model":"m-1","Model":"m-2"}"#)),
        ("POST", "/echo/chat", Some("no json")),
        ("GET", "/api/v1/api-keys", None),
    ] {
        for key in &keys {
            let request = stand.request(method, target).bearer(key);
            let response = content.map_or(request.clone(), |content| request.body(content)).send();
            let decided = if response.status() < 400 { "allowed".to_owned() } else { response.code() };
            let mut arguments = vec!["explain", method, target, "--key-id", &key.id];
            let file = content.map(body);
            arguments.extend(file.iter().flat_map(|file| ["--body", file]));
            let told = stand.cli(&arguments).expect_success().stdout;
            assert!(
                told.lines().last().unwrap().contains(&decided),
                "{method} {target} {:?}: {decided}, not\n{told}",
                key.object
            );
        }
    }
    // A disabled key, and none.
    stand.cli(&["keys", "disable", &keys[0].id]).expect_success();
    let told = stand.cli(&["explain", "GET", "/echo/x", "--key-id", &keys[0].id]).expect_success().stdout;
    assert!(told.lines().last().unwrap().contains("401 disabled_key"), "{told}");
    let told = stand.cli(&["explain", "GET", "/echo/x"]).expect_success().stdout;
    assert!(told.lines().last().unwrap().contains("401 missing_key"), "{told}");
}

#[test]
fn explain_tells_a_window_that_is_used_up_and_charges_nothing() {
    let plans = "plans: { tiny: { requests_per_minute: 2, requests_per_day: 100 } }\ndefault_plan: tiny";
    let stand = Stand::new()
        .section(plans)
        .route("GET /echo/{*rest}", "access: authenticated")
        .route("POST /echo/dear", "access: authenticated, cost: 3")
        .start();
    let key = stand.key().create();
    let explain =
        |method: &str, path: &str| stand.cli(&["explain", method, path, "--key-id", &key.id]).expect_success().stdout;
    let dear = explain("POST", "/echo/dear");
    assert!(dear.lines().last().unwrap().contains("429 rate_limited") && dear.contains("never admitted"), "{dear}");
    super::support::minute_with(20);
    for _ in 0..5 {
        let told = explain("GET", "/echo/x");
        assert!(told.contains("left: 2 of 2 this minute, 100 of 100 today"), "{told}");
        assert!(told.lines().last().unwrap().starts_with("allowed"), "{told}");
    }
    super::support::minute_with(20);
    let sent = || stand.get("/echo/x").bearer(&key).send().status();
    assert_eq!([sent(), sent(), sent()], [200, 200, 429]);
    let told = explain("GET", "/echo/x");
    assert!(told.contains("✗ quota        costs 1; left: 0 of 2 this minute, 98 of 100 today"), "{told}");
    assert!(told.lines().last().unwrap().contains("429 rate_limited"), "{told}");
}

#[test]
fn a_plan_that_is_gone_is_told_by_the_commands_and_in_the_log_of_the_gateway() {
    let shared = tempfile::tempdir().unwrap();
    let before = Stand::new()
        .store_in(shared.path())
        .section("plans: { free: { requests_per_minute: 1, requests_per_day: 1 }, gold: custom }")
        .start();
    before.cli(&["accounts", "set", "u-1", "--plan", "gold", "--requests-per-minute", "9", "--requests-per-day", "9"]);
    let after = Stand::new()
        .store_in(shared.path())
        .section("plans: { free: { requests_per_minute: 9, requests_per_day: 9 } }")
        .route("GET /echo/{*rest}", "access: authenticated")
        .start();
    let note = "account u-1 is on the plan gold, which the file does not have: free applies";
    for arguments in [&["accounts", "list", "--json"][..], &["accounts", "show", "u-1"]] {
        let ended = after.cli(arguments).expect_success();
        assert!(ended.stderr.contains(note) && !ended.stdout.contains(note), "{ended:?}");
    }
    let key = after.key().account("u-1").create();
    let ended = after.cli(&["explain", "GET", "/echo/x", "--key-id", &key.id]).expect_success();
    assert!(ended.stderr.contains(note), "{ended:?}");
    assert_eq!(after.get("/echo/x").bearer(&key).send().status(), 200);
    after.gateway.process.complains_of(note);
}

#[test]
fn an_empty_variable_for_the_file_is_as_good_as_none_and_an_empty_argument_is_a_mistake() {
    let (folder, path) = file("routes: [");
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_seeme-gateway"))
        .arg("check")
        .env("SEEME_GATEWAY_CONFIG", "")
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&ended.stdout).starts_with("gateway.yaml:"), "{ended:?} {path:?}");
    assert_eq!(cli(&["check", "-c", ""]).code, Some(64));
}

#[test]
fn keys_and_accounts_are_managed_from_the_command_line() {
    let stand = Stand::new().start();
    let made = stand.cli(&[
        "keys",
        "create",
        "--name",
        "ci",
        "--account",
        "u-1",
        "--scope",
        "models:read",
        "--model-id",
        "m-1",
        "--expires-in-days",
        "9",
        "--json",
    ]);
    let key = made.expect_success().json();
    let (id, secret) = (key["id"].as_str().unwrap(), key["key"].as_str().unwrap());
    assert!(secret.starts_with("sm_live_"));
    let show = |id: &str| stand.cli(&["keys", "show", id, "--json"]).expect_success().json();
    let mut expected: Value = key.clone();
    expected.as_object_mut().unwrap().remove("key");
    assert_eq!(show(id), expected);

    stand
        .cli(&["keys", "update", id, "--name", "cd", "--scope", "a:b", "--scope", "c:d", "--all-models"])
        .expect_success();
    let updated = show(id);
    assert_eq!((&updated["name"], &updated["scopes"]), (&json!("cd"), &json!(["a:b", "c:d"])));
    assert_eq!((&updated["model_ids"], &updated["expires_at"]), (&Value::Null, &key["expires_at"]));

    let second = stand.key().account("u-1").create();
    let listed = stand.cli(&["keys", "list", "--account", "u-1", "--json"]).expect_success().json();
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [second.id.as_str(), id]);
    assert_eq!(stand.cli(&["keys", "list", "--account", "nobody", "--json"]).expect_success().json(), json!([]));

    stand.cli(&["keys", "disable", id]).expect_success();
    assert_eq!(show(id)["disabled"], true);
    stand.cli(&["keys", "enable", id]).expect_success();
    stand.cli(&["keys", "delete", id]).expect_success();
    assert_ne!(stand.cli(&["keys", "disable", id]).code, Some(0));
    let deleted =
        stand.cli(&["keys", "list", "--account", "u-1", "--include-deleted", "--json"]).expect_success().json();
    assert_eq!(deleted.as_array().unwrap().len(), 2);
    let events = stand.cli(&["keys", "events", id, "--json"]).expect_success().json();
    let actions: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["created", "updated", "disabled", "enabled", "deleted"]);

    stand.cli(&["accounts", "set", "u-1", "--plan", "pro"]).expect_success();
    stand.cli(&["accounts", "suspend", "u-1"]).expect_success();
    let account = stand.cli(&["accounts", "show", "u-1", "--json"]).expect_success().json();
    assert_eq!(
        (&account["plan"], &account["requests_per_minute"], &account["suspended"]),
        (&json!("pro"), &json!(300), &json!(true))
    );
    stand.cli(&["accounts", "resume", "u-1"]).expect_success();
    let accounts = stand.cli(&["accounts", "list", "--json"]).expect_success().json();
    assert_eq!((accounts[0]["id"].as_str(), accounts[0]["suspended"].as_bool()), (Some("u-1"), Some(false)));

    for wrong in [&["keys", "show", "absent"][..], &["keys", "update", "absent", "--name", "n"]] {
        let ended = stand.cli(wrong).expect_code(1);
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{wrong:?}: {ended:?}");
    }
}

#[test]
fn what_the_arguments_alone_decide_exits_64_and_does_nothing() {
    let stand = Stand::new().start();
    let create = |more: &[&'static str]| [&["keys", "create", "--account", "a"][..], more].concat();
    for wrong in [
        vec!["keys", "create", "--name", "n", "--account", "a b", "--scope", "a:b"],
        create(&["--name", "n", "--scope", "bad"]),
        create(&["--name", "n", "--scope", "A:B"]),
        create(&["--name", "", "--scope", "a:b"]),
        create(&["--name", "n", "--scope", "a:b", "--model-id", "a b"]),
        create(&["--name", "n", "--scope", "a:b", "--expires-in-days", "0"]),
        create(&["--name", "n", "--scope", "a:b", "--expires-at", "yesterday"]),
        create(&["--name", "n", "--scope", "a:b", "--expires-at", "2020-01-01T00:00:00Z"]),
        vec!["keys", "update", "absent"],
        vec!["keys", "update", "absent", "--scope", "bad"],
        vec!["keys", "usage", "absent", "--from", "2026-13-01"],
        vec!["accounts", "set", "a", "--plan", "gold"],
        vec!["accounts", "set", "a", "--plan", "enterprise"],
        vec!["accounts", "suspend", "a b"],
    ] {
        let ended = stand.cli(&wrong).expect_code(64);
        assert!(ended.stdout.is_empty() && ended.stderr.starts_with("error: "), "{wrong:?}: {ended:?}");
    }
    assert_eq!(stand.cli(&["keys", "list", "--account", "a", "--json"]).expect_success().json(), json!([]));
    assert_eq!(stand.cli(&["accounts", "list", "--json"]).expect_success().json(), json!([]));
}

/// The exit code, and what stood on stderr, of a command whose stdout is a full disk.
fn on_a_full_disk(stand: &Stand, arguments: &[&str]) -> (Option<i32>, String) {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seeme-gateway"));
    let ended = command.args(arguments).arg("-c").arg(stand.config()).stdout(full).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[test]
fn an_output_that_cannot_be_written_is_a_failure_and_leaves_no_key_that_nobody_has() {
    let stand = Stand::new().start();
    let (code, told) = on_a_full_disk(&stand, &["routes"]);
    assert!(code == Some(1) && told.starts_with("error: "), "{code:?} {told}");
    for more in [&[][..], &["--json"]] {
        let create = [&["keys", "create", "--name", "n", "--account", "u-full", "--scope", "models:read"][..], more];
        let (code, told) = on_a_full_disk(&stand, &create.concat());
        assert!(code == Some(1) && told.contains("deleted again"), "{code:?} {told}");
    }
    let listed = stand.cli(&["keys", "list", "--account", "u-full", "--json"]).expect_success().json();
    assert_eq!(listed, json!([]));
}

#[test]
fn a_running_gateway_logs_what_the_command_line_did_once() {
    let stand = Stand::new().start();
    let key = stand.key().account("u-audited").create();
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    stand.cli(&["keys", "delete", &key.id]).expect_success();
    stand.cli(&["accounts", "suspend", "u-audited"]).expect_success();
    let lines = || {
        let log = stand.gateway.process.stderr();
        let ours = log.lines().filter(|line| line.contains("audit: ") && line.contains("u-audited"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("the suspension is told", SOON, || lines().iter().any(|line| line.contains("audit: account")));
    let of = |action: &str| {
        let action = format!("action=\"{action}\"");
        lines().iter().filter(|line| line.contains(&action) && line.contains(&key.id)).count()
    };
    assert_eq!(["created", "disabled", "deleted"].map(of), [1, 1, 1], "{:#?}", lines());
}

#[test]
fn a_scope_that_no_route_knows_is_accepted_with_a_warning_apart_from_the_json() {
    let stand = Stand::new().start();
    let ended = stand
        .cli(&["keys", "create", "--name", "n", "--account", "a", "--scope", "modles:read", "--json"])
        .expect_success();
    assert_eq!(ended.json()["scopes"], json!(["modles:read"]));
    assert!(ended.stderr.contains("modles:read"), "{}", ended.stderr);
}
