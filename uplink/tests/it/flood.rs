//! Floods of control frames: each ends its own uplink, soon and by name, and its neighbour on the same worker hardly
//! notices.

use crate::world::*;
use homing_uplink::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const NATIVE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n";
const WEBSOCKET: &str = "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: h2c-reverse\r\n\r\n";

/// No request of the neighbour may take longer; a flood that nobody stops takes all of it.
const NEIGHBOUR: Duration = Duration::from_millis(1000);

/// From the first frame of a flood to the uplink's end.
const END: Duration = Duration::from_secs(3);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads HTTP/2 frames behind `skip` bytes of preface until one of this kind has come.
async fn read_until_frame(peer: &mut (impl AsyncRead + Unpin), skip: usize, kind: u8) -> std::io::Result<()> {
    peer.read_exact(&mut vec![0; skip]).await?;
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        peer.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == kind {
            return Ok(());
        }
    }
}

/// `begin`, then `piece` again and again until nobody takes it any more; what comes back is read away.
async fn flood(
    peer: impl AsyncRead + AsyncWrite,
    begin: Vec<u8>,
    mut piece: impl FnMut() -> Vec<u8>,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(peer);
    let writing = async {
        writer.write_all(&begin).await?;
        loop {
            writer.write_all(&piece()).await?;
        }
    };
    let draining = async {
        let mut away = vec![0; 65536];
        while reader.read(&mut away).await? > 0 {}
        Ok(())
    };
    tokio::select! { ended = writing => ended, ended = draining => ended }
}

/// In a thread of its own, as on a machine of its own.
fn elsewhere<F>(flooding: impl FnOnce() -> F + Send + 'static) -> std::thread::JoinHandle<()>
where
    F: Future<Output = std::io::Result<()>>,
{
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // It ends with an error: the connection was closed on it.
        let _ = runtime.block_on(flooding());
    })
}

/// Goal: whatever a device floods a server with, its own uplink ends, by name, and the device beside it is answered.
#[tokio::test]
async fn a_device_that_floods_ends_its_own_uplink_and_no_other() {
    let head = frame(1, 4, 1, &[0x88]);
    let open_head = frame(1, 0, 1, &[0x88]);
    let floods: [(&str, &str, &[u8], Vec<u8>); 11] = [
        ("PING", NATIVE, &[], frame(6, 0, 0, &[0; 8])),
        ("PING", NATIVE, &[], frame(6, 1, 0, &[0; 8])),
        ("SETTINGS", NATIVE, &[], frame(4, 0, 0, &[])),
        ("PRIORITY", NATIVE, &[], frame(2, 0, 3, &[0, 0, 0, 0, 16])),
        ("WINDOW_UPDATE", NATIVE, &[], frame(8, 0, 0, &[0, 0, 0, 1])),
        ("RST_STREAM", NATIVE, &head, frame(3, 0, 1, &[0, 0, 0, 8])),
        ("tiny DATA", NATIVE, &head, frame(0, 0, 1, &[])),
        ("tiny DATA", NATIVE, &head, frame(0, 0, 1, &[7])),
        ("HTTP/2 failed", NATIVE, &open_head, frame(9, 0, 1, &[])),
        ("WebSocket", WEBSOCKET, &[], [0x82, 0x80, 0, 0, 0, 0].to_vec()),
        ("WebSocket", WEBSOCKET, &[], [0x89, 0x80, 0, 0, 0, 0].to_vec()),
    ];
    let mut server = Server::start().await;
    // It may be asked when nobody waits for the answer any more.
    let polite = async |incoming: Incoming| drop(incoming.respond(http::Response::new("hello".into())));
    let neighbour = server.pair(Carrier::Native, Default::default(), polite).await;
    for (name, upgrade, begin, piece) in floods {
        let device = Identity::device("00408C70200A");
        let config = device.client_config(&server.identity);
        let address = server.address;
        let begin = if upgrade == NATIVE { [&frame(4, 0, 0, &[]), begin].concat() } else { Vec::new() };
        let attacker = elsewhere(move || async move {
            let tcp = TcpStream::connect(address).await?;
            let name = "localhost".try_into().expect("a name");
            let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
            tls.write_all(upgrade.as_bytes()).await?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(tls.read_u8().await?);
            }
            if upgrade == NATIVE {
                read_until_frame(&mut tls, 24, 1).await?;
            }
            let many = piece.repeat(1000);
            flood(tls, begin, || many.clone()).await
        });
        let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
        let began = Instant::now();
        let victim = async {
            // Gives the flood a stream, and fails with the uplink.
            tokio::join!(driver.run(CancellationToken::new()), async {
                if let Ok(answer) = uplink.request(get("/hello")).await {
                    let _ = answer.into_body().collect(1 << 20).await;
                }
            })
            .0
        };
        let beside = async {
            loop {
                let asked = Instant::now();
                let answer = neighbour.uplink.request(get("/hello")).await.expect("an answer");
                answer.into_body().collect(100).await.expect("hello");
                assert!(asked.elapsed() < NEIGHBOUR, "{name}: the neighbour waited {:?}", asked.elapsed());
            }
        };
        let reason = within(name, async {
            tokio::select! { reason = victim => reason, () = beside => unreachable!("it asks for ever") }
        })
        .await;
        assert!(began.elapsed() < END, "{name}: ended only after {:?}", began.elapsed());
        assert!(reason.to_string().contains(name), "{name}: {reason}");
        attacker.join().expect("no panic");
    }
    neighbour.end().await;
    server.end().await;
}

