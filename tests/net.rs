//! Virtual IPs, announcements and probes between two real network stacks.
//!
//! Each test runs itself again inside a network namespace of its own (`unshare -n`), with a second one as
//! the other machine, joined by a veth pair. Both vanish with their processes. Needs root; without it
//! the tests say so and pass.

mod net_support;

use net_support::{HERE, THERE, VIP, Wire, isolated};
use skc::base::{ClusterId, Epoch};
use skc::bus::Bus;
use skc::controller::Backoff;
use skc::net::iface::Netlink;
use skc::net::{DecisionToken, Lease, Mac, Observer, Presence, Vip, VipEvent, VipHandle, VipKeeper, Witness};
use skc::ports::{Answer, PortError, VipPlace, VipTrustee};
use skc::reconcile;
use skc::reconcile::vip::{Desired, Standing, VipReconciler, wakes};
use skc::sys::clock::boottime;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn vip() -> Vip {
    format!("{VIP}/24").parse().unwrap()
}

fn token() -> DecisionToken {
    DecisionToken { epoch: Epoch { g: 1, s: 1 }, serial: 1 }
}

type Seen = Arc<Mutex<Vec<VipEvent>>>;

fn observer() -> (Seen, Observer) {
    let seen = Seen::default();
    let sink = seen.clone();
    (seen, Arc::new(move |event| sink.lock().unwrap().push(event)))
}

async fn hold(lease_ms: u64) -> (VipHandle, Seen) {
    let (seen, observer) = observer();
    let lease = Lease::from_timeout(lease_ms);
    (VipKeeper::start(vec![vip()], lease, token(), observer).await.unwrap(), seen)
}

async fn held_here(netlink: &Netlink, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    netlink.interfaces().await.unwrap().holders(address).next().is_some()
}

/// Blocks the only thread.
fn stall(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Polls until `done` or panics at the deadline; returns the time it took.
async fn eventually(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await; // the pace of polling, not a wait for an effect
    }
    start.elapsed()
}

#[test]
fn an_address_that_nobody_renews_is_dropped_by_the_kernel() {
    isolated("an_address_that_nobody_renews_is_dropped_by_the_kernel", async |_wire: Wire| {
        let netlink = Netlink::open().unwrap();
        let index = netlink.interfaces().await.unwrap().on_link(THERE.parse().unwrap()).unwrap().index;
        for text in [format!("{VIP}/24"), "fd77::100/64".to_owned()] {
            let vip: Vip = text.parse().unwrap();
            netlink.set_vip(&vip, index, Lease::from_timeout(500)).await.unwrap();
            let address = vip.address.to_string();
            assert!(held_here(&netlink, &address).await);
            let took = eventually("dropped", 3 * SECOND, async || !held_here(&netlink, &address).await).await;
            println!("{vip}: lease of 1 s ended after {took:?}");
            assert!(took >= Duration::from_millis(900), "{took:?}");
            assert!(took <= Duration::from_millis(2100), "{took:?}");
        }
    });
}

#[test]
fn a_renewed_address_stays_and_a_released_one_goes() {
    isolated("a_renewed_address_stays_and_a_released_one_goes", async |_wire: Wire| {
        let netlink = Netlink::open().unwrap();
        let (handle, seen) = hold(500).await;
        let start = Instant::now();
        let first = handle.states()[0].renewed;
        eventually("three leases pass", 5 * SECOND, async || {
            assert!(held_here(&netlink, VIP).await, "gone after {:?}", start.elapsed());
            start.elapsed() > 3 * SECOND
        })
        .await;
        let state = handle.states().remove(0);
        assert_eq!(state.lost, None);
        assert!(boottime() - first > 2900 && state.age_ms() < 500, "{state:?}");
        handle.release().await.unwrap();
        assert!(!held_here(&netlink, VIP).await);
        let seen = seen.lock().unwrap();
        assert!(matches!(seen[..], [VipEvent::Held { .. }, VipEvent::Released { .. }]), "{seen:?}");
    });
}

#[test]
fn a_keeper_that_wakes_late_gives_up_instead_of_adding_again() {
    isolated("a_keeper_that_wakes_late_gives_up_instead_of_adding_again", async |_wire: Wire| {
        let netlink = Netlink::open().unwrap();
        let (handle, seen) = hold(500).await;
        // The runtime has one thread: blocking it stops the keeper, as SIGSTOP would.
        stall(Duration::from_millis(1700));
        eventually("lost", SECOND, async || handle.states()[0].lost.is_some()).await;
        let start = Instant::now();
        eventually("it stays away", 2 * SECOND, async || {
            assert!(!held_here(&netlink, VIP).await);
            start.elapsed() > SECOND
        })
        .await;
        assert!(matches!(seen.lock().unwrap().last(), Some(VipEvent::Lost { .. })));
        handle.release().await.unwrap();
    });
}

