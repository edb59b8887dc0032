//! TLS over TCP on rustls' unbuffered API: no buffer of its own while nothing is under way.
//!
//! Reading takes up to 64 kB from the socket at once into a scratch buffer that all connections of a thread share,
//! and decrypts there. What is written is gathered as plaintext and becomes records and one system call in
//! [`TlsStream::poll_send`], so that a burst of small HTTP/2 frames costs as much as one large one. Both kinds of
//! buffer go back to the thread when they are empty.
//!
//! Not here: certificates (`tls.rs`), WebSocket framing and sharing (`transport.rs`).
//!
//! Invariant: rustls is always shown all input that it has not consumed, and nothing after its first error; else it panics,
//! as it keeps positions in that input. What a call leaves of the scratch is therefore in `incoming`, and goes first into
//! the next.

use crate::exporter::{self, ExporterCapture};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::tls13::OkmBlock;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{ClientConfig, CommonState, ServerConfig};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

/// What is read from a socket at once. Four records and a bit: more saves nothing, one record costs 15 % more in bulk.
const SCRATCH: usize = 72 * 1024;

/// Plaintext gathered before it must be sent. When full, the writer waits for the socket.
const OUTGOING_MAX: usize = 64 * 1024;

/// Buffers that a thread keeps for its connections' next bursts; more are given back to the allocator.
const SPARE_MAX: usize = 4;

/// A record's head, content type and tag: what encryption adds to 16 kB at most.
const RECORD_OVERHEAD: usize = 64;

const RECORD: usize = 16 * 1024;

/// What a packet carries on most lines, headers included.
const ON_ETHERNET: usize = 1500;

/// Headers of IPv4 and IPv6, each with TCP's and its timestamps (RFC 7323 §3).
const HEADERS: [usize; 2] = [20 + 32, 40 + 32];

thread_local! {
    static SCRATCH_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// TLS did: a version, a certificate, an alert of the peer.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The connection did.
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) struct TlsStream {
    tcp: TcpStream,
    session: Session,
    exporter_secret: Option<OkmBlock>,
    /// Ciphertext that is not a whole record yet.
    incoming: Vec<u8>,
    /// See [`Self::line_in`].
    line_in: u64,
    /// Of each packet from the peer.
    headers: usize,
    plain: Queue,
    /// Plaintext on its way out.
    outgoing: Vec<u8>,
    sealed: Queue,
    peer_closed: bool,
    close_queued: bool,
    /// rustls has reported an error; it must not be called again.
    failed: bool,
}

/// Bytes that are taken from the front.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    at: usize,
}

enum Session {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

impl TlsStream {
    /// Does a client's handshake.
    pub async fn connect(
        config: &ClientConfig,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> Result<Self, HandshakeError> {
        let mut config = config.clone();
        config.key_log = Arc::new(ExporterCapture(config.key_log));
        let session = UnbufferedClientConnection::new(Arc::new(config), name)?;
        Self::handshake(Session::Client(Box::new(session)), tcp).await
    }

    /// Does a server's handshake; `config` must come from [`capturing`].
    pub async fn accept(config: Arc<ServerConfig>, tcp: TcpStream) -> Result<Self, HandshakeError> {
        let session = UnbufferedServerConnection::new(config)?;
        Self::handshake(Session::Server(Box::new(session)), tcp).await
    }

    async fn handshake(session: Session, tcp: TcpStream) -> Result<Self, HandshakeError> {
        let is_ipv6 = tcp.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_ipv6());
        let mut this = Self {
            tcp,
            session,
            exporter_secret: None,
            incoming: Vec::new(),
            line_in: 0,
            headers: HEADERS[usize::from(is_ipv6)],
            plain: Queue::default(),
            outgoing: Vec::new(),
            sealed: Queue::default(),
            peer_closed: false,
            close_queued: false,
            failed: false,
        };
        // A client speaks first; a server has nothing to say yet.
        let mut fed = this.process(&mut [], &mut |_| {}).map(drop);
        loop {
            // The alert that says what was wrong goes out before the error is reported.
            let sent = std::future::poll_fn(|cx| this.poll_send_sealed(cx)).await;
            fed?;
            sent?;
            if !this.session.state().is_handshaking() {
                return Ok(this);
            }
            fed = match std::future::poll_fn(|cx| this.poll_read_into(cx, &mut ReadBuf::new(&mut []))).await {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => Ok(()),
                Err(HandshakeError::Tls(error)) => Err(error),
                Err(error) => return Err(error),
            };
        }
    }

