//! Hostile clients of the internal address, which speaks HTTP/2 with whoever comes, before anybody has given a password.

use crate::{
    pressure::{Ask, Beside, attack, floods, frame, is_alone, vms_tls},
    world::World,
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// POST http://x/, as HPACK has it.
const REQUEST: &[u8] = &[0x83, 0x86, 0x84, 0x01, 0x01, b'x'];

/// From an address of its own, which has requests and connections of its own.
async fn plain(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 66], 0)))?;
    let mut tcp = socket.connect(to).await?;
    begin(&mut tcp).await?;
    Ok(tcp)
}

/// The same inside TLS.
async fn encrypted(config: Arc<rustls::ClientConfig>, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 66], 0)))?;
    let tcp = socket.connect(to).await?;
    let mut tls = TlsConnector::from(config).connect(to.ip().into(), tcp).await?;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    begin(&mut tls).await?;
    Ok(tls)
}

async fn begin(io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    io.write_all(&frame(4, 0, 0, &[])).await
}

/// Goal: whatever frames of HTTP/2 a stranger floods the internal address with, by HTTP and by HTTPS, its connection
/// ends; a VMS and a device beside it notice nothing, and memory stays bounded.
#[tokio::test]
async fn a_stranger_may_flood_the_internal_address_and_the_vms_notices_nothing() {
    if !is_alone("pressure_internal::a_stranger_may_flood_the_internal_address_and_the_vms_notices_nothing") {
        return;
    }
    let world = World::new().await;
    let (good, serving) = world.ready("00408C702009").await;
    let beside = Beside::new(&world, good.serial, &[Ask::Device, Ask::Http, Ask::Https]).await;
    let mut config = vms_tls(&world);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    for mut flood in floods(REQUEST) {
        let name = flood.name;
        if name == "rapid reset" {
            // Here it is who floods that opens streams.
            let asked_and_reset = |stream| [frame(1, 4, stream, REQUEST), frame(3, 0, stream, &[0, 0, 0, 8])];
            flood.begin = (1..100_000).step_by(2).flat_map(asked_and_reset).flatten().collect();
        }
        let attackers = [
            attack(&flood, plain(world.internal)),
            attack(&flood, encrypted(Arc::clone(&config), world.internal)),
        ];
        let over = || attackers.iter().all(std::thread::JoinHandle::is_finished);
        beside.quiet_works(!flood.ends);
        beside.notices_nothing_until(name, over).await;
        for (way, attacker) in ["HTTP", "HTTPS"].iter().zip(attackers) {
            let stopped = attacker.join().unwrap();
            assert!(stopped || !flood.ends, "{name}, by {way}: nobody stopped it");
        }
    }
    assert!(!serving.is_finished());
}