#[test]
fn a_dropped_handle_gives_the_address_up() {
    isolated("a_dropped_handle_gives_the_address_up", async |_wire: Wire| {
        let netlink = Netlink::open().unwrap();
        let (handle, _) = hold(10_000).await;
        drop(handle);
        eventually("removed", SECOND, async || !held_here(&netlink, VIP).await).await;
    });
}

#[test]
fn the_other_side_hears_both_forms_of_gratuitous_arp() {
    isolated("the_other_side_hears_both_forms_of_gratuitous_arp", async |wire: Wire| {
        let mut heard = wire.capture();
        let (handle, _) = hold(500).await;
        let mine = Wire::mac_here().to_string();
        for form in ["Request", "Reply"] {
            let line =
                heard.wait(2 * SECOND, |l| l.contains(form) && l.contains(&format!("{VIP}={mine}"))).await;
            println!("{line}");
        }
        // The burst: four announcements of two packets within about a second.
        for _ in 0..6 {
            heard.wait(2 * SECOND, |l| l.contains(&format!("{VIP}={mine}"))).await;
        }
        handle.announce();
        heard.wait(SECOND, |l| l.contains(&format!("{VIP}={mine}"))).await;
        handle.release().await.unwrap();
    });
}

#[test]
fn a_stranger_with_the_address_is_a_conflict_and_nothing_is_added() {
    isolated("a_stranger_with_the_address_is_a_conflict_and_nothing_is_added", async |wire: Wire| {
        wire.there(&["ip", "addr", "add", &format!("{VIP}/24"), "dev", "v1"]);
        let (_, observer) = observer();
        let lease = Lease::from_timeout(500);
        let error = VipKeeper::start(vec![vip()], lease, token(), observer).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{VIP} is already used by {}", wire.mac_there()));
        assert!(!held_here(&Netlink::open().unwrap(), VIP).await);
    });
}

#[test]
fn a_claim_while_we_hold_is_reported_and_answered() {
    isolated("a_claim_while_we_hold_is_reported_and_answered", async |wire: Wire| {
        let (handle, seen) = hold(10_000).await;
        let mut heard = wire.capture();
        wire.claim(VIP);
        let claims = |e: &VipEvent| matches!(e, VipEvent::Conflict { mac, .. } if *mac == wire.mac_there());
        eventually("reported", 2 * SECOND, async || seen.lock().unwrap().iter().any(claims)).await;
        let mine = Wire::mac_here().to_string();
        heard.wait(2 * SECOND, |l| l.contains(&format!("{VIP}={mine}"))).await;
        handle.release().await.unwrap();
    });
}

#[test]
fn a_permanent_address_of_this_node_is_refused_and_left_alone() {
    isolated("a_permanent_address_of_this_node_is_refused_and_left_alone", async |_wire: Wire| {
        let (_, observer) = observer();
        let own: Vip = Vip { interface: Some("v0".into()), ..format!("{HERE}/24").parse().unwrap() };
        let error = VipKeeper::start(vec![own], Lease::from_timeout(0), token(), observer).await.unwrap_err();
        assert_eq!(error.code(), "SKC-E5009", "{error}");
        let netlink = Netlink::open().unwrap();
        assert!(!netlink.remove_vip(HERE.parse().unwrap()).await.unwrap());
        assert!(held_here(&netlink, HERE).await);
    });
}

#[test]
fn a_probe_sees_who_holds_the_address_or_nobody() {
    isolated("a_probe_sees_who_holds_the_address_or_nobody", async |wire: Wire| {
        let gap = Duration::from_millis(60);
        let six: Vip = "fd77::100/64".parse().unwrap();
        for vip in [vip(), six] {
            assert_eq!(skc::net::probe::probe_vip(&vip, 3, gap).await, Presence::Silent, "{vip}");
            wire.there(&["ip", "addr", "add", &vip.to_string(), "dev", "v1", "nodad"]);
            let answer = skc::net::probe::probe_vip(&vip, 3, gap).await;
            assert_eq!(answer, Presence::Answered { mac: Some(wire.mac_there()) }, "{vip}");
        }
    });
}