    /// Bytes received as the line carries them: TLS, and for each segment the headers of TCP (with timestamps) and IP. What
    /// is read at once is taken to have come in full segments, so that it is rather too little.
    pub fn line_in(&self) -> u64 {
        self.line_in
    }

    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.session.state().peer_certificates()
    }

    /// See [`exporter::export`]; none in TLS 1.2.
    pub fn export(&self, label: &[u8], context: &[u8]) -> Option<[u8; 32]> {
        let suite = self.session.state().negotiated_cipher_suite()?;
        exporter::export(suite, self.exporter_secret.as_ref()?, label, context)
    }

    /// Reads plaintext; nothing at the peer's orderly close, an error at any other end.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            self.plain.move_into(buf);
            if buf.filled().len() > before || self.peer_closed || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.failed {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            let received = ready!(self.poll_read_into(cx, buf));
            self.check_received(cx, received)?;
        }
    }

    /// Receives plaintext and passes it on where it was decrypted, record by record; nothing at the peer's orderly close,
    /// an error at any other end.
    pub fn poll_pass(&mut self, cx: &mut Context<'_>, pass: &mut dyn FnMut(&[u8])) -> Poll<io::Result<()>> {
        if !self.plain.rest().is_empty() {
            pass(self.plain.rest());
            self.plain.consume(self.plain.rest().len());
            return Poll::Ready(Ok(()));
        }
        let mut passed = false;
        while !passed && !self.peer_closed {
            if self.failed {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            let received = ready!(self.poll_receive(cx, &mut |record| {
                passed |= !record.is_empty();
                pass(record);
            }));
            self.check_received(cx, received)?;
        }
        Poll::Ready(Ok(()))
    }

    fn check_received(
        &mut self,
        cx: &mut Context<'_>,
        received: Result<usize, HandshakeError>,
    ) -> io::Result<()> {
        match received {
            Ok(0) if !self.peer_closed => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(HandshakeError::Io(error)) => Err(error),
            Err(HandshakeError::Tls(error)) => {
                // The alert for the peer; the error at hand is the one that counts.
                let _ = self.poll_send_sealed(cx);
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    /// Where to append plaintext that is to be sent: at most a frame or two at a time.
    pub fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Vec<u8>>> {
        if self.close_queued {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.outgoing.len() >= OUTGOING_MAX {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(self.outgoing()))
    }

    /// A whole buffer of plaintext that is to be sent; none else may wait.
    pub fn put_outgoing(&mut self, bytes: Vec<u8>) {
        if self.outgoing.is_empty() {
            give_spare(std::mem::replace(&mut self.outgoing, bytes));
        } else {
            self.outgoing.extend_from_slice(&bytes);
            give_spare(bytes);
        }
    }

    /// As [`poll_outgoing`](Self::poll_outgoing), for the little that must not wait.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        if self.outgoing.capacity() == 0 {
            self.outgoing = take_spare();
        }
        &mut self.outgoing
    }

    /// Encrypts and sends everything. Pending while the socket does not take it all.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_sealed(cx))?;
        if self.outgoing.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.seal()?;
        self.poll_send_sealed(cx)
    }

    /// Sends everything, the TLS close, and the end of the TCP stream.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_queued && !self.failed {
            ready!(self.poll_send(cx))?;
            self.close_queued = true;
            self.seal()?;
        }
        ready!(self.poll_send_sealed(cx))?;
        match ready!(Pin::new(&mut self.tcp).poll_shutdown(cx)) {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }

    fn poll_send_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.rest().is_empty() {
            let count = ready!(Pin::new(&mut self.tcp).poll_write(cx, self.sealed.rest()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Receives once; plaintext goes to `buf` as far as there is room, else to `plain`. How many bytes came from the socket.
    fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<usize, HandshakeError>> {
        let mut plain = std::mem::take(&mut self.plain);
        let received = self.poll_receive(cx, &mut |record| {
            let fits = if plain.rest().is_empty() { record.len().min(buf.remaining()) } else { 0 };
            buf.put_slice(&record[..fits]);
            plain.append(&record[fits..]);
        });
        self.plain = plain;
        received
    }

    /// Receives once and processes it; plaintext goes to `received`. How many bytes came from the socket.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        received: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<usize, HandshakeError>> {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let kept = self.incoming.len();
            if kept >= scratch.len() {
                let error =
                    io::Error::new(io::ErrorKind::InvalidData, "a TLS message is longer than any may be");
                return Poll::Ready(Err(error.into()));
            }
            let mut fresh = ReadBuf::new(&mut scratch[kept..]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut fresh))?;
            let count = fresh.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            let segments = count.div_ceil(ON_ETHERNET - self.headers);
            self.line_in += (count + segments * self.headers) as u64;
            scratch[..kept].copy_from_slice(&self.incoming);
            let input = &mut scratch[..kept + count];
            let consumed = self.process(input, received)?;
            let rest = &input[consumed..];
            if rest.is_empty() {
                self.incoming = Vec::new();
            } else {
                self.incoming.clear();
                self.incoming.extend_from_slice(rest);
            }
            Poll::Ready(Ok(count))
        })
    }

    /// Processes input, of which it returns how much was consumed.
    fn process(&mut self, input: &mut [u8], received: &mut dyn FnMut(&[u8])) -> Result<usize, rustls::Error> {
        let processed = match &mut self.session {
            Session::Client(session) => {
                process(session.as_mut(), input, &mut self.sealed, received, |_, _| Ok(()))
            }
            Session::Server(session) => {
                process(session.as_mut(), input, &mut self.sealed, received, |_, _| Ok(()))
            }
        };
        if let Some(secret) = exporter::take() {
            self.exporter_secret = Some(secret);
        }
        self.processed(processed)
    }

    /// Encrypts `outgoing`, and the close if that is queued, into `sealed`.
    fn seal(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        let (outgoing, plain, close) = (&self.outgoing, &mut self.plain, self.close_queued);
        let received = |record: &[u8]| plain.append(record);
        let processed = match &mut self.session {
            Session::Client(session) => {
                process(session.as_mut(), &mut incoming, &mut self.sealed, received, |traffic, sealed| {
                    encrypt(traffic, outgoing, close, sealed.tail())
                })
            }
            Session::Server(session) => {
                process(session.as_mut(), &mut incoming, &mut self.sealed, received, |traffic, sealed| {
                    encrypt(traffic, outgoing, close, sealed.tail())
                })
            }
        };
        let consumed =
            self.processed(processed).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        incoming.drain(..consumed);
        self.incoming = incoming;
        self.outgoing.clear();
        give_spare(std::mem::take(&mut self.outgoing));
        Ok(())
    }

    fn processed(&mut self, processed: Result<Processed, rustls::Error>) -> Result<usize, rustls::Error> {
        self.failed |= processed.is_err();
        let processed = processed?;
        self.peer_closed |= processed.peer_closed;
        Ok(processed.consumed)
    }
}

