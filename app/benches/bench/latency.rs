//! What the tunnel adds to a small request's round trip, against a bare TLS relay.
//!
//! One request at a time, in turn: through the tunnel server's proxy as HTTP (`GET http://SERIAL/`), on an open RTSP
//! connection through it (`CONNECT SERIAL:554`), through the bare relay, and without any relay over TCP. Client and
//! device are one thread, so what is left is the relay and four or two system calls that wake somebody.

use crate::{
    devices::{Camera, SMALL_ANSWER, SMALL_REQUEST, World},
    floor::{Bare, LARGE_BUFFERS},
    report::Figure,
    whole::{block_on, percentile},
};
use anyhow::ensure;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

const ROUNDS: usize = 4000;
/// Not counted.
const WARM_UP: usize = 500;
/// Before each request: nobody is still awake from the one before.
const PAUSE: Duration = Duration::from_millis(1);
/// What the round trip through the tunnel may take, as a multiple of that through the bare relay: half of them, and
/// all but one of a hundred.
const BARS: [f64; 2] = [1.3, 1.5];

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut world = World::start(1, Camera::Answers).await?;
        world.connect_all().await?;
        let mut bare = Bare::start(1, LARGE_BUFFERS, Camera::Answers).await?;
        let serial = world.serials[0];
        let get = format!(
            "GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\n{}\r\n",
            World::proxy_authorization(),
            host = serial.host()
        );
        let mut http = TcpStream::connect(&world.internal).await?;
        http.set_nodelay(true)?;
        let mut rtsp = world.watch(serial).await?;
        let mut relayed = bare.outlets.pop().expect("one connection");
        relayed.set_nodelay(true)?;
        let mut cameras = JoinSet::new();
        let mut direct = direct(&mut cameras).await?;

        let mut took: [Vec<f64>; 4] = std::array::from_fn(|_| Vec::with_capacity(ROUNDS));
        for round in 0..WARM_UP + ROUNDS {
            let asked = SMALL_REQUEST;
            let times = [
                round_trip(&mut http, get.as_bytes()).await?,
                round_trip(&mut rtsp, asked).await?,
                round_trip(&mut relayed, asked).await?,
                round_trip(&mut direct, asked).await?,
            ];
            if round >= WARM_UP {
                took.iter_mut().zip(times).for_each(|(took, time)| took.push(time));
            }
        }
        drop((http, rtsp));
        world.end().await;

        let mut figures = Vec::new();
        for (percent, bar) in [50, 99].into_iter().zip(BARS) {
            let [http, rtsp, bare, direct] = took.each_mut().map(|took| percentile(took, percent));
            let what = |of: &str| format!("{of}, {percent} % within");
            figures.extend([
                Figure::plain(what("RTSP request on an open connection"), rtsp, "ms")
                    .against("bare tokio-rustls", bare)
                    .ratio_bar(bar),
                Figure::plain(what("HTTP request"), http, "ms").against("bare tokio-rustls", bare),
                Figure::plain(what("without any relay"), direct, "ms"),
            ]);
        }
        Ok(figures)
    })
}

/// Asks, and waits until the device's answer has come to its end; in milliseconds.
async fn round_trip(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<f64> {
    tokio::time::sleep(PAUSE).await;
    let mut answer = [0; 1024];
    let (began, mut length) = (Instant::now(), 0);
    stream.write_all(request).await?;
    while !answer[..length].ends_with(SMALL_ANSWER) {
        let count = stream.read(&mut answer[length..]).await?;
        ensure!(count > 0, "{}", String::from_utf8_lossy(&answer[..length]));
        length += count;
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// A camera on the same machine.
async fn direct(cameras: &mut JoinSet<()>) -> anyhow::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    let (camera, _) = listener.accept().await?;
    client.set_nodelay(true)?;
    camera.set_nodelay(true)?;
    cameras.spawn(Camera::Answers.run(camera, Default::default(), 0));
    Ok(client)
}
