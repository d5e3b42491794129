//! `accounts …` (being merged)
use crate::config::model::Config;
use crate::store::Store;
use std::sync::Arc;
pub(super) async fn run(_: super::args::AccountsCommand, _: Arc<dyn Store>, _: Config) -> Result<(), super::CliError> {
    Err(super::failed("not merged yet"))
}
