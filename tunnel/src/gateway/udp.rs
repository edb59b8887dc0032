//! RTP over UDP to one viewer: a pair of ports for a track, an even one for RTP and the next for RTCP (RFC 3550 §11).
//!
//! Packets go to the address that the viewer's RTSP connection comes from and to no other, so that nobody can be flooded
//! through us. What the socket does not take at once is lost, as on the network.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
};
use tokio::{io::ReadBuf, net::UdpSocket};

/// Pairs that are tried before there is none.
const TRIES: usize = 64;

/// A picture of 100 kB leaves at once.
const SEND_BUFFER_BYTES: usize = 512 * 1024;

/// Two sockets that send to one viewer.
pub(super) struct UdpPair {
    rtp: UdpSocket,
    rtcp: UdpSocket,
    /// Ours.
    pub ports: (u16, u16),
}

impl UdpPair {
    /// From `local` to the ports of `peer`; `range` is first and last port, or twice 0.
    pub async fn open(
        local: IpAddr,
        peer: IpAddr,
        (to_rtp, to_rtcp): (u16, u16),
        range: [u16; 2],
    ) -> io::Result<Self> {
        let (rtp, rtcp, ports) = bind(local, range).await?;
        socket2::SockRef::from(&rtp).set_send_buffer_size(SEND_BUFFER_BYTES)?;
        rtp.connect(SocketAddr::new(peer, to_rtp)).await?;
        rtcp.connect(SocketAddr::new(peer, to_rtcp)).await?;
        rtp.writable().await?;
        rtcp.writable().await?;
        Ok(UdpPair { rtp, rtcp, ports })
    }

    /// Sends a packet; `false`: it is lost.
    pub fn send(&self, is_rtcp: bool, packet: &[u8]) -> bool {
        let socket = if is_rtcp { &self.rtcp } else { &self.rtp };
        socket.try_send(packet).is_ok()
    }

    /// Whether the viewer has sent something: receiver reports are its sign of life.
    pub fn poll_heard(&self, cx: &mut Context<'_>) -> bool {
        let (mut heard, mut scratch) = (false, [0; 64]);
        while let Poll::Ready(received) = self.rtcp.poll_recv(cx, &mut ReadBuf::new(&mut scratch)) {
            // An error is ICMP's: the port is closed. That is noticed by its silence.
            heard |= received.is_ok();
        }
        heard
    }
}

async fn bind(local: IpAddr, [first, last]: [u16; 2]) -> io::Result<(UdpSocket, UdpSocket, (u16, u16))> {
    let mut failed = io::Error::from(io::ErrorKind::AddrInUse);
    let pairs = last.saturating_sub(first.next_multiple_of(2)).div_ceil(2);
    let begin: u16 = rand::random();
    for turn in 0..TRIES {
        let port = match first {
            0 => 0,
            _ if pairs == 0 => return Err(io::ErrorKind::AddrNotAvailable.into()),
            _ => first.next_multiple_of(2) + 2 * (begin.wrapping_add(turn as u16) % pairs),
        };
        let rtp = match UdpSocket::bind((local, port)).await {
            Ok(rtp) => rtp,
            Err(error) => {
                failed = error;
                continue;
            }
        };
        let port = rtp.local_addr()?.port();
        if port % 2 == 1 {
            continue;
        }
        match UdpSocket::bind((local, port + 1)).await {
            Ok(rtcp) => return Ok((rtp, rtcp, (port, port + 1))),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// Goal: pairs are even and odd, within the range, and when all are taken that is said.
    #[tokio::test]
    async fn ports_come_in_pairs() {
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (_, _, (rtp, rtcp)) = bind(local, [0, 0]).await.unwrap();
        assert_eq!((rtp % 2, rtcp), (0, rtp + 1));
        // Free a moment ago, all of them.
        let range = [rtp - 1, rtp + 1];
        let taken = bind(local, range).await.unwrap();
        assert_eq!(taken.2, (rtp, rtcp));
        assert!(bind(local, range).await.is_err());
    }
}