#[test]
fn a_probe_through_a_dead_interface_is_not_silence() {
    isolated("a_probe_through_a_dead_interface_is_not_silence", async |wire: Wire| {
        wire.there(&["ip", "link", "set", "v1", "down"]);
        let gap = Duration::from_millis(20);
        eventually("no carrier", SECOND, async || {
            matches!(skc::net::probe::probe_vip(&vip(), 1, gap).await, Presence::Unknown { .. })
        })
        .await;
    });
}

#[test]
fn a_round_ends_within_its_window_and_says_who_lives() {
    isolated("a_round_ends_within_its_window_and_says_who_lives", async |wire: Wire| {
        let window = Duration::from_millis(300);
        let peer: IpAddr = THERE.parse().unwrap();
        let nobody: IpAddr = "10.77.0.77".parse().unwrap();
        let round = async |peer, witness| skc::net::probe_round(&[vip()], &[peer], &[witness], window).await;

        let silent = round(nobody, nobody).await;
        assert_eq!((&silent.vip, &silent.peer), (&Presence::Silent, &Presence::Silent), "{silent:?}");
        assert_eq!(silent.witness, Witness::Unreachable);
        assert!(silent.elapsed < window + Duration::from_millis(150), "{silent:?}");

        let reachable = round(nobody, peer).await;
        assert_eq!((&reachable.vip, reachable.witness), (&Presence::Silent, Witness::Reachable));

        let alive = round(peer, peer).await;
        assert_eq!(alive.peer, Presence::Answered { mac: Some(wire.mac_there()) });
        assert!(alive.elapsed < Duration::from_millis(200), "{alive:?}");
        assert_eq!(alive.witness, Witness::Reachable);
        println!("silent {:?}, alive {:?}", silent.elapsed, alive.elapsed);
    });
}

#[test]
fn ping_measures_who_answers_and_gives_up_on_who_does_not() {
    isolated("ping_measures_who_answers_and_gives_up_on_who_does_not", async |_wire: Wire| {
        let limit = Duration::from_millis(200);
        let ping = async |to: &str| skc::net::ping::ping(to.parse().unwrap(), limit).await.unwrap();
        for alive in [THERE, "127.0.0.1", "::1", "fd77::2"] {
            // Neighbour discovery over a link that is only just up may need its second try, after 1 s.
            eventually(alive, 5 * SECOND, async || ping(alive).await.is_some_and(|r| r < limit)).await;
        }
        for dead in ["10.77.0.77", "192.0.2.1", "fd99::1"] {
            assert_eq!(ping(dead).await, None, "{dead}");
        }
    });
}

/// A guard that notes whether the address was there already when it was told, and can refuse.
#[derive(Clone, Default)]
struct Guard {
    told: Arc<Mutex<Vec<(usize, bool)>>>,
    refuses: Arc<Mutex<bool>>,
}

impl VipTrustee for Guard {
    fn entrust<'a>(&'a self, _: &'a ClusterId, places: &'a [VipPlace]) -> Answer<'a, ()> {
        Box::pin(async move {
            if *self.refuses.lock().unwrap() {
                return Err(PortError { code: "SKC-E7027", message: "no".into() });
            }
            let there = held_here(&Netlink::open().unwrap(), VIP).await;
            self.told.lock().unwrap().push((places.len(), there));
            Ok(())
        })
    }
}

fn decided(serial: u64) -> Desired {
    let token = DecisionToken { serial, ..token() };
    Desired::Held { vips: vec![vip()], lease: Lease::from_timeout(500), token }
}

