//! The arguments, as clap derives them. Help texts carry examples; behaviour lives in the subcommands' own files.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, Args, Parser, Subcommand, ValueEnum};

const DEFAULT_CONFIG: &str = "gateway.yaml";

/// Reads the name of the configuration file. An empty `SEEME_GATEWAY_CONFIG=` is one that is not set, as everywhere else in
/// the environment; an empty `--config` is a mistake.
#[derive(Debug, Clone)]
struct ConfigFile;

impl TypedValueParser for ConfigFile {
    type Value = PathBuf;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<PathBuf, clap::Error> {
        PathBufValueParser::new().parse_ref(command, arg, value)
    }

    fn parse_ref_(
        &self,
        command: &clap::Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<PathBuf, clap::Error> {
        let absent = value.is_empty() && source == ValueSource::EnvVariable;
        self.parse_ref(command, arg, if absent { OsStr::new(DEFAULT_CONFIG) } else { value })
    }
}

/// API-key gateway in front of a SeeMe.ai backend.
#[derive(Debug, Parser)]
#[command(name = "seeme-gateway", version, about, max_term_width = 120)]
#[command(after_help = "Examples:
  seeme-gateway demo                              everything on one machine, with a first key
  seeme-gateway check                             every mistake of gateway.yaml at once
  seeme-gateway explain POST /api/v1/inferences/m-1 --scope models:read
  seeme-gateway keys create --name ci --account u-1 --scope models:predict")]
pub struct Cli {
    /// The configuration file.
    #[arg(
        short,
        long,
        global = true,
        env = "SEEME_GATEWAY_CONFIG",
        default_value = DEFAULT_CONFIG,
        value_parser = ConfigFile,
        value_name = "FILE"
    )]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve. SIGTERM and SIGINT drain, a second one ends at once; a changed file, or SIGHUP, reloads.
    #[command(after_help = "Examples:
  seeme-gateway run -c /etc/seeme/gateway.yaml
  seeme-gateway run -c /etc/seeme/gateway.yaml --take-over     replace the one that runs; no connection is refused")]
    Run {
        /// Take the listening sockets over from the gateway that has the address, which drains and ends once this one serves.
        #[arg(long)]
        take_over: bool,
    },
    /// All of it on one machine: sample backend, gateway, embedded store, a first key, then a readable request log.
    #[command(after_help = "Example:\n  seeme-gateway demo")]
    Demo,
    /// Compile the file and run its `tests:`; report every mistake at once. Exit 0 or 78.
    #[command(
        after_help = "Examples:\n  seeme-gateway check\n  seeme-gateway check -c other.yaml --format json\n  seeme-gateway check --format github"
    )]
    Check {
        /// How to report.
        #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
        format: CheckFormat,
    },
    /// The compiled route table: method, path, access, bindings, upstream.
    #[command(after_help = "Example:\n  seeme-gateway routes | grep inferences")]
    Routes,
    /// Show each check of one request and its outcome, by the code of the data path itself.
    #[command(after_help = "Examples:
  seeme-gateway explain GET /api/v1/models --scope models:read
  seeme-gateway explain POST /v1/chat/completions --scope models:predict --model-id m-1 --body chat.json
  seeme-gateway explain DELETE /api/v1/models/m-1 --key-id 019a2b3c-...")]
    Explain(ExplainArgs),
    /// Create and manage API keys, also while gateways run on the same store.
    #[command(
        subcommand,
        after_help = "Examples:
  seeme-gateway keys create --name ci --account u-1 --scope models:predict
  seeme-gateway keys list --account u-1
  seeme-gateway keys disable 019a2b3c-..."
    )]
    Keys(KeysCommand),
    /// Plans, limits and suspension of accounts.
    #[command(
        subcommand,
        after_help = "Examples:
  seeme-gateway accounts set u-1 --plan pro
  seeme-gateway accounts suspend u-1"
    )]
    Accounts(AccountsCommand),
    /// Move, back up or restore a store.
    #[command(
        subcommand,
        after_help = "Example:\n  seeme-gateway store copy --from sqlite:data/gateway.db --to sqlite:backup.db"
    )]
    Store(StoreCommand),
    /// A SeeMe-shaped backend to try the gateway with.
    #[command(after_help = "Example:\n  seeme-gateway sample-backend --listen 127.0.0.1:9000")]
    SampleBackend {
        /// Where to listen.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
        listen: SocketAddr,
    },
}

