//! `demo`: everything on one machine, with a first key, so that the first request is one paste away.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use super::run::{Signals, recompile};
use super::{CliError, block_on, failed, open, sample_backend};
use crate::app::App;
use crate::clock::SystemClock;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{Config, LogFormat};
use crate::management::body::NewKey;
use crate::management::keys::{Caller, Deleted, Keys};
use crate::policy::credential::Secret;
use crate::policy::key::AccountId;
use crate::policy::scope::Scope;
use crate::store::Store;

/// Who the first key belongs to.
const ACCOUNT: &str = "demo";
/// Enough to look around with; no more, as the user's own guide advises.
const SCOPES: [&str; 6] = ["models:*", "datasets:*", "workflows:*", "graphs:*", "jobs:*", "api-keys:*"];

/// Starts a sample backend where the configuration expects the upstream, then the gateway, and prints how to use them.
pub(super) fn run(mut config: Config, warnings: Vec<Diagnostic>) -> Result<(), CliError> {
    let mut signals = Signals::install().map_err(failed)?;
    config = readable(config);
    let backend = start_backend(&config)?;
    let store = open(&config)?;
    let compile = recompile(&config, warnings, readable);
    let Some(app) = signals.start(config, compile, false).map_err(failed)? else { return Ok(()) };
    // Only now that everything runs: a secret is shown once, and must not be made by a start that fails.
    let first_key = first_key(&*store, &app.config())?;
    // Somebody who closed our stdout does not want to read; the gateway serves on.
    let _ = introduce(&mut io::stdout().lock(), &app, backend, first_key.as_ref());
    signals.serve(app);
    Ok(())
}

/// The request log is for somebody who reads along.
fn readable(config: Config) -> Config {
    Config { log: LogFormat::Text, ..config }
}

/// A key for the demo account, if the store has no key at all.
fn first_key(store: &dyn Store, config: &Config) -> Result<Option<Secret>, CliError> {
    let clock = SystemClock::shared();
    let keys = Keys { store, config, clock: &*clock };
    let new = NewKey {
        name: "demo".to_owned(),
        scopes: Some(SCOPES.iter().filter_map(|scope| Scope::parse(scope).ok()).collect()),
        model_ids: None,
        dataset_ids: None,
        allowed_addresses: None,
        organization_id: None,
        expires_at: None,
        environment: None,
        account_id: AccountId::parse(ACCOUNT).ok(),
    };
    block_on(async {
        let operator = Caller::operator("demo");
        if !keys.list(&operator, Deleted::Hidden).await.map_err(failed)?.is_empty() {
            return Ok(None);
        }
        keys.create(&operator, new).await.map(|created| Some(created.secret)).map_err(failed)
    })?
}

fn start_backend(config: &Config) -> Result<SocketAddr, CliError> {
    let endpoint = config.upstreams.first().and_then(|upstream| upstream.endpoints.first());
    let address = &*endpoint.ok_or_else(|| failed("the file has no upstream"))?.authority;
    let taken = |error| {
        failed(format!(
            "the sample backend cannot listen on {address}: {error}. Stop what listens there, or set SEEME_GATEWAY_UPSTREAM"
        ))
    };
    let listener = TcpListener::bind(address).map_err(taken)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let serve = move || {
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            sample_backend::serve(listener, std::future::pending()).await
        });
        if let Err(error) = served {
            tracing::error!(%error, "the sample backend stopped");
        }
    };
    std::thread::Builder::new().name("sample-backend".into()).spawn(serve).map_err(failed)?;
    Ok(address)
}

fn introduce(out: &mut impl Write, app: &App, backend: SocketAddr, first_key: Option<&Secret>) -> io::Result<()> {
    let public = app.public;
    writeln!(out, "SeeMe gateway   http://{public}")?;
    writeln!(out, "sample backend  http://{backend}")?;
    writeln!(out, "health, metrics http://{}/readyz /metrics", app.admin_address)?;
    let Some(secret) = first_key else {
        writeln!(out, "\nThe store has keys already; their secrets are shown once only. For another one:")?;
        writeln!(
            out,
            "  seeme-gateway keys create --name mine --account {ACCOUNT} --scope models:read --scope models:predict\n"
        )?;
        return Ok(());
    };
    let key = secret.reveal();
    writeln!(out, "\nA first key, shown this once:\n  {key}\n")?;
    writeln!(out, "Try it:\n  curl -i http://{public}/api/v1/models -H 'Authorization: Bearer {key}'\n")?;
    writeln!(out, ".env for the Python client:")?;
    writeln!(out, "  SEEME_USERNAME={ACCOUNT}\n  SEEME_API_KEY={key}\n  SEEME_BACKEND=http://{public}/api/v1\n")?;
    writeln!(out, "Python (pip install seeme):")?;
    writeln!(out, "  import os")?;
    writeln!(out, "  from seeme import Client")?;
    writeln!(out, "  client = Client(username=os.environ[\"SEEME_USERNAME\"], apikey=os.environ[\"SEEME_API_KEY\"],")?;
    writeln!(out, "                  backend=os.environ[\"SEEME_BACKEND\"])")?;
    writeln!(out, "  print([model.name for model in client.get_models()])\n")?;
    writeln!(out, "Requests (Ctrl-C stops):")
}
