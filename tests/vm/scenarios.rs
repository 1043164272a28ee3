//! What happens to whole machines.

use crate::guest::{BOOT, Guest};
use crate::pair::{LONG, World, ready, role};
use std::time::Duration;

/// Every name, type, mode, owner, size, mtime, target and byte below the backing directory.
const TREE: &str = "cd /raw/data && find . -path ./.skc -prune -o -printf '%P %y %m %U %G %s %T@ %n %l\\n' | grep -v '^ d' | sort; \
    find . -path ./.skc -prune -o -type f -print0 | sort -z | xargs -0r sha256sum";

#[track_caller]
fn equal(a: &mut Guest, b: &mut Guest) {
    let end = std::time::Instant::now() + LONG;
    loop {
        // The other view of the disk has its own cached pages: flushed and dropped first.
        for guest in [&mut *a, &mut *b] {
            guest.sh("sync; echo 3 > /proc/sys/vm/drop_caches");
        }
        let (one, two) = (a.sh(TREE), b.sh(TREE));
        if one == two {
            return;
        }
        assert!(std::time::Instant::now() < end, "the trees differ:\n{one}\n--\n{two}");
        std::thread::sleep(Duration::from_secs(1)); // pace
    }
}

/// Records that a shell writes one by one, each durable before the next. It stands in the mirror: by the whole path it
/// would go on in the plain directory once the agent is stopped.
const WRITER: &str = "cd /srv/data && for i in $(seq 1 100000); do echo record-$i >> log && sync -d log && echo $i > /root/acked; done";

#[test]
fn one_guest_boots_and_mounts() {
    let Some((world, image)) = World::new() else { return };
    let mut guest = world.machine(&image, 0);
    println!("kernel {}", guest.sh("uname -r"));
    guest.sh(
        "mkdir /srv/plain && (skc passthrough /srv/plain --pidfile /run/plain.pid > /root/plain.log 2>&1 &)",
    );
    guest.until("it is mounted", "grep -q ' /srv/plain fuse' /proc/mounts", LONG);
    guest.sh(
        "cd /srv/plain && echo one > a && ln a b && mv a c && mkdir d && ln -s ../c d/l && chmod 600 c && \
         dd if=/dev/zero of=big bs=1M count=4 conv=fsync status=none && truncate -s 1000 big && rm b && \
         touch -d '2020-01-02 03:04:05.123456789' c && test \"$(cat d/l)\" = one && test $(stat -c %h c) = 1",
    );
    let view =
        |dir: &str| format!("cd {dir} && find . -printf '%P %y %m %s %T@ %l\\n' | grep -v '^ d' | sort");
    let (through, below) = (guest.sh(&view("/srv/plain")), guest.sh(&view("/raw/plain")));
    assert_eq!(through, below, "the mount shows what the directory holds");
    guest.sh("kill $(cat /run/plain.pid)");
    guest.until("it is unmounted", "! grep -q ' /srv/plain fuse' /proc/mounts", LONG);
}

#[test]
#[ignore = "long: two guests"]
fn reboot_of_the_primary_is_a_hand_over() {
    let Some((world, image)) = World::new() else { return };
    let [mut a, mut b] = world.pair(&image);
    a.sh(&format!("(setsid bash -c '{WRITER}' > /dev/null 2>&1 &); sleep 5; test -s /root/acked"));
    a.sh("(sleep 1; systemctl reboot) > /dev/null 2>&1 &");
    b.until("it takes over", &role("ALONE"), LONG);
    let events = b.sh("skc events");
    assert!(!events.contains("silent for"), "nobody waited for silence: {events}");
    a.ready(BOOT);
    let acked: u64 = a.sh("cat /root/acked").trim().parse().expect("a number");
    a.until("it comes back as standby", &ready("SECOND"), LONG);
    b.until("it has its standby", &role("PRIM"), LONG);
    let last: u64 = b.sh("tail -n 1 /srv/data/log | sed s/record-//").trim().parse().expect("a record");
    assert!(last >= acked, "acknowledged {acked}, there {last}");
    equal(&mut a, &mut b);
}

