//! A SeeMe-shaped backend for `demo`, for tests and for the README: something real to put the gateway in front of.
//!
//! It answers what the published `seeme` and `openai` Python clients ask, from memory, and it answers *any* id, so that
//! a demonstration needs no preparation. Beside that it has the instruments that tests of a proxy need: `/echo/*` tells
//! what arrived and misbehaves on request, `/download` and `/upload` move bodies of any size without holding them,
//! `/requests/count` tells which requests got through.
//!
//! | path | served by |
//! |---|---|
//! | `/api/v1/*`, `/admin/*` | `crud`: one mechanism over the collections of `seed.json`; `POST /api/v1/inferences/{id}` predicts |
//! | `/v1/*` | `openai`: models, chat completions, completions, embeddings, responses, with and without streaming |
//! | `/echo/*` | `echo`: the request as JSON, with knobs for status, size, delays, faults, trailers |
//! | `/ws`, `/echo/*` | `websocket`: echoes frames, where a WebSocket is asked for |
//! | `/download`, `/upload`, `/requests/count`, `/healthz` | `dispatch` |
//!
//! It must not check anything: no keys, scopes or limits. Whatever it refuses would hide what the gateway should have
//! refused. It is no part of the data path either; the gateway never calls into it.

mod body;
mod catalogue;
mod crud;
mod dispatch;
mod echo;
mod openai;
mod responses;
#[cfg(test)]
mod tests;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use dispatch::Backend;

/// A proxy adds headers of its own to those of the client; hyper's default of 100 would answer 431 to its additions.
const MAX_HEADERS: usize = 256;

/// How long requests in flight may go on once the backend is told to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves the sample backend on `listener` until `shutdown` resolves, with a state of its own.
///
/// Requests in flight get two seconds to end. Dropping the future closes every connection at once.
///
/// # Errors
///
/// Never today; the result leaves room for a listener that fails for good.
pub async fn serve(listener: TcpListener, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let backend = Arc::new(Backend::new());
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {} // reaped, so that the set does not grow with every connection
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, backend.clone(), stopped.clone()));
                }
                // Descriptors ran out, or the peer left before the accept: the next accept may work.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    drop(stop);
    // Whatever is still running after this is aborted when the set is dropped.
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    Ok(())
}

/// Runs `sample-backend --listen ADDR`: a runtime of its own, until SIGTERM or SIGINT.
///
/// # Errors
///
/// When the runtime cannot be started, the address cannot be bound or the signals cannot be caught.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        println!("sample backend on http://{}", listener.local_addr()?);
        serve(listener, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
    })
}

/// One connection until it ends; a stop lets the request in flight end and then closes it.
async fn connection(stream: TcpStream, backend: Arc<Backend>, mut stopped: watch::Receiver<()>) {
    let _ = stream.set_nodelay(true); // chunks of an event stream must leave one by one
    let service = service_fn(move |request| dispatch::dispatch(backend.clone(), request));
    let connection = http1::Builder::new().max_headers(MAX_HEADERS).serve_connection(TokioIo::new(stream), service);
    let connection = connection.with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        // A client that left, or a fault asked for with `close=`: nothing to report either way.
        _ = connection.as_mut() => {}
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
