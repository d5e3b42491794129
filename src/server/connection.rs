//! One client connection, from the accepted socket to its end: which protocol it speaks, and who serves that.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::client_io::ClientIo;
use super::http1;
use crate::gateway::Gateway;
use crate::gateway::context::ConnInfo;

/// Serves one connection to its end.
pub(super) async fn serve(gateway: Arc<Gateway>, stream: TcpStream, conn: Arc<ConnInfo>) {
    let limits = &gateway.snapshot().config.limits;
    let io = ClientIo::new(stream, limits, conn.clone(), gateway.shared().clock.clone());
    if let Err(error) = http1::serve(gateway, io, conn).await {
        tracing::debug!(%error, "a client connection ended");
    }
}