#[test]
#[ignore = "long: two guests"]
fn both_machines_lose_their_power_at_once() {
    let Some((world, image)) = World::new() else { return };
    let [mut a, mut b] = world.pair(&image);
    b.sh("cat /srv/data/log 2>/dev/null; true");
    a.sh(&format!("(setsid bash -c '{WRITER}' > /dev/null 2>&1 &); sleep 8; test -s /root/acked"));
    let acked: u64 = a.sh("cat /root/acked").trim().parse().expect("a number");
    assert!(acked > 3, "some records were acknowledged: {acked}");
    let (a, b) = (a.power_cut(), b.power_cut());
    let [mut a, mut b] = std::thread::scope(|scope| {
        [a, b].map(|machine| scope.spawn(|| machine.boot())).map(|boot| boot.join().expect("it boots"))
    });
    // Nobody helps them.
    let primary = || format!("{} || {}", role("PRIM"), role("SECOND"));
    a.until("it has a role", &primary(), LONG);
    b.until("it has a role", &primary(), LONG);
    for guest in [&mut a, &mut b] {
        guest.until("the pair is whole", &format!("({}) || ({})", ready("PRIM"), ready("SECOND")), LONG);
        let log = guest.sh("cat /srv/data/log");
        for i in 1..=acked {
            assert!(log.lines().any(|line| line == format!("record-{i}")), "record {i} of {acked} is there");
        }
    }
    equal(&mut a, &mut b);
}

#[test]
#[ignore = "long: two guests"]
fn quotas_are_charged_to_the_user_who_writes() {
    let Some((world, image)) = World::new() else { return };
    let [mut a, mut b] = world.pair(&image);
    a.sh("quotaon /srv 2>/dev/null; useradd -m tester 2>/dev/null || adduser --disabled-password tester; \
          setquota -u tester 0 2048 0 0 /srv && chmod 1777 /srv/data");
    a.sh("su tester -c 'dd if=/dev/zero of=/srv/data/mine bs=1M count=1 status=none'");
    let used = a.sh("sync; quota -u tester -w 2>/dev/null | tail -n 1");
    assert!(
        used.split_whitespace()
            .nth(1)
            .is_some_and(|k| k.trim_end_matches('*').parse::<u64>().is_ok_and(|k| k >= 1024)),
        "{used}"
    );
    let full = a.ask("su tester -c 'dd if=/dev/zero of=/srv/data/more bs=1M count=4 status=none'", LONG);
    assert!(full.status != 0 && full.text.contains("quota"), "EDQUOT reaches the user: {full:?}");
    a.until("the primary goes on", &ready("PRIM"), LONG);
    equal(&mut a, &mut b);
    let used = b.sh("sync; repquota -u /srv | grep -E '^(tester|#1000)'");
    assert!(
        used.split_whitespace().nth(2).is_some_and(|k| k.parse::<u64>().is_ok_and(|k| k >= 1024)),
        "{used}"
    );
}

#[test]
#[ignore = "long: two guests"]
fn steps_of_a_clock_change_no_role() {
    let Some((world, image)) = World::new() else { return };
    let [mut a, mut b] = world.pair(&image);
    let epochs = |g: &mut Guest| {
        g.sh("skc status -o json | tr -d ' \\n' | grep -o '\"epoch\":\"[^\"]*\"' | head -n 1")
    };
    let before = [epochs(&mut a), epochs(&mut b)];
    for step in ["+1 hour", "-2 hours", "+1 hour"] {
        for guest in [&mut a, &mut b] {
            guest.sh(&format!("date -s \"$(date -d '{step}')\""));
            std::thread::sleep(Duration::from_secs(8)); // pace: longer than a heartbeat
        }
        a.sh("echo still >> /srv/data/log && sync -d /srv/data/log");
    }
    a.until("the same primary", &ready("PRIM"), LONG);
    b.until("the same standby", &ready("SECOND"), LONG);
    assert_eq!([epochs(&mut a), epochs(&mut b)], before, "no session was lost");
    equal(&mut a, &mut b);
}

#[test]
#[ignore = "long: two guests, and SKC_VM_PJDFSTEST names the program"]
fn posix_suite_on_the_guests_kernel() {
    if std::env::var_os("SKC_VM_PJDFSTEST").is_none() {
        return crate::skip::skipped(
            "posix_suite_on_the_guests_kernel",
            "SKC_VM_PJDFSTEST=PATH of pjdfstest",
        );
    }
    let Some((world, image)) = World::new() else { return };
    let [mut a, mut b] = world.pair(&image);
    a.sh("printf '[features]\\nposix_fallocate = {}\\nrename_ctime = {}\\nstat_st_birthtime = {}\\nutimensat = {}\\nutime_now = {}\\n[settings]\\nnaptime = 0.1\\n\
          [dummy_auth]\\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\\n' > /root/p.toml; mkdir -p /dev/shm/second; \
          mkdir -p /srv/bare");
    let mut run = |dir: &str| {
        let command = format!(
            "pjdfstest -c /root/p.toml -s /dev/shm/second -p {dir} 2>&1 | grep -E 'FAILED|Summary|failed$' | tail -n 40"
        );
        a.ask(&command, Duration::from_secs(900)).text
    };
    println!("bare: {}", run("/srv/bare"));
    let mounted = run("/srv/data");
    println!("mirror: {mounted}");
    assert!(mounted.contains("Summary: 0 failed"), "{mounted}");
    equal(&mut a, &mut b);
}