/// How `check` reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// For people.
    Text,
    /// One JSON document.
    Json,
    /// Annotations of GitHub Actions.
    Github,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The method.
    pub method: String,
    /// The path, with its query if it has one.
    pub path: String,
    /// A stored key.
    #[arg(long, value_name = "ID", conflicts_with_all = ["scope", "model_id", "dataset_id", "organization_id"])]
    pub key_id: Option<String>,
    /// A scope of an imagined key; may be repeated.
    #[arg(long, value_name = "SCOPE")]
    pub scope: Vec<String>,
    /// A model the imagined key is limited to.
    #[arg(long, value_name = "ID")]
    pub model_id: Vec<String>,
    /// A dataset the imagined key is limited to.
    #[arg(long, value_name = "ID")]
    pub dataset_id: Vec<String>,
    /// The organization the imagined key is limited to.
    #[arg(long, value_name = "ID")]
    pub organization_id: Option<String>,
    /// Where the request comes from; one of the addresses that the key is limited to if absent.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// The request body.
    #[arg(long, value_name = "FILE")]
    pub body: Option<PathBuf>,
}

/// `keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create a key; its secret is printed this once.
    #[command(after_help = "Examples:
  seeme-gateway keys create --name ci --account u-1 --scope models:predict --expires-in-days 90
  seeme-gateway keys create --name mobile --account u-1 --scope models:predict --model-id m-1 --environment test --json
  seeme-gateway keys create --name office --account u-1 --scope 'models:*' --allowed-address 192.0.2.0/24")]
    Create(CreateArgs),
    /// List keys, newest first.
    #[command(after_help = "Example:\n  seeme-gateway keys list --account u-1")]
    List {
        /// Only keys of this account.
        #[arg(long, value_name = "ID")]
        account: Option<String>,
        /// Deleted ones too.
        #[arg(long)]
        include_deleted: bool,
        /// JSON on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Show one key.
    #[command(after_help = "Example:\n  seeme-gateway keys show 019a2b3c-... --json")]
    Show(KeyArgs),
    /// Change members of a key; lists replace.
    #[command(
        after_help = "Example:\n  seeme-gateway keys update ID --scope models:read --scope models:predict --all-models"
    )]
    Update(UpdateArgs),
    /// Refuse a key from now on; it can be enabled again.
    #[command(after_help = "Example:\n  seeme-gateway keys disable 019a2b3c-...")]
    Disable(KeyArgs),
    /// Undo `disable`.
    #[command(after_help = "Example:\n  seeme-gateway keys enable 019a2b3c-...")]
    Enable(KeyArgs),
    /// Delete a key for good.
    #[command(after_help = "Example:\n  seeme-gateway keys delete 019a2b3c-...")]
    Delete(KeyArgs),
    /// Requests made with a key.
    #[command(after_help = "Example:\n  seeme-gateway keys usage ID --from 2026-01-01 --to 2026-01-31")]
    Usage {
        /// The key's id.
        id: String,
        /// First day, YYYY-MM-DD; 30 days ago if absent.
        #[arg(long, value_name = "DATE")]
        from: Option<String>,
        /// Last day, included; today if absent.
        #[arg(long, value_name = "DATE")]
        to: Option<String>,
        /// JSON on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Who created, changed, disabled or deleted a key, when, from where.
    #[command(after_help = "Example:\n  seeme-gateway keys events 019a2b3c-...")]
    Events(KeyArgs),
}