/// Goal: a rogue server cannot keep a device busy either; the device goes on to its next server.
#[tokio::test]
async fn a_server_that_floods_loses_the_device() {
    let identity = Identity::server();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let device = Identity::device("00408C702009");
    let address = UplinkAddress::new("localhost", port).expect("an address");
    let dialer = Dialer::new(address, device.client_config(&identity));
    let config = Arc::new(identity.server_config(TlsPolicy::Tls13));
    listener.set_nonblocking(true).expect("set");

    let request = |stream: u32| frame(1, 5, stream, &[0x82, 0x84, 0x86, 0x41, 0x01, b'x']);
    let reset = move |stream: u32| [request(stream), frame(3, 0, stream, &[0, 0, 0, 8])].concat();
    type Piece = Box<dyn FnMut() -> Vec<u8> + Send>;
    let same = |piece: Vec<u8>| -> Piece { Box::new(move || piece.repeat(1000)) };
    let mut stream = 1;
    let rapid_reset: Piece = Box::new(move || {
        stream += 2;
        reset(stream)
    });
    let floods: [(&str, Piece); 6] = [
        ("PING", same(frame(6, 0, 0, &[0; 8]))),
        ("SETTINGS", same(frame(4, 0, 0, &[]))),
        ("PRIORITY", same(frame(2, 0, 3, &[0, 0, 0, 0, 16]))),
        ("WINDOW_UPDATE", same(frame(8, 0, 0, &[0, 0, 0, 1]))),
        ("HTTP/2 failed", same(frame(9, 0, 1, &[]))),
        ("", rapid_reset),
    ];
    for (name, piece) in floods {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
        let listener = listener.try_clone().expect("a socket");
        let attacker = elsewhere(move || async move {
            let (tcp, _) = TcpListener::from_std(listener)?.accept().await?;
            let mut tls = acceptor.accept(tcp).await?;
            assert!(tls.read(&mut [0; 1000]).await? > 0);
            tls.write_all(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n").await?;
            let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat();
            flood(tls, begin, piece).await
        });
        let dialed = within("an uplink", dialer.dial()).await.expect("an uplink");
        let began = Instant::now();
        let serving = dialed.serve(Arc::new(answer), Default::default(), CancellationToken::new());
        let reason = within(name, serving).await;
        assert!(began.elapsed() < END, "{name}: ended only after {:?}", began.elapsed());
        assert!(matches!(reason, EndReason::Flooded { .. } | EndReason::Protocol(_)), "{name}: {reason}");
        assert!(reason.to_string().contains(name), "{name}: {reason}");
        attacker.join().expect("no panic");
    }
}
