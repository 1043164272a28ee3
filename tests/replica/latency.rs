//! Round trip of a strict 4 KiB write over loopback TLS, without FUSE. A figure, not a verdict:
//! `cargo test --release --test replica -- --ignored --nocapture latency`.

use crate::support::Pair;
use skc::ports::Gate;
use skc::proto::stream::Plan;
use std::time::Instant;

#[test]
#[ignore = "a measurement"]
fn latency_of_a_strict_write() {
    for tls in [false, true] {
        let mut pair = Pair::new();
        pair.gate(Gate::Alone(pair.epoch));
        pair.try_connect(Plan::Resync { quarantine: false }, tls).unwrap();
        pair.finish_resync();
        pair.gate(Gate::Replicated(pair.epoch));
        pair.mirror.create("f").unwrap();
        let id = pair.mirror.resolve("f").unwrap();
        let data = vec![7; 4096];
        let mut times: Vec<u64> = (0..20_000_u64)
            .map(|n| {
                let start = Instant::now();
                let unique = pair.mirror.write_id(id, n % 4096 * 4096, &data).unwrap();
                assert_eq!(pair.mirror.wait(unique), 0);
                start.elapsed().as_nanos() as u64
            })
            .collect();
        times.sort_unstable();
        let at = |p: usize| times[times.len() * p / 1000] / 1000;
        println!("strict 4 KiB write, tls {tls}: p50 {} us, p99 {} us", at(500), at(990));
        let big = vec![7; 1 << 20];
        let start = Instant::now();
        let waiting: Vec<_> = (0..300).map(|n| pair.mirror.write_id(id, n << 20, &big).unwrap()).collect();
        for unique in waiting {
            assert_eq!(pair.mirror.wait(unique), 0);
        }
        println!("1 MiB writes, tls {tls}: {:.0} MB/s", 300.0 * 1.048_576 / start.elapsed().as_secs_f64());
    }
}