/// A server configuration whose connections can export; once per configuration.
pub(crate) fn capturing(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.key_log = Arc::new(ExporterCapture(config.key_log));
    Arc::new(config)
}

impl Session {
    fn state(&self) -> &CommonState {
        match self {
            Self::Client(session) => session,
            Self::Server(session) => session,
        }
    }
}

/// The two kinds of connection have the same method on different types.
trait Process {
    type Data;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(input)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(input)
    }
}

struct Processed {
    consumed: usize,
    peer_closed: bool,
}

/// Runs rustls until it wants more input: plaintext to `received`, what it has to say itself to `sealed`. Where
/// application data may be sent it calls `write` and is done.
fn process<P: Process>(
    session: &mut P,
    input: &mut [u8],
    sealed: &mut Queue,
    mut received: impl FnMut(&[u8]),
    write: impl FnOnce(WriteTraffic<'_, P::Data>, &mut Queue) -> Result<(), rustls::Error>,
) -> Result<Processed, rustls::Error> {
    let mut done = Processed { consumed: 0, peer_closed: false };
    loop {
        let UnbufferedStatus { mut discard, state } = session.process(&mut input[done.consumed..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    received(record.payload);
                    discard += record.discard;
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut |out| data.encode(out), sealed.tail())?
            }
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => done.peer_closed = true,
            Ok(ConnectionState::WriteTraffic(traffic)) => {
                done.consumed += discard;
                return write(traffic, sealed).map(|()| done);
            }
            // Early data is off; nothing else is known that would go on without input.
            Ok(_) => {
                done.consumed += discard;
                return Ok(done);
            }
            Err(error) => {
                // What is left for rustls to say is one alert. Asked again, it would fail on the same input again.
                done.consumed += discard;
                if let Ok(ConnectionState::EncodeTlsData(mut data)) =
                    session.process(&mut input[done.consumed..]).state
                {
                    encode(&mut |out| data.encode(out), sealed.tail())?;
                }
                return Err(error);
            }
        }
        done.consumed += discard;
    }
}

