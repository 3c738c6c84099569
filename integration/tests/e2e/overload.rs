//! A machine that is busy, and links that lose a little: no reason to call a link dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::flow::FlowOptions;
use integration::lanes::{Lanes, Side};
use integration::links::{LaneDuo, PATIENCE, Watch, links};
use integration::skip::case;
use integration::topology::{Family, Offloads};
use integration::wait;

/// Threads that do nothing as fast as they can, two for each core.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let spin = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        Self { threads: (0..2 * cores).map(spin).collect(), stop }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Seconds of the busy run: `TAPD_BUSY_SECONDS`, 60 without it.
fn seconds() -> u64 {
    std::env::var("TAPD_BUSY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn perf_no_false_link_down_at_full_cpu_with_loss() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 2)?;
        lanes.set_offloads(Offloads::Wire)?;
        let config = lanes.config();
        let duo = LaneDuo::with(lanes, &config)?;
        for side in [Side::Alpha, Side::Beta] {
            duo.lanes.add_rule(side, 0, "numgen random mod 100 < 1 drop")?;
        }
        let watches = [Watch::start(&duo.alpha)?, Watch::start(&duo.beta)?];
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        let busy = Busy::start();
        let begin = Instant::now();
        let span = Duration::from_secs(seconds());
        wait::until("the busy time to be over", span + PATIENCE, || begin.elapsed() >= span)?;
        drop(busy);
        let outcome = flow.finish()?;
        println!("{outcome:?}");
        for ((node, peer), watch) in duo.nodes().into_iter().zip(&watches) {
            let suspects = watch.count("link_suspect");
            println!("{}: {suspects} suspicions in {span:?}", node.name());
            ensure!(watch.count("link_down") == 0, "{}: {:?}", node.name(), watch.events());
            ensure!(watch.count("peer_down") == 0, "{}: {:?}", node.name(), watch.events());
            for one in links(node, peer)? {
                let falls = one.transitions("up", "down") + one.transitions("suspect", "down");
                ensure!(falls == 0, "{}: {one:?}", node.name());
            }
        }
        // One in a hundred is lost on the first link and nothing but that.
        ensure!(outcome.lost < outcome.sent / 20, "{outcome:?}");
        Ok(())
    });
}