#[test]
fn the_reconciler_holds_releases_and_obeys_the_late_loop_rule() {
    isolated("the_reconciler_holds_releases_and_obeys_the_late_loop_rule", async |_wire: Wire| {
        let shop = ClusterId("shop".into());
        let bus = Bus::new("node-a");
        let standing = Arc::new(Mutex::new(Standing::default()));
        let stand = standing.clone();
        let on_standing = Arc::new(move |_: &ClusterId, now: &Standing| *stand.lock().unwrap() = now.clone());
        let make = |wishes| VipReconciler::new(wishes, Guard::default(), bus.clone(), on_standing);
        let plane = reconcile::start(&bus, wakes, Backoff::default(), make);
        let netlink = Netlink::open().unwrap();
        let absent = Desired::Absent { vips: vec![vip()] };

        plane.wishes.reach(&shop, decided(1)).await.unwrap();
        assert!(held_here(&netlink, VIP).await);
        assert_eq!(plane.reconciler.held(&shop).len(), 1);
        assert_eq!(standing.lock().unwrap().held, [vip()]);
        plane.wishes.reach(&shop, absent.clone()).await.unwrap();
        assert!(!held_here(&netlink, VIP).await);
        assert_eq!(*standing.lock().unwrap(), Standing::default());

        plane.wishes.reach(&shop, decided(2)).await.unwrap();
        stall(Duration::from_millis(1700));
        // The keeper's fact on the bus makes the reconciler look: nobody asks it to.
        let lost = async || standing.lock().unwrap().lost.is_some_and(|token| token.serial == 2);
        eventually("lost", SECOND, lost).await;
        plane.wishes.reach(&shop, decided(2)).await.unwrap();
        assert!(!held_here(&netlink, VIP).await, "came back without a new decision");
        plane.wishes.reach(&shop, decided(3)).await.unwrap();
        assert!(held_here(&netlink, VIP).await);
        plane.wishes.reach(&shop, absent.clone()).await.unwrap();

        // What a former life left is removed.
        let index = netlink.interfaces().await.unwrap().on_link(THERE.parse().unwrap()).unwrap().index;
        netlink.set_vip(&vip(), index, Lease::from_timeout(60_000)).await.unwrap();
        plane.wishes.reach(&shop, absent).await.unwrap();
        assert!(!held_here(&netlink, VIP).await);

        let kinds: Vec<_> = bus.history(100).iter().map(|e| e.text.clone()).collect();
        let held = format!("virtual IP {VIP}/24 held on v0");
        let released = format!("virtual IP {VIP}/24 released");
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        assert_eq!((&kinds[0], &kinds[1], &kinds[2]), (&held, &released, &held));
        assert!(kinds[3].contains("lost: renewed"), "{}", kinds[3]);
        assert_eq!((&kinds[4], &kinds[5]), (&held, &released));
    });
}

#[test]
fn the_guard_knows_an_address_before_it_is_added_and_until_it_is_gone() {
    isolated("the_guard_knows_an_address_before_it_is_added_and_until_it_is_gone", async |_wire: Wire| {
        let shop = ClusterId("shop".into());
        let (bus, guard) = (Bus::new("node-a"), Guard::default());
        let make = |wishes| VipReconciler::new(wishes, guard.clone(), bus.clone(), Arc::new(|_, _| {}));
        let plane = reconcile::start(&bus, wakes, Backoff::default(), make);
        let netlink = Netlink::open().unwrap();

        *guard.refuses.lock().unwrap() = true;
        assert!(plane.wishes.reach(&shop, decided(1)).await.is_err());
        assert!(!held_here(&netlink, VIP).await, "added behind the guard's back");
        *guard.refuses.lock().unwrap() = false;
        plane.wishes.reach(&shop, decided(1)).await.unwrap();
        plane.wishes.reach(&shop, Desired::Absent { vips: vec![vip()] }).await.unwrap();
        assert_eq!(*guard.told.lock().unwrap(), [(1, false), (0, false)]);
    });
}

#[test]
fn a_drop_interrupts_a_hold_that_is_under_way() {
    isolated("a_drop_interrupts_a_hold_that_is_under_way", async |_wire: Wire| {
        let shop = ClusterId("shop".into());
        let (bus, guard) = (Bus::new("node-a"), Guard::default());
        let make = |wishes| VipReconciler::new(wishes, guard.clone(), bus.clone(), Arc::new(|_, _| {}));
        let plane = reconcile::start(&bus, wakes, Backoff::default(), make);
        let netlink = Netlink::open().unwrap();
        for (serial, pause) in (1..).zip([0, 2, 20, 60, 99, 100, 101, 103, 110]) {
            plane.wishes.set(&shop, decided(serial));
            tokio::time::sleep(Duration::from_millis(pause)).await; // pace: somewhere within the hold
            let start = Instant::now();
            plane.wishes.reach(&shop, Desired::Absent { vips: vec![vip()] }).await.unwrap();
            assert!(!held_here(&netlink, VIP).await, "left behind after {pause} ms");
            assert!(start.elapsed() < SECOND, "{:?} after {pause} ms", start.elapsed());
        }
    });
}

#[test]
fn macs_read_back() {
    assert_eq!(net_support::mac("00:1b:02:ff:04:05"), Mac([0, 0x1b, 2, 0xff, 4, 5]));
}

/// Not a test: what the other namespace runs. See `net_support::helper`.
#[test]
fn helper() {
    net_support::helper();
}
