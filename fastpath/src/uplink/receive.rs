//! Datagrams from other nodes: one `recvmmsg` per burst, each message perhaps a run.

use std::io;
use std::os::fd::AsFd;

use encap::wire::buf::{BufPool, Burst, Received};

use super::batch::RxMessage;
use super::socket::UdpUplink;

/// Calls repeated because the kernel reported an earlier datagram's error instead of working.
const MAX_PENDING_RETRIES: usize = 4;

impl UdpUplink {
    /// Adds what one system call gives: up to 16 runs of datagrams.
    ///
    /// A run is up to 65,535 bytes: one that is longer than the buffers of `pool` is lost.
    ///
    /// # Errors
    /// The socket is broken for good; errors of single datagrams are counted.
    pub fn receive_burst(
        &mut self,
        pool: &mut BufPool,
        received: &mut Burst<Received>,
    ) -> io::Result<()> {
        let count = self.receive(pool)?;
        let uplink = self.id;
        self.deliver(count, pool, |_, message, segment_size| {
            let RxMessage { buf, remote, told, .. } = message;
            if let Some(remote) = remote {
                received.push(Received { buf, segment_size, uplink, remote, mark: told.mark });
            }
        });
        Ok(())
    }

    /// Receives into the batch; says how many messages.
    pub(super) fn receive(&mut self, pool: &mut BufPool) -> io::Result<usize> {
        if self.errors_remain {
            self.drain_errors();
        }
        self.rx.fill(pool);
        for _ in 0..MAX_PENDING_RETRIES {
            let error = match self.rx.receive(self.socket.as_fd()) {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(0),
                Some(libc::EINTR | libc::ENOMEM | libc::ENOBUFS) => {}
                Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL) => {
                    return Err(error);
                }
                // What an earlier datagram left on the socket.
                _ => {
                    self.drain_errors();
                }
            }
        }
        Ok(0)
    }

    /// Gives each good message of the batch to `hand`, with the size of its datagrams.
    fn deliver(
        &mut self,
        count: usize,
        pool: &mut BufPool,
        mut hand: impl FnMut(&mut BufPool, RxMessage, usize),
    ) {
        let counters = &self.counters;
        for message in self.rx.take(count) {
            if let Some(drops) = message.told.kernel_drops {
                counters.rx_dropped_kernel.add(drops.wrapping_sub(self.kernel_drops).into());
                self.kernel_drops = drops;
            }
            if message.truncated {
                counters.rx_dropped_truncated.add(1);
                pool.free(message.buf);
            } else if message.remote.is_some() {
                let len = message.buf.len();
                let size = segment_size(message.told.segment_size, len);
                let datagrams = len.div_ceil(size).max(1) as u64;
                counters.rx_messages.add(1);
                counters.rx_datagrams.add(datagrams);
                counters.rx_bytes.add(len as u64);
                if datagrams > 1 {
                    counters.rx_coalesced.add(datagrams);
                }
                hand(pool, message, size);
            } else {
                counters.rx_dropped_bad_address.add(1);
                pool.free(message.buf);
            }
        }
    }
}

/// Bytes of each datagram but the last of `len` bytes: what the kernel `told`, the whole if that
/// makes no sense. Never 0.
fn segment_size(told: Option<libc::c_int>, len: usize) -> usize {
    let told = told.and_then(|size| usize::try_from(size).ok());
    told.filter(|size| (1..=len).contains(size)).unwrap_or(len).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_a_runs_datagrams_lies_within_it() {
        let cases = [
            (None, 100, 100),
            (Some(10), 100, 10),
            (Some(100), 100, 100),
            (Some(101), 100, 100),
            (Some(0), 100, 100),
            (Some(-1), 100, 100),
            (Some(libc::c_int::MAX), 100, 100),
            (None, 0, 1),
            (Some(5), 0, 1),
        ];
        for (told, len, expected) in cases {
            assert_eq!(segment_size(told, len), expected, "{told:?} of {len}");
        }
    }
}
