//! CPU of a tunnel server whose RTSP gateway shows one camera to 200 viewers, against plain copying: a relay that
//! terminates TLS and writes what it reads to 200 connections, and knows nothing of RTSP, RTP or who is slow.

use crate::{
    devices::{Camera, PASSWORD, World},
    floor::{Bare, Load},
    report::Figure,
    whole::block_on,
};
use anyhow::{Context, ensure};
use homing_base::rtsp::{Event, Session};
use homing_protocol::secret::Credentials;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{net::TcpStream, task::JoinSet};

const VIEWERS: u32 = 200;
/// What the gateway may cost, as a multiple of plain copying.
const BAR: f64 = 1.5;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut watching = JoinSet::new();
        let mut world = World::start(1, Camera::Rtsp).await?;
        world.connect_all().await?;
        let load = Load { connections: VIEWERS, sending: world.sending.clone(), received: Arc::default() };
        // From the first PLAY on, or the others would wait for a key picture.
        load.sending.store(true, Ordering::Relaxed);
        for _ in 0..VIEWERS {
            let session = open(&world).await.context("a viewer")?;
            watching.spawn(watch(session, load.received.clone()));
        }
        load.sending.store(false, Ordering::Relaxed);
        let floor = Bare::copying(VIEWERS, Camera::Rtp).await?;

        let [ours, bare] = load.beside(&world.server, &floor).await?;
        ensure!(watching.len() == VIEWERS as usize, "viewers were lost while measuring");
        watching.shutdown().await;
        world.end().await;
        let what = format!("{VIEWERS} viewers on one camera of 500 kbit/s, CPU of the gateway");
        let figure = Figure::plain(what, ours, "% of a core");
        Ok(vec![figure.against("plain copying", bare).ratio_bar(BAR)])
    })
}

async fn open(world: &World) -> anyhow::Result<Session> {
    let tcp = TcpStream::connect(&world.rtsp).await?;
    let url = format!("rtsp://{}/{}/live", world.rtsp, world.serials[0]);
    let (mut session, description) =
        Session::describe(Box::new(tcp), &url, Credentials::new("vms", PASSWORD)).await?;
    let track = description.presentation.tracks.first().context("no track")?;
    session.set_up(track.control.as_deref(), 0).await?;
    session.play().await?;
    Ok(session)
}

async fn watch(mut session: Session, received: Arc<AtomicU64>) {
    loop {
        match session.next().await {
            Ok(Event::Packet(packet)) => {
                received.fetch_add(packet.payload.len() as u64 + 4, Ordering::Relaxed);
            }
            Ok(Event::Tick) => (),
            Err(error) => return eprintln!("a viewer was lost: {error}"),
        }
    }
}
