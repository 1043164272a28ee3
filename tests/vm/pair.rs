//! Two guests enrolled as a pair, as an operator does it by the README, with the README's systemd unit.

use crate::guest::{Guest, Machine};
use crate::{home, image, payload, skip};
use std::path::PathBuf;
use std::time::Duration;

/// Longer than anything takes here; a failure says what it waited for.
pub const LONG: Duration = Duration::from_secs(180);

/// Disks of a test's machines, removed at its end.
pub struct World(PathBuf);

impl World {
    /// `None`: skipped, and said so.
    pub fn new() -> Option<(Self, PathBuf)> {
        let image = match image() {
            Ok(image) => image,
            Err(missing) => {
                skip::skipped(&skip::this_test(), missing);
                return None;
            }
        };
        let dir = home().join(format!("{}.{}", skip::this_test().replace("::", "-"), std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Some((Self(dir), image))
    }

    /// A machine with the program installed, its data disk at /srv (and once more at /raw, past any mirror).
    pub fn machine(&self, image: &std::path::Path, number: u8) -> Guest {
        let payload = payload(&self.0);
        let mut guest = Machine::new(&self.0, image, number, &payload).boot();
        install(&mut guest, number);
        guest
    }

    /// Both machines, enrolled, with the mirror of /srv/data running.
    pub fn pair(&self, image: &std::path::Path) -> [Guest; 2] {
        let payload = payload(&self.0);
        let [mut a, mut b] = std::thread::scope(|scope| {
            [0, 1]
                .map(|n| {
                    let payload = &payload;
                    scope.spawn(move || {
                        let mut guest = Machine::new(&self.0, image, n, payload).boot();
                        install(&mut guest, n);
                        guest
                    })
                })
                .map(|boot| boot.join().expect("it boots"))
        });
        a.sh("skc init --name node-a --address 10.77.1.1 --address 10.77.2.1 && systemctl enable --now skc");
        a.until("its agent answers", "skc status", LONG);
        let token = a.sh("skc token");
        let token = token.split_whitespace().find(|word| word.len() > 40).expect("a token").to_owned();
        b.sh(&format!("skc join {token} --name node-b --address 10.77.1.2 --address 10.77.2.2"));
        b.sh("systemctl enable --now skc");
        a.sh(&format!("cat > /root/spec.yaml <<'END'\n{SPEC}END\nskc apply -f /root/spec.yaml"));
        a.until("it is primary", &role("PRIM"), LONG);
        b.until("it is standby", &ready("SECOND"), LONG);
        [a, b]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("disks and logs are kept in {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Long timers: whatever happens sooner is no consequence of silence.
const SPEC: &str = "apiVersion: skc.dev/v1
kind: ClusterSpec
metadata: {name: data}
spec:
  nodes:
    - {name: node-a, addresses: [10.77.1.1, 10.77.2.1]}
    - {name: node-b, addresses: [10.77.1.2, 10.77.2.2]}
  directories:
    - {path: /srv/data}
  virtualIPs:
    - {address: 10.77.1.100/24}
  heartbeat: {interval: 1s, timeout: 20s}
  failover: {mode: automatic}
";

/// Succeeds when the node has the role.
pub fn role(role: &str) -> String {
    format!("skc status -o json | tr -d ' \\n' | grep -q '\"role\":\"{role}\"'")
}

/// Succeeds when the node has the role and is Ready.
pub fn ready(word: &str) -> String {
    format!(
        "s=$(skc status -o json | tr -d ' \\n'); echo \"$s\" | grep -q '\"role\":\"{word}\"' && echo \"$s\" | grep -q '\"ready\":\"Ready\"'"
    )
}

fn install(guest: &mut Guest, number: u8) {
    let host = number + 1;
    guest.sh("tar xf /dev/vdc -C /usr/local/bin && skc --version");
    guest.sh(&format!(
        "echo {name} > /etc/hostname; hostname {name}
         for k in 1 2; do printf '[Match]\\nMACAddress=52:54:00:77:0'$k':0{host}\\n[Network]\\nAddress=10.77.'$k'.{host}/24\\n' \
           > /etc/systemd/network/$k.network; done
         systemctl restart systemd-networkd
         mkdir -p /srv /raw
         printf '/dev/vdb /srv ext4 usrquota 0 2\\n/dev/vdb /raw ext4 defaults 0 2\\n' >> /etc/fstab
         mount /srv; mount /raw; mkdir -p /srv/data; sync",
        name = guest.machine.name
    ));
    guest.until("its addresses are up", &format!("ip -4 a | grep -q 10.77.2.{host}/"), LONG);
    guest.sh(&format!(
        "cat > /etc/systemd/system/skc.service <<'END'\n{}END\nsystemctl daemon-reload",
        unit()
    ));
}

/// The unit that the README tells operators to install.
fn unit() -> String {
    let readme = include_str!("../../README.md");
    let from = readme.find("[Unit]\nDescription=skc agent").expect("the README has a unit");
    let text = &readme[from..];
    text[..text.find("```").expect("its end")].to_owned()
}
