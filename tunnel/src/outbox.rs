//! Chunks that wait for a socket to take them.

use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Chunks in one `writev`.
const GATHERED: usize = 32;

/// Chunks in the order in which they are to be written, none of them empty.
#[derive(Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether one more chunk could not be written together with those that wait.
    pub fn is_full(&self) -> bool {
        self.chunks.len() >= GATHERED
    }

    /// Writes once, as much as one system call takes. Not to be called when it is empty.
    pub fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        let io = Pin::new(io);
        let written = match self.chunks.front() {
            // What is alone, as it mostly is, costs the kernel less by `send` than by `writev`.
            Some(chunk) if self.chunks.len() == 1 => ready!(io.poll_write(cx, chunk))?,
            _ => {
                let mut slices = [IoSlice::new(&[]); GATHERED];
                for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                    *slice = IoSlice::new(chunk);
                }
                ready!(io.poll_write_vectored(cx, &slices[..self.chunks.len().min(GATHERED)]))?
            }
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written(written);
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.chunks.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes a few bytes at a time, through both ways of writing.
    struct Narrow {
        width: usize,
        taken: Vec<u8>,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = self.width.min(bytes.len());
            self.taken.extend(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let count = self.width.min(all.len());
            self.taken.extend(&all[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Goal: whatever a socket takes at a time, every byte leaves once and in order, and what waits is counted.
    #[test]
    fn bytes_leave_in_order_however_little_is_taken() {
        let mut cx = Context::from_waker(Waker::noop());
        for width in 1..200 {
            let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
            for number in 0..50_u8 {
                let chunk = vec![number; usize::from(number % 5)];
                expected.extend(&chunk);
                outbox.push(chunk.into());
            }
            let mut socket = Narrow { width, taken: Vec::new() };
            while !outbox.is_empty() {
                assert_eq!(outbox.bytes() + socket.taken.len(), expected.len());
                assert!(matches!(outbox.poll_write(&mut cx, &mut socket), Poll::Ready(Ok(()))));
            }
            assert_eq!((outbox.bytes(), &socket.taken), (0, &expected), "{width} at a time");
        }
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"x"));
        let taken = outbox.poll_write(&mut cx, &mut Narrow { width: 0, taken: Vec::new() });
        assert!(matches!(taken, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
    }
}
