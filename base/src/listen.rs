//! Listening sockets and the accept loop.
//!
//! The order is: a permit, then accept, then a task of its own, and every handshake inside that task
//! under a deadline, so that a silent peer costs a permit for a while and delays nobody.

use crate::Stop;
use anyhow::Context;
use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Waiting connections that the kernel keeps while all permits are taken.
const BACKLOG: i32 = 1024;

/// Pause after `accept` failed for want of descriptors or memory, so that the loop does not spin.
const ACCEPT_FAILED_PAUSE: Duration = Duration::from_millis(200);

/// For a peer to take what it was sent; then the kernel ends the connection. Long enough for a player that pauses,
/// and an end for those who ask and never read.
const STALLED: Duration = Duration::from_secs(120);

/// Opens a listening socket; port 0 takes a free one (ask `local_addr`).
///
/// # Errors
/// Names the address, what it was for, and what to check.
pub fn bind(address: SocketAddr, purpose: &str) -> anyhow::Result<TcpListener> {
    let open = || -> std::io::Result<TcpListener> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // A restarted server must not wait for its predecessor's connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        // Its connections inherit it.
        socket.set_tcp_user_timeout(Some(STALLED))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().with_context(|| {
        format!("cannot listen on {address} ({purpose}): is the address this machine's, and the port free?")
    })
}

/// Accepts connections until the role stops, at most `limit` at once, each handled in its own task.
///
/// Connections beyond the limit wait in the kernel's backlog. `handle` must end by itself when the
/// role stops (it is given nothing to watch but what it captured).
pub async fn accept_loop<H, F>(listener: TcpListener, limit: usize, stop: Stop, handle: H)
where
    H: Fn(TcpStream, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limit));
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit.expect("never closed"),
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let _ = tcp.set_nodelay(true);
                let handled = handle(tcp, peer);
                stop.spawn(async move {
                    handled.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed; waiting before the next try");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_FAILED_PAUSE) => (),
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}