/// A key id.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The key's id.
    pub id: String,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `keys create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// For people; at most 200 characters.
    #[arg(long)]
    pub name: String,
    /// The account it belongs to.
    #[arg(long, value_name = "ID")]
    pub account: String,
    /// What it may do; may be repeated.
    #[arg(long, value_name = "SCOPE", required = true)]
    pub scope: Vec<String>,
    /// Limit it to this model; may be repeated.
    #[arg(long, value_name = "ID")]
    pub model_id: Vec<String>,
    /// Limit it to this dataset; may be repeated.
    #[arg(long, value_name = "ID")]
    pub dataset_id: Vec<String>,
    /// Let it work from this address or network only; may be repeated.
    #[arg(long, value_name = "CIDR")]
    pub allowed_address: Vec<String>,
    /// Limit it to this organization.
    #[arg(long, value_name = "ID")]
    pub organization_id: Option<String>,
    /// Days until it expires.
    #[arg(long, value_name = "N", conflicts_with = "expires_at")]
    pub expires_in_days: Option<u32>,
    /// When it expires, RFC 3339.
    #[arg(long, value_name = "TIME")]
    pub expires_at: Option<String>,
    /// live or test.
    #[arg(long, value_enum, default_value_t = EnvironmentArg::Live)]
    pub environment: EnvironmentArg,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `--environment`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EnvironmentArg {
    /// Production.
    Live,
    /// Sandbox.
    Test,
}

/// Arguments of `keys update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// The key's id.
    pub id: String,
    /// A new name.
    #[arg(long)]
    pub name: Option<String>,
    /// The new list of scopes; may be repeated.
    #[arg(long, value_name = "SCOPE")]
    pub scope: Vec<String>,
    /// The new list of models; may be repeated.
    #[arg(long, value_name = "ID", conflicts_with = "all_models")]
    pub model_id: Vec<String>,
    /// No longer limited to models.
    #[arg(long)]
    pub all_models: bool,
    /// The new list of datasets; may be repeated.
    #[arg(long, value_name = "ID", conflicts_with = "all_datasets")]
    pub dataset_id: Vec<String>,
    /// No longer limited to datasets.
    #[arg(long)]
    pub all_datasets: bool,
    /// The new list of addresses and networks it works from; may be repeated.
    #[arg(long, value_name = "CIDR", conflicts_with = "all_addresses")]
    pub allowed_address: Vec<String>,
    /// It works from everywhere again.
    #[arg(long)]
    pub all_addresses: bool,
    /// A new expiry, RFC 3339.
    #[arg(long, value_name = "TIME")]
    pub expires_at: Option<String>,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `accounts …`
#[derive(Debug, Subcommand)]
pub enum AccountsCommand {
    /// Set plan and limits; the account is made when absent.
    #[command(after_help = "Examples:
  seeme-gateway accounts set u-1 --plan pro
  seeme-gateway accounts set u-2 --plan enterprise --requests-per-minute 5000 --requests-per-day 1000000")]
    Set {
        /// The account's id.
        id: String,
        /// A plan of gateway.yaml.
        #[arg(long, value_name = "NAME")]
        plan: String,
        /// For custom plans.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// For custom plans.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_day: Option<u32>,
        /// For custom plans: how many may be in flight at once, at each gateway; any number if absent.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        concurrent_requests: Option<u32>,
        /// JSON on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Show one account.
    #[command(after_help = "Example:\n  seeme-gateway accounts show u-1 --json")]
    Show(AccountArgs),
    /// List all accounts that were set.
    #[command(after_help = "Example:\n  seeme-gateway accounts list")]
    List {
        /// JSON on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Refuse all keys of an account.
    #[command(after_help = "Example:\n  seeme-gateway accounts suspend u-1")]
    Suspend(AccountArgs),
    /// Undo `suspend`.
    #[command(after_help = "Example:\n  seeme-gateway accounts resume u-1")]
    Resume(AccountArgs),
}

/// An account id.
#[derive(Debug, Args)]
pub struct AccountArgs {
    /// The account's id.
    pub id: String,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `store …`
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Copy keys, accounts, usage and events from one store into another: a move, a backup, a restore.
    ///
    /// What the target has of a copied key or account is replaced, the rest of it stays: a key that was disabled or deleted after
    /// a backup works again once that is brought back. A copy that failed is simply repeated; copying twice is copying once. At
    /// the end the target is read again and compared.
    ///
    /// Gateways may run on both stores; those of the target obey at once. Each key is copied as it is at one moment, but not all
    /// keys at the same one, and what the gateways of the source write afterwards stays behind. For an exact move stop them
    /// first, or stop them after a first copy and copy once more. Use the newest of the versions that run on the source: an
    /// older one does not see all that a newer one has written.
    ///
    /// For Redis the username, password, tls and prefix of `store` in the configuration file are used, where there is one;
    /// credentials in a URL stand for themselves.
    ///
    /// Not copied are the quota windows, which begin anew: what an account has used of its minute and day is forgotten.
    #[command(after_help = "Examples:
  seeme-gateway store copy --from sqlite:data/gateway.db --to sqlite:backup.db      a backup
  seeme-gateway store copy --from sqlite:backup.db --to sqlite:data/gateway.db      back again
  seeme-gateway store copy --from sqlite:data/gateway.db --to redis://redis:6379   a move, with store.password of gateway.yaml
  seeme-gateway store copy --from redis://redis:6379 --to sqlite:backup.db --json")]
    Copy(CopyArgs),
}

/// Arguments of `store copy`. No configuration file is needed.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The store to read, as in `store.url`; a relative path begins at the working directory.
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// The store to write to; a file is made when absent.
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}
