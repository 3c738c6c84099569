//! A capture on its way to the client that asked for it.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use encap::id::Vni;
use fastpath::capture::{CaptureDrain, CaptureWriter};
use log::{info, warn};

use crate::control::hung_up;

/// How long a write may block before the client counts as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle capture looks whether its client is still there.
const IDLE: Duration = Duration::from_millis(200);

/// Writes frames until the client is gone or has its count. Runs on the connection's own thread.
pub(super) fn run(
    drain: &CaptureDrain,
    names: HashMap<Vni, String>,
    count: Option<u64>,
    stream: UnixStream,
) {
    if let Err(error) = stream_frames(drain, names, count, &stream) {
        // The client going away ends a capture; nothing else should.
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            warn!("capture ended: {error}");
        }
    }
    let dropped = drain.dropped();
    if dropped > 0 {
        info!("capture: {dropped} frames were not captured, the client being too slow");
    }
}

fn stream_frames(
    drain: &CaptureDrain,
    names: HashMap<Vni, String>,
    count: Option<u64>,
    stream: &UnixStream,
) -> std::io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let buffered = std::io::BufWriter::with_capacity(1 << 16, stream);
    let mut writer = CaptureWriter::new(buffered, names)?;
    writer.flush()?;
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let frame = match drain.try_next() {
            Some(frame) => frame,
            None => {
                // Nothing waits: what was written becomes visible before the next sleep.
                writer.flush()?;
                let Some(frame) = drain.next(IDLE) else {
                    if hung_up(stream) {
                        return Ok(());
                    }
                    continue;
                };
                frame
            }
        };
        writer.write(&frame)?;
        left -= 1;
    }
    writer.flush()
}
