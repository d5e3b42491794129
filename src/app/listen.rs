//! Where a gateway listens: on sockets of its own, or on those of the process that it replaces.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::StartError;
use crate::admin;
use crate::config::model::Config;
use crate::server::take_over::{self, Inherited, Link, Sockets, TakeOverError};
use crate::server::{BindError, Listeners};

/// What was taken.
pub(super) struct Listening {
    /// For clients.
    pub(super) listeners: Listeners,
    /// For operators.
    pub(super) admin: TcpListener,
    /// The same, for whoever takes over from us; `None`: there is no doorway.
    pub(super) sockets: Option<Sockets>,
    /// To the process that had them.
    pub(super) link: Option<Link>,
}

impl Listening {
    /// Must be called inside a runtime, at a start: it blocks for a moment.
    pub(super) fn begin(config: &Config, take_over: bool) -> Result<Self, StartError> {
        let public = config.listen.public;
        // Port 0 is nobody's yet.
        let inherited = if take_over && public.port() != 0 { take_over::ask(public)? } else { None };
        let Some(inherited) = inherited else {
            let listeners = Listeners::bind(public, config.workers).map_err(|error| match error {
                BindError::Taken(address) if take_over => TakeOverError::NotOffered(address).into(),
                error => StartError::from(error),
            })?;
            let admin = bind_admin(config.listen.admin)?;
            let sockets = open_doorway(&listeners, &admin);
            return Ok(Self { listeners, admin: TcpListener::from_std(admin)?, sockets, link: None });
        };
        let Inherited { sockets: Sockets { doorway, admin, public }, admin: address, link } = inherited;
        let admin = if address == config.listen.admin { admin } else { bind_admin(config.listen.admin)? };
        let listeners = Listeners::inherit(public, config.workers)?;
        let sockets = Sockets { doorway, admin: admin.try_clone()?, public: listeners.duplicate()? };
        Ok(Self { listeners, admin: TcpListener::from_std(admin)?, sockets: Some(sockets), link: Some(link) })
    }
}

fn bind_admin(address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    admin::bind(address).map_err(|error| StartError::Admin(address, error))
}

/// Without one a gateway serves all the same.
fn open_doorway(listeners: &Listeners, admin: &std::net::TcpListener) -> Option<Sockets> {
    let sockets = take_over::doorway(listeners.address)
        .and_then(|doorway| Ok(Sockets { doorway, admin: admin.try_clone()?, public: listeners.duplicate()? }));
    sockets
        .inspect_err(|error| tracing::warn!(%error, "no other process can take over from this one (run --take-over)"))
        .ok()
}