/// Appends what rustls encodes, giving it the room that it asks for.
fn encode(
    encode: &mut dyn FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    sealed: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = sealed.len();
    let mut room = 0;
    loop {
        sealed.resize(start + room, 0);
        match encode(&mut sealed[start..]) {
            Ok(written) => {
                sealed.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size
            }
            Err(error) => return Err(rustls::Error::General(error.to_string())),
        }
    }
}

/// Encrypts `plain` into records, and the close if told to.
fn encrypt<D>(
    mut traffic: WriteTraffic<'_, D>,
    plain: &[u8],
    close: bool,
    sealed: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let general = |error: EncryptError| rustls::Error::General(error.to_string());
    let start = sealed.len();
    sealed.resize(start + plain.len() + (plain.len() / RECORD + 2) * RECORD_OVERHEAD, 0);
    let mut end = start;
    if !plain.is_empty() {
        end += traffic.encrypt(plain, &mut sealed[end..]).map_err(general)?;
    }
    if close {
        end += traffic.queue_close_notify(&mut sealed[end..]).map_err(general)?;
    }
    sealed.truncate(end);
    Ok(())
}

impl Queue {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn tail(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = take_spare();
        }
        &mut self.bytes
    }

    fn append(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.tail().extend_from_slice(bytes);
        }
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
        if self.at == self.bytes.len() {
            self.at = 0;
            self.bytes.clear();
            give_spare(std::mem::take(&mut self.bytes));
        }
    }

    fn move_into(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.rest().len().min(buf.remaining());
        if count > 0 {
            buf.put_slice(&self.rest()[..count]);
            self.consume(count);
        }
    }
}

/// An empty buffer, if the thread has one that was used before; it comes back by being sent.
pub(crate) fn take_spare() -> Vec<u8> {
    SPARE.with_borrow_mut(|spare| spare.pop().unwrap_or_default())
}

/// Gives a buffer back to the thread. Whatever is in it is gone.
pub(crate) fn give_spare(mut buffer: Vec<u8>) {
    buffer.clear();
    // What a burst blew up is not kept.
    if (1..=2 * OUTGOING_MAX).contains(&buffer.capacity()) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        });
    }
}
