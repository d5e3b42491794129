//! Where a gateway listens: on sockets of its own, or on those of the process that it replaces.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

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
    /// Where others ask for all of this; `None`: they cannot.
    doorway: Option<UnixListener>,
    /// To the process that had them.
    pub(super) link: Option<Link>,
}

impl Listening {
    /// Blocks for a moment, or for as long as another process takes to answer.
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
            let doorway = open_doorway(listeners.address);
            return Ok(Self { listeners, admin, doorway, link: None });
        };
        let Inherited { sockets, admin: address, link } = inherited;
        let admin = if address == config.listen.admin { sockets.admin } else { bind_admin(config.listen.admin)? };
        let listeners = Listeners::inherit(public, sockets.public);
        Ok(Self { listeners, admin, doorway: Some(sockets.doorway), link: Some(link) })
    }

    /// All of it once more, for whoever takes over from us.
    pub(super) fn duplicate(&self) -> io::Result<Option<Sockets>> {
        let Some(doorway) = &self.doorway else { return Ok(None) };
        let (doorway, admin) = (doorway.try_clone()?, self.admin.try_clone()?);
        Ok(Some(Sockets { doorway, admin, public: self.listeners.duplicate()? }))
    }
}

fn bind_admin(address: SocketAddr) -> Result<TcpListener, StartError> {
    admin::bind(address).map_err(|error| StartError::Admin(address, error))
}

/// Without one a gateway serves all the same.
fn open_doorway(address: SocketAddr) -> Option<UnixListener> {
    let trouble =
        |error: &io::Error| tracing::warn!(%error, "no process can take over from this one (run --take-over)");
    take_over::doorway(address).inspect_err(trouble).ok()
}
