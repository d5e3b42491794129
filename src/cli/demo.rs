//! `demo`: everything on one machine, with a first key, so that the first request is one paste away.

use std::net::{SocketAddr, TcpListener};

use super::run::Signals;
use super::{CliError, block_on, failed, open, sample_backend};
use crate::app::App;
use crate::clock::SystemClock;
use crate::config::model::{Config, LogFormat};
use crate::management::body::NewKey;
use crate::management::keys::{Caller, Deleted, Keys};
use crate::policy::credential::Secret;
use crate::policy::key::AccountId;
use crate::policy::scope::Scope;

/// Who the first key belongs to.
const ACCOUNT: &str = "demo";
/// Enough to look around with; no more, as the user's own guide advises.
const SCOPES: [&str; 6] = ["models:*", "datasets:*", "workflows:*", "graphs:*", "jobs:*", "api-keys:*"];

/// Starts a sample backend where the configuration expects the upstream, then the gateway, and prints how to use them.
pub(super) fn run(mut config: Config) -> Result<(), CliError> {
    let signals = Signals::install().map_err(failed)?;
    config.log = LogFormat::Text;
    let first_key = first_key(&config)?;
    let backend = start_backend(&config)?;
    let app = App::start(config).map_err(failed)?;
    introduce(&app, backend, first_key.as_ref());
    signals.wait();
    println!("\nstopping");
    app.stop();
    Ok(())
}

/// A key for the demo account, if the store has no key at all.
fn first_key(config: &Config) -> Result<Option<Secret>, CliError> {
    let (store, clock) = (open(config)?, SystemClock::shared());
    let keys = Keys { store: &*store, config, clock: &*clock };
    let new = NewKey {
        name: "demo".to_owned(),
        scopes: Some(SCOPES.iter().filter_map(|scope| Scope::parse(scope).ok()).collect()),
        model_ids: None,
        dataset_ids: None,
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
    let upstream = config.upstreams.first().ok_or_else(|| failed("the file has no upstream"))?;
    let taken = |error| {
        failed(format!(
            "the sample backend cannot listen on {}: {error}. Stop what listens there, or set SEEME_GATEWAY_UPSTREAM",
            upstream.authority
        ))
    };
    let listener = TcpListener::bind(&*upstream.authority).map_err(taken)?;
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

fn introduce(app: &App, backend: SocketAddr, first_key: Option<&Secret>) {
    let public = app.public;
    println!("SeeMe gateway   http://{public}");
    println!("sample backend  http://{backend}");
    println!("health, metrics http://{}/readyz /metrics", app.admin_address);
    let Some(secret) = first_key else {
        println!("\nThe store has keys already; their secrets are shown once only. For another one:");
        println!(
            "  seeme-gateway keys create --name mine --account {ACCOUNT} --scope models:read --scope models:predict\n"
        );
        return;
    };
    let key = secret.reveal();
    println!("\nA first key, shown this once:\n  {key}\n");
    println!("Try it:\n  curl -i http://{public}/api/v1/models -H 'Authorization: Bearer {key}'\n");
    println!(".env for the Python client:");
    println!("  SEEME_USERNAME={ACCOUNT}\n  SEEME_API_KEY={key}\n  SEEME_BACKEND=http://{public}/api/v1\n");
    println!("Python (pip install seeme):");
    println!("  import os");
    println!("  from seeme import Client");
    println!("  client = Client(username=os.environ[\"SEEME_USERNAME\"], apikey=os.environ[\"SEEME_API_KEY\"],");
    println!("                  backend=os.environ[\"SEEME_BACKEND\"])");
    println!("  print([model.name for model in client.get_models()])\n");
    println!("Requests (Ctrl-C stops):");
}
